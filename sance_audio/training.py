r"""The loop: self-adapting noise-contrastive estimation of an energy model.

    every K steps:   theta_k <- theta;  advance chains of p_k;  their ends are the pool of noise
    every step:      h = (F_k - F_theta) / tau - dlogZ   on B data clips and nu B noise samples
                     minimise  mean d(h_data) + mean n(h_noise) + penalty mean (F / tau)^2

The refresh comes earlier when the pool no longer represents the model (ESS / N below a half) or
when the classifier that h is has become too good (balanced accuracy above 0.7 on at least 200
clips). A step that is not finite, or a gap beyond its limit, takes the run back to its last good
state at half the rate, and says so.
"""

from __future__ import annotations

__all__ = ["TrainConfig", "train", "Callbacks", "Diverged"]

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sance_audio import processes
from sance_audio.checkpoint import RunFolder
from sance_audio.config import TrainConfig
from sance_audio.divergences import objective
from sance_audio.energy import EnergyModel, ReferencedEnergy
from sance_audio.health import balanced_accuracy, refresh_cause, trouble
from sance_audio.ledger import Ledger, relative_ess
from sance_audio.loop import Callbacks, Journal, move_average, rows_on, start_together
from sance_audio.noise import Noise, make
from sance_audio.state import Clips, Diverged, RunState, fingerprint


