r"""The loop of noise-conditional models: denoising first, then self-adapting noise.

    x_t = x + sigma_t n,      x_{t+1} = x_t + sqrt(delta) n'
    the first steps:   minimise |sigma^2 grad F(x_sigma) - (D(x_sigma) - x)|^2 / r(sigma)^2
    then, K = interval:
        every K steps: theta_k <- theta
        every step:    nu draws of p_k(x_t | x_{t+1}) for each clip's own x_{t+1}, and
                       h = F_k - F_theta  on the clip's x_t and on the draws
                       minimise  -log softmax of the clip among its draws

D is the reference's estimate of clean x and r its error, so that a network of zero has a loss of 1
on samples of the reference, and less on clips that it was fitted to. The candidates of a clip
share x_{t+1}: what depends on it alone, the normaliser above all, cancels, and so does the
Gaussian part. At the highest level the reference is taken as exact.

References:
    Self-adapting noise-contrastive estimation for energy-based models (Xu, 2022), arXiv 2211.02650
    Learning energy-based models by diffusion recovery likelihood (Gao et al., 2021)
    A connection between score matching and denoising autoencoders (Vincent, 2011)
"""

from __future__ import annotations

__all__ = ["train_conditional", "denoising_loss", "ranked"]

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sance_audio import processes
from sance_audio.checkpoint import RunFolder
from sance_audio.config import TrainConfig
from sance_audio.divergences import RANKED, Pair, Ranked, objective
from sance_audio.energy import EnergyModel, ReferencedEnergy, level
from sance_audio.health import refresh_cause, trouble
from sance_audio.loop import Callbacks, Journal, move_average, rows_on
from sance_audio.noise.recovery import RecoveryNoise
from sance_audio.state import Clips, RunState, fingerprint


class Batch(NamedTuple):
    """Clips at their levels, and the same clips one level above."""

    x: Tensor
    """x_t, `(B, 1, M, T)`."""
    y: Tensor
    """x_{t+1}."""
    c: Tensor
    """Components `(B,)`."""
    sigma: Tensor
    """sigma_t `(B,)`."""
    above: Tensor
    """sigma_{t+1} `(B,)`."""


def train_conditional(
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
    """Train a model whose network is conditioned on the level of noise; the same call resumes an
    interrupted run.

    Arguments, returns and errors are those of `training.train`. Of the settings, those of chains
    and of dlogZ have no meaning here: `batch`, `warm` and `warm_rate` are this form's own. The
    loss is ranking; log Z is not known at the end.

    Raises:
        ValueError: besides, several processes, another noise than self, another temperature than
            1, or a loss in which what depends on x_{t+1} does not cancel.
    """
    # Parts
    loss_of = _checked(model, x, components, config)
    device = model.device
    hashed = fingerprint(model, x, components)
    average = model.density.network.requires_grad_(False)
    network: Any = copy.deepcopy(average).train().requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), betas=(config.beta1, config.beta2))
    generator = torch.Generator(device).manual_seed(seed)
    energy = ReferencedEnergy(model.reference, network)
    noise = RecoveryNoise(
        energy, steps=config.langevin_steps, step_size=config.step_size, cap=config.cap
    )
    clips, components = x.to(device) if isinstance(x, Tensor) else x, components.to(device)

    # Resume
    folder = RunFolder(run, config, {"seed": seed}, hashed)
    state = RunState(network, average, optimiser, noise, generator)
    journal = Journal(folder, state, config, model, callbacks, progress)
    warm = round(config.warm * config.steps)

    while state.progress.step < config.steps:
        p = state.progress
        row: dict[str, Any] = {"step": p.step + 1}
        chosen = torch.randint(len(x), (config.batch,), generator=generator, device=device)
        clean, c = rows_on(clips, chosen, device), components[chosen]

        # Loss
        if p.step < warm:
            sigma = _any_levels(network.levels, config.batch, generator)
            z = torch.randn(clean.shape, generator=generator, device=device)
            loss = denoising_loss(energy, clean, c, sigma, z)
            row |= {"denoising": float(loss.detach())}
        else:
            if p.step == warm:
                optimiser.state.clear()  # another loss, of another scale
                p.cause, p.since, p.right = "start", 0, []
            if p.cause:
                noise.refresh(network)
                row |= {"refresh": p.cause}
                p.since, p.right = 0, []
            batch = _noised(network.levels, clean, c, generator)
            h_data, h_noise, value = ranked(
                network, noise, batch, config.nu, p.since == 0, generator
            )
            apart = (value[1:] - value[:1]).square().mean()
            loss = loss_of(h_data, h_noise) + config.penalty * apart
            gap = float((value[1:].mean() - value[0].mean()).detach())
            p.gaps = [*p.gaps, gap][-10:]
            accuracy = float((h_data > h_noise).float().mean()) if p.since else None
            row |= {"gap": gap, "accuracy": accuracy}

        # Guard
        optimiser.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(network.parameters(), config.clip))
        wrong = trouble(float(loss.detach()), norm, p.gaps or [0.0], config.gap_limit)
        if wrong:
            journal.take_back(wrong)
            continue

        # Update
        rate = p.scale * _rate(config, p.step, warm)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        move_average(average, network, min(config.ema, (1 + p.step) / (10 + p.step)))
        p.step, p.since = p.step + 1, p.since + 1

        # Next refresh, log, callbacks, checkpoint
        if p.step > warm:
            p.right.append(0.5 if row["accuracy"] is None else row["accuracy"])
            p.cause = refresh_cause(p.since, p.right, 1.0, config.batch, config)
        journal.enter(row | {"loss": float(loss.detach()), "norm": norm, "rate": rate})
    journal.bar.close()
    model.density.log_z_error.fill_(torch.nan)
    return journal.rows


