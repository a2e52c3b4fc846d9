r"""The loop: self-adapting noise-contrastive estimation of an `AudioEBM`.

    every K steps:   theta_k <- theta;  advance chains of p_k;  their ends are the pool of noise
    every step:      h = F_k - F_theta - dlogZ   on B data clips and nu B noise samples, in one forward
                     minimise  mean d(h_data) + mean n(h_noise) / nu-weighted + penalty mean F^2

The refresh comes earlier when the pool no longer represents the model (ESS / N below a half) or when the classifier that h
is has become too good (balanced accuracy above 0.7 on at least 200 clips). A step that is not finite, or a gap beyond its
limit, takes the run back to its last good state at half the rate, and says so.
"""

from __future__ import annotations

__all__ = ["TrainConfig", "train", "Callbacks", "Diverged"]

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sance_audio.diagnostics import Ledger
from sance_audio.divergences import effective_sample_size, logistic
from sance_audio.energy import ReferencedEnergy
from sance_audio.files import append_jsonl, atomic, read_jsonl
from sance_audio.model import AudioEBM
from sance_audio.noise import SelfNoise


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the resolved values stand in the run's config.json."""

    steps: int = 1150
    """Optimiser steps."""
    interval: int = 1
    """K: optimiser steps between refreshes of the noise, at most."""
    nu: int = 1
    """Noise samples per data sample."""
    per_component: int = 1
    """Data clips per component of the reference in a batch."""
    groups: int = 4
    """Groups of persistent chains; a group has per_component chains of each component."""
    pool: int = 1
    """Groups advanced at a refresh; their ends are the noise until the next."""
    langevin_steps: int = 40
    """Langevin steps of a chain per refresh."""
    step_size: float = 0.1
    """eps of the sampler."""
    cap: float = 1.0
    """Largest eigenvalue of the reference that preconditions the sampler's drift."""
    fresh: float = 0.0
    """Probability that a chain starts again from the reference at a refresh."""
    rate: float = 1e-4
    """Learning rate of Adam (beta1 = 0, beta2 = 0.99); falls linearly to zero from half-way."""
    clip: float = 2.0
    """Largest norm of the gradient."""
    ema: float = 0.99
    """Decay of the averaged weights that the model is exported with."""
    penalty: float = 1e-4
    """Weight of the mean squared network energy."""
    gap_limit: float = 50.0
    """Largest |mean F(noise) - mean F(data)|, averaged over 10 steps, in nats, before the run is taken back."""
    min_ess: float = 0.5
    """Refresh when ESS / N of the pool falls below."""
    max_accuracy: float = 0.7
    """Refresh when the balanced accuracy of h > 0 rises above, over at least 200 clips."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    sample_every: int = 250
    """Steps between clips and pictures from fixed chains; 0 for none."""

    def __post_init__(self) -> None:
        positive = "steps interval nu per_component groups pool langevin_steps checkpoint_every"
        for name in positive.split():
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, found {getattr(self, name)}")
        for name in "step_size cap rate clip gap_limit".split():
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} must be positive, found {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"train.ema must lie in [0, 1), found {self.ema}")
        if self.interval > 1 and self.pool * self.per_component < 4:
            raise ValueError(
                f"train.interval={self.interval} estimates dlogZ of each component from the pool, which needs at least 4 "
                f"chains of each: raise train.pool or train.per_component (now {self.pool} and {self.per_component})"
            )


Callbacks = tuple[Callable[[int, dict[str, Any], AudioEBM], None], ...]
"""Called after every step with (step from 1, its row of metrics, the model with its averaged weights)."""

REFRESH_AFTER = 200
"""Clips that the balanced accuracy is taken over, at least."""
MAX_ROLLBACKS = 8
GOOD_EVERY = 25
"""Steps between captures that a rollback returns to."""


@dataclass
class _Progress:
    """Where a run stands: all that is neither a tensor nor a random state."""

    step: int = 0
    since: int = 0
    """Steps since the last refresh."""
    cause: str = "start"
    """Why the noise is refreshed before the next step; empty when it is not."""
    scale: float = 1.0
    """Factor of the learning rate: halved by each rollback."""
    rollbacks: int = 0
    note: str = ""
    """What the next row of metrics says of a rollback."""
    gaps: list[float] = field(default_factory=list)
    """Network gaps of the last steps."""
    right: list[float] = field(default_factory=list)
    """Balanced accuracies of h > 0 since the last refresh."""
    ledger: Ledger = field(default_factory=Ledger)


class Diverged(RuntimeError):
    """Training went wrong again and again, at ever lower rates."""


class _Run:
    """The parts of a run that change, captured and restored together."""

    def __init__(
        self,
        network: nn.Module,
        average: nn.Module,
        optimiser: torch.optim.Optimizer,
        noise: SelfNoise,
        generator: torch.Generator,
    ):
        self.stateful = {"network": network, "average": average, "optimiser": optimiser, "noise": noise}
        self.generator, self.progress = generator, _Progress()

    def capture(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self.stateful.items()}
        parts |= {"generator": self.generator.get_state(), "progress": asdict(self.progress)}
        return copy.deepcopy(parts)

    def restore(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        progress = state["progress"]
        self.progress = _Progress(**progress | {"ledger": Ledger(**progress["ledger"])})

    def roll_back(self, good: dict[str, Any], trouble: str) -> None:
        """Return to a captured state at half the rate, with the random state of now, so that the draws differ."""
        now, at = self.generator.get_state(), self.progress.step + 1
        count, scale = self.progress.rollbacks + 1, self.progress.scale / 2
        self.restore(good)
        self.generator.set_state(now)
        self.progress.rollbacks, self.progress.scale = count, scale
        self.progress.note = (
            f"step {at}: {trouble}; back to step {self.progress.step} at rate x {scale:g}"
        )
        if count > MAX_ROLLBACKS:
            raise Diverged(
                f"training diverged {count} times, last at {self.progress.note}. Lower train.rate or raise "
                f"train.langevin_steps; the last checkpoint is intact"
            )


def train(
    model: AudioEBM,
    x: Tensor,
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
        model: Holds the fitted reference and a network at its start; left with the averaged weights.
        x: `(N, 1, M, T)`, standardised log-mels.
        components: `(N,)`, component of each, from `GaussianReference.fit`.
        config: Settings.
        run: Folder for `metrics.jsonl` and `state/`.
        seed: Of data order, dequantisation and chains.
        callbacks: See `Callbacks`.
        progress: Show a progress bar.

    Returns:
        The rows of `metrics.jsonl`, one a step.

    Raises:
        ValueError: a component without clips; a run folder whose state has other settings.
        Diverged: the run diverged more than `MAX_ROLLBACKS` times.
    """
    from accelerate import Accelerator
    from tqdm import tqdm

    # Parts
    accelerator = Accelerator(cpu=model.log_z.device.type == "cpu")
    device = accelerator.device
    model.to(device)
    average = model.density.network.requires_grad_(False)
    network, optimiser = _network_and_optimiser(average, config, accelerator)
    raw = accelerator.unwrap_model(network)
    generator = torch.Generator(device).manual_seed(seed)
    noise = _self_noise(model, raw, config, generator)
    members = _members(components.to(device), model.reference.n_components)
    x, pair = x.to(device), logistic(config.nu)

    # Resume
    state_file, log_file = Path(run) / "state" / "latest.pt", Path(run) / "metrics.jsonl"
    state = _Run(raw, average, optimiser, noise, generator)
    if state_file.exists():
        state.restore(_load_state(state_file, config, seed))
    rows = _rewind(log_file, state.progress.step)
    good = state.capture()
    bar = tqdm(total=config.steps, initial=len(rows), desc="train", unit="step", disable=not progress)

    while state.progress.step < config.steps:
        p = state.progress
        row: dict[str, Any] = {"step": p.step + 1}

        # Noise: a new snapshot, and chains moved to it
        if p.cause:
            if p.step:
                p.ledger.enter(noise.pool_log_ratio(raw))
            noise.refresh(raw, generator)
            row |= {"refresh": p.cause, "moved": noise.moved, "ess": p.ledger.ess}
            p.since, p.right = 0, []

        # Loss: one forward on data and noise together
        drawn = noise.draw(config.nu, generator)
        clean = x[_choose(members, noise.c, generator)]
        data = clean + model.sigma * torch.randn(clean.shape, generator=generator, device=device)
        both, conditions = torch.cat([data, drawn.x]), torch.cat([noise.c, drawn.c])
        value = network(both, conditions)
        if p.since == 0:  # the network is its snapshot: h = 0 and dlogZ = 0, to the bit
            h = value.detach() - value
        else:
            with torch.no_grad():
                frozen = torch.cat([noise.frozen.network(data, noise.c), drawn.frozen])
            h = frozen - value - noise.dlogz(noise.pool_log_ratio(raw))[conditions]
        h_data, h_noise = h.split([len(data), len(drawn.x)])
        loss = pair.data(h_data).mean() + pair.noise(h_noise).mean()
        loss = loss + config.penalty * value.square().mean()

        # Guard
        optimiser.zero_grad()
        accelerator.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(network.parameters(), config.clip))
        gap = float((value[len(data) :].mean() - value[: len(data)].mean()).detach())
        p.gaps = [*p.gaps, gap][-10:]
        trouble = _trouble(float(loss.detach()), norm, p.gaps, config.gap_limit)
        if trouble:
            state.roll_back(good, trouble)
            rows = _rewind(log_file, state.progress.step)
            bar.write(state.progress.note)
            bar.n = len(rows)
            continue

        # Update
        rate = config.rate * p.scale * min(1.0, 2 * (1 - p.step / config.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        _average(average, raw, min(config.ema, (1 + p.step) / (10 + p.step)))
        p.step, p.since = p.step + 1, p.since + 1

        # Next refresh
        pool_ess = 1.0
        if config.interval > 1:
            p.right.append(_balanced_accuracy(h_data, h_noise) if p.since > 1 else 0.5)
            log_ratio = noise.pool_log_ratio(raw).flatten()
            pool_ess = float(effective_sample_size(log_ratio)) / log_ratio.numel()
            row |= {"accuracy": p.right[-1], "pool_ess": pool_ess}
        p.cause = _refresh_cause(p, pool_ess, len(data), config)

        # Log, checkpoint, callbacks
        row |= {"loss": float(loss.detach()), "gap": gap, "norm": norm, "rate": rate}
        row |= {"log_z": p.ledger.log_z, "log_z_error": p.ledger.standard_error}
        if p.note:
            row["rollback"], p.note = p.note, ""
        append_jsonl(log_file, row)
        rows.append(row)
        if p.step % GOOD_EVERY == 0 and abs(sum(p.gaps)) < config.gap_limit / 4 * len(p.gaps):
            good = state.capture()
        if p.step % config.checkpoint_every == 0 or p.step == config.steps:
            _save_state(state_file, state, config, seed)
        for callback in callbacks:
            callback(p.step, row, model)
        bar.set_postfix_str(f"gap {sum(p.gaps) / len(p.gaps):+.2f} nats", refresh=False)
        bar.update()
    bar.close()
    return rows


def _network_and_optimiser(average: nn.Module, config: TrainConfig, accelerator: Any) -> tuple[Any, Any]:
    """The network that is trained, beside the average of its weights, and its optimiser."""
    network = copy.deepcopy(average).train().requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.rate, betas=(0.0, 0.99))
    return accelerator.prepare(network, optimiser)


def _self_noise(
    model: AudioEBM, raw: nn.Module, config: TrainConfig, generator: torch.Generator
) -> SelfNoise:
    return SelfNoise(
        ReferencedEnergy(model.reference, raw),
        model.shape,
        per_component=config.per_component,
        groups=config.groups,
        pool=config.pool,
        steps=config.langevin_steps,
        step_size=config.step_size,
        cap=config.cap,
        fresh=config.fresh,
        generator=generator,
    )


def _members(components: Tensor, count: int) -> list[Tensor]:
    """Indices of the clips of each component."""
    members = [(components == c).nonzero().flatten() for c in range(count)]
    empty = [c for c, m in enumerate(members) if len(m) == 0]
    if empty:
        raise ValueError(f"no training clips for components {empty}; fit the reference on clips like these")
    return members


def _choose(members: list[Tensor], c: Tensor, generator: torch.Generator) -> Tensor:
    """One random clip of each component in c `(B,)`."""
    draws = torch.rand(len(c), generator=generator, device=c.device)
    return torch.stack(
        [members[k][int(u * len(members[k]))] for k, u in zip(c.tolist(), draws.tolist(), strict=True)]
    )


def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for a, b in zip(average.parameters(), network.parameters(), strict=True):
            a.lerp_(b, 1 - decay)


def _balanced_accuracy(h_data: Tensor, h_noise: Tensor) -> float:
    return 0.5 * float((h_data > 0).float().mean() + (h_noise <= 0).float().mean())


def _refresh_cause(p: _Progress, pool_ess: float, batch: int, config: TrainConfig) -> str:
    """Why the noise must be refreshed before the next step; empty when it need not be."""
    if p.since >= config.interval:
        return "interval"
    if pool_ess < config.min_ess:
        return f"ESS/N {pool_ess:.2f}"
    recent = p.right[-max(1, -(-REFRESH_AFTER // batch)) :]
    if len(recent) * batch >= REFRESH_AFTER and sum(recent) / len(recent) > config.max_accuracy:
        return f"accuracy {sum(recent) / len(recent):.2f}"
    return ""


def _trouble(loss: float, norm: float, gaps: list[float], limit: float) -> str:
    """What is wrong with a step, in words; empty when nothing is."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient's norm is {norm}"
    mean = sum(gaps) / len(gaps)
    if not abs(mean) <= limit:
        return f"the network gap is {mean:.1f} nats, beyond {limit:g}: the chains lag behind the model"
    return ""


def _rewind(log_file: Path, step: int) -> list[dict[str, Any]]:
    """Rows of the metrics up to `step`; what lies beyond is dropped from the file."""
    rows = [row for row in read_jsonl(log_file) if row["step"] <= step]
    with atomic(log_file) as temporary:
        temporary.write_text("")
        for row in rows:
            append_jsonl(temporary, row)
    return rows


def _save_state(path: Path, state: _Run, config: TrainConfig, seed: int) -> None:
    with atomic(path) as temporary:
        torch.save({"config": asdict(config), "seed": seed, "state": state.capture()}, temporary)


def _load_state(path: Path, config: TrainConfig, seed: int) -> dict[str, Any]:
    """The captured state in `path`, checked against the settings of this call."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        before, now = saved["config"] | {"seed": saved["seed"]}, asdict(config) | {"seed": seed}
        state = saved["state"]
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: not a readable training state ({error}); use another --run") from error
    changed = [f"{k}: {before.get(k)} -> {now.get(k)}" for k in now if before.get(k) != now.get(k)]
    if changed:
        raise ValueError(
            f"{path.parent.parent} was started with other settings ({'; '.join(changed)}): give those again, or "
            f"another --run"
        )
    return state