def train(
    model: EnergyModel,
    x: Clips,
    components: Tensor,
    config: TrainConfig,
    run: str | Path,
    *,
    seed: int = 0,
    callbacks: Callbacks = (),
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train the network of `model` on clean log-mels; the same call resumes an interrupted run.

    Arguments:
        model: Holds the fitted reference and a network at its start; left with the averaged
            weights, and with their log Z as the ledger has it.
        x: `(N, 1, M, T)`, standardised log-mels: a tensor, or an object that reads its rows from
            a disk when they are asked for.
        components: `(N,)`, component of each, from `GaussianReference.fit`.
        config: Settings.
        run: Folder for `metrics.jsonl` and `state/`, written by the main process.
        seed: Of data order, dequantisation and chains.
        callbacks: See `Callbacks`.
        progress: Show a progress bar.

    Returns:
        The rows of `metrics.jsonl`, one a step, in every process.

    Raises:
        ValueError: fewer clips than a batch, or a component without any; clips that are not
            finite; another temperature than the model's; noise that cannot have made the clips; a
            run folder whose state has other settings, or was left by another number of processes.
        OSError: the disk is full; the last checkpoint is intact.
        Diverged: the run diverged more than `MAX_ROLLBACKS` times.
    """
    from accelerate import Accelerator

    # Parts
    processes.join(model.device)
    accelerator = Accelerator(cpu=model.device.type == "cpu", mixed_precision="no")
    device = accelerator.device
    components = start_together(model, components)
    _check(model, x, components, config)
    hashed = processes.on_main(lambda: fingerprint(model, x, components))
    model.to(device)
    average = model.density.network.requires_grad_(False)
    network, optimiser = _network_and_optimiser(model, config, accelerator)
    raw = accelerator.unwrap_model(network)
    generator = torch.Generator(device).manual_seed(processes.own_seed(seed))
    energy = ReferencedEnergy(model.reference, raw, config.temperature)
    noise = make(config, energy, model.shape, generator, accelerator.gather)
    members = _Members(components.to(device), model.reference.n_components)
    clips = x.to(device) if isinstance(x, Tensor) else x
    loss_of = objective(config.loss, config.nu, config.alpha)
    first = members.clips[members.first].cpu()
    noise.check(x[first].to(device), torch.arange(len(first), device=device))

    # Resume
    folder = RunFolder(run, config, {"seed": seed}, hashed)
    state = RunState(raw, average, optimiser, noise, generator)
    if bool((model.density.log_z != 0).any()):  # a model that was trained before
        state.progress.ledger = Ledger.known(model.density.log_z, model.density.log_z_error)
    journal = Journal(folder, state, config, model, callbacks, progress)

    while state.progress.step < config.steps:
        p = state.progress
        row: dict[str, Any] = {"step": p.step + 1}

        # Noise: a new snapshot, and chains moved to it
        if p.cause:
            noise.refresh(raw, generator, p.ledger if p.step else None)
            row |= {"refresh": p.cause, "ess": p.ledger.ess, **_displacement(noise)}
            p.since, p.right = 0, []

        # Loss: one forward on data and noise together
        drawn = noise.draw(config.nu, generator)
        clean = rows_on(clips, members.choose(noise.c, generator), device)
        data = clean + model.sigma * torch.randn(clean.shape, generator=generator, device=device)
        h, value = noise.log_ratio(
            network, data, drawn, frozen_is_network=p.since == 0, measured=True
        )
        h_data, h_noise = map(noise.by_component, h.split([len(data), len(drawn.x)]))
        loss = loss_of(h_data, h_noise) + config.penalty * value.square().mean()

        # Guard: the same in every process
        optimiser.zero_grad()
        accelerator.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(network.parameters(), config.clip))
        gap = float((value[len(data) :].mean() - value[: len(data)].mean()).detach())
        own = [
            float(loss.detach()),
            gap,
            balanced_accuracy(*_without_offset(h_data, h_noise, noise)),
        ]
        loss_now, gap, accuracy = processes.mean(own)
        p.gaps = [*p.gaps, gap][-10:]
        wrong = trouble(loss_now, norm, p.gaps, config.gap_limit)
        if wrong:
            journal.take_back(wrong)
            continue

        # Update
        rate = config.rate * p.scale * min(1.0, 2 * (1 - p.step / config.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        move_average(average, raw, min(config.ema, (1 + p.step) / (10 + p.step)))
        p.step, p.since = p.step + 1, p.since + 1

        # Next refresh
        noise.after_step(raw, data)
        p.right.append(accuracy if p.since > 1 or not noise.follows else 0.5)
        pool_ess = relative_ess(noise.pool_log_ratio())
        batch = processes.count() * len(data)
        p.cause = refresh_cause(p.since, p.right, pool_ess, batch, config)

        # Log, callbacks, checkpoint
        row |= {"loss": loss_now, "gap": gap, "norm": norm, "rate": rate}
        told_apart = p.since > 1 or not noise.follows  # else h is 0 to the bit
        row |= {"accuracy": accuracy if told_apart else None, "pool_ess": pool_ess}
        row |= {"saturated": loss_of.saturated(h_data, h_noise)} if config.saturates else {}
        error = p.ledger.standard_error
        row |= {"log_z": p.ledger.mean, "log_z_error": error if math.isfinite(error) else None}
        journal.enter(row)
    journal.bar.close()
    _export_log_z(model, noise, state.progress.ledger, processes.own_seed(seed + 1))
    return journal.rows


def _check(model: EnergyModel, x: Clips, components: Tensor, config: TrainConfig) -> None:
    """Raise ValueError for what cannot be trained on, before any work is done."""
    if hasattr(model.density.network, "levels"):
        raise ValueError("a noise-conditional network is trained by train_conditional")
    if len(x) != len(components):
        raise ValueError(f"{len(x)} clips and {len(components)} components: one each is needed")
    batch = config.per_component * model.reference.n_components
    if len(x) < batch:
        raise ValueError(
            f"{len(x)} training clips are fewer than a batch of {batch} "
            f"(train.per_component={config.per_component} for each of "
            f"{model.reference.n_components} components): lower train.per_component, or fit the "
            f"reference with fewer components"
        )
    if config.weighted and processes.count() > 1:
        raise ValueError(
            f"train.weighted: chains are resampled within one process, found {processes.count()}: "
            f"start one, or leave the weights out"
        )
    if config.temperature != model.density.temperature:
        raise ValueError(
            f"train.temperature={config.temperature}, the model's is "
            f"{model.density.temperature}: make both the same"
        )


def _export_log_z(model: EnergyModel, noise: Noise, ledger: Ledger, seed: int) -> None:
    """Give the model log Z of its averaged weights: the ledger's, carried over a bridge."""
    generator = torch.Generator(model.device).manual_seed(seed)
    last = noise.bridge(model.density.network, ledger, generator)
    model.density.log_z.copy_(torch.tensor(last.corrected))
    model.density.log_z_error.copy_(torch.tensor(last.variance).sqrt())


def _without_offset(h_data: Tensor, h_noise: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Log ratios `(n, C)` with dlogZ taken off where the loss does without it."""
    offset = noise.log_z_ratio() if noise.dlogz == "cancelled" else 0.0
    return h_data - offset, h_noise - offset


def _displacement(noise: Noise) -> dict[str, float]:
    """How far chains have moved, and that over what chains of the base would have."""
    if not noise.stride:
        return {}
    moved = processes.mean([noise.moved])[0]
    return {"moved": moved, "displacement": moved / noise.stride}


def _network_and_optimiser(
    model: EnergyModel, config: TrainConfig, accelerator: Any
) -> tuple[Any, Any]:
    """The network that is trained, beside the average of its weights, and its optimiser."""
    network = copy.deepcopy(model.density.network).train().requires_grad_(True)
    optimiser = torch.optim.Adam(
        network.parameters(), lr=config.rate, betas=(config.beta1, config.beta2)
    )
    network, optimiser = accelerator.prepare(network, optimiser)
    if processes.count() > 1:
        # Gradients are exchanged in buckets, laid out anew after the first backward pass; where
        # three processes or more are summed, the last bits depend on the layout. It is settled
        # here, before the first step, so that a resumed run sums as the unbroken one does.
        x = torch.zeros(1, 1, *model.shape, device=accelerator.device)
        network(x, x.new_zeros(1, dtype=torch.long)).sum().backward()
        optimiser.zero_grad()
    return network, optimiser


class _Members:
    """Indices of the clips of each component."""

    def __init__(self, components: Tensor, count: int):
        self.clips = components.argsort(stable=True)
        self.number = components.bincount(minlength=count)
        self.first = self.number.cumsum(0) - self.number
        empty = (self.number == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"no training clips for components {empty}; fit the reference on clips like these"
            )

    def choose(self, c: Tensor, generator: torch.Generator) -> Tensor:
        """One random clip of each component in c `(B,)`."""
        u = torch.rand(len(c), generator=generator, device=c.device).double()
        return self.clips[self.first[c] + (u * self.number[c]).long()]