def denoising_loss(
    energy: ReferencedEnergy, clean: Tensor, c: Tensor, sigma: Tensor, z: Tensor
) -> Tensor:
    """Mean square error of `x + sigma z` denoised by the model, over the reference's expected one:
    `()`. Its gradient goes through grad F.

    Arguments:
        energy: Reference, and a network conditioned on the level.
        clean: x `(B, 1, M, T)`.
        c: Components `(B,)`.
        sigma: Levels `(B,)`.
        z: Standard normal `(B, 1, M, T)`.
    """
    network: Any = energy.network
    s = sigma[:, None, None, None]
    x = (clean + s * z).requires_grad_(True)
    with torch.no_grad():
        known = level(energy, c, x.new_zeros(len(c))).denoised(x, sigma**2)
        missing = known.mean.view_as(x) - clean
    (gradient,) = torch.autograd.grad(network(x, c, sigma).sum(), x, create_graph=True)
    r = network.error(sigma)[:, None, None, None]
    return ((s**2 * gradient - missing) / r).square().mean()


def ranked(
    network: Any,
    noise: RecoveryNoise,
    batch: Batch,
    nu: int,
    fresh: bool,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log ratios, up to what the candidates of a clip share.

    Arguments:
        network: F_theta.
        noise: The snapshot.
        batch: Clips at two levels each.
        nu: Draws for each clip.
        fresh: The snapshot is the network: h is 0 to the bit, and only its gradient counts.
        generator: Of the draws.

    Returns:
        h `(1, B)` on the clips and `(nu, B)` on the draws; F_theta `(1 + nu, B)` on both.
    """
    often = Batch(*(part.repeat(nu, *[1] * (part.ndim - 1)) for part in batch))
    drawn = noise.draw(often.y, often.c, often.sigma, often.above, generator)
    every = torch.cat([batch.x, drawn])
    c, sigma = batch.c.repeat(1 + nu), batch.sigma.repeat(1 + nu)
    value = network(every, c, sigma)
    h = (value.detach() if fresh else noise.energy(every, c, sigma)) - value
    h, value = h.view(1 + nu, -1), value.view(1 + nu, -1)
    return h[:1], h[1:], value


def _any_levels(levels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n levels `(n,)`, log-uniform over the whole range and evenly spread in it."""
    u = torch.rand((), generator=generator, device=levels.device)
    u = (u + torch.arange(n, device=levels.device) / n) % 1
    low, high = levels[0].log(), levels[-1].log()
    return (low + u * (high - low)).exp()


def _noised(levels: Tensor, clean: Tensor, c: Tensor, generator: torch.Generator) -> Batch:
    """Clips at levels 0 to L - 2, of each as many as of any other, but for one."""
    device, n = clean.device, len(clean)
    first = torch.randint(len(levels) - 1, (), generator=generator, device=device)
    t = (first + torch.arange(n, device=device)) % (len(levels) - 1)
    sigma, above = levels[t], levels[t + 1]
    rise = (above**2 - sigma**2).sqrt()
    one, two = (torch.randn(clean.shape, generator=generator, device=device) for _ in range(2))
    x = clean + sigma[:, None, None, None] * one
    return Batch(x, x + rise[:, None, None, None] * two, c, sigma, above)


def _rate(config: TrainConfig, step: int, warm: int) -> float:
    """The learning rate of a step from 0: of each part constant, then falling from half-way."""
    if step < warm:
        return config.warm_rate * min(1.0, 2 * (1 - step / warm))
    return config.rate * min(1.0, 2 * (1 - (step - warm) / (config.steps - warm)))


def _checked(model: EnergyModel, x: Clips, components: Tensor, config: TrainConfig) -> Ranked:
    """The loss; ValueError for what cannot be trained on, before any work is done."""
    if len(x) != len(components):
        raise ValueError(f"{len(x)} clips and {len(components)} components: one each is needed")
    if processes.count() > 1:
        raise ValueError(
            f"a noise-conditional model trains in one process, found {processes.count()}: start "
            f"one, or take a plain model (--levels 0)"
        )
    if config.noise != "self" or config.weighted or config.temperature != 1:
        raise ValueError(
            f"a noise-conditional model has noise of its own, at temperature 1: leave "
            f"train.noise at self, train.weighted and train.temperature out; found "
            f"{config.noise}, {config.weighted}, {config.temperature}"
        )
    name = "ranking" if config.loss == "logistic" else config.loss
    loss = objective(name, config.nu, config.alpha)
    if isinstance(loss, Pair):
        raise ValueError(
            f"train.loss={config.loss}: what depends on x_t+1 does not cancel in it; leave it "
            f"out, or take one of {', '.join(RANKED)}"
        )
    return loss
