r"""How a model fares: log Z by annealed importance sampling.

Forwards from exact samples of the reference the estimate of Z is unbiased, so that of log Z tends
to lie below; backwards from samples of the model above, as far as these are samples. Where the two
agree, log Z is known, if the chains have visited every mode. (The ledger of a training run,
`ledger.py`, is another way to it.)

    ais               of any energy, from any normalised base, with the bounds that hold
    annealed_log_z    of a `ReferencedEnergy`, each component by itself, from both ends

Along `beta_0 = 0 < ... < beta_n = 1`, x_0 drawn from the base and x_i moved by a transition that
leaves `exp(-E_beta_i)` invariant,

    log w = -sum_i (beta_i - beta_i-1) [E(x_i-1) + log base(x_i-1)],    E[w] = Z

References:
    Annealed importance sampling (Neal, 2001)
    Accurate and conservative estimates of MRF log-likelihood using reverse annealing
        (Burda, Grosse & Salakhutdinov, 2015)
"""

from __future__ import annotations

__all__ = ["LogZ", "ais", "annealed_log_z"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sance_audio.chunks import chunk_size, run_chunks, slices
from sance_audio.diagnostics.bounds import AnnealedLogZ
from sance_audio.diagnostics.path import (
    AnnealedEnergy,
    Base,
    Density,
    Remembered,
    stand,
    temperatures,
    tuned_mala,
)
from sance_audio.divergences import effective_sample_size
from sance_audio.energy import Energy, GivenEnergy, ReferencedEnergy, rows_of
from sance_audio.samplers import ReferenceLangevin, Sampler, State


@dataclass(frozen=True)
class LogZ:
    """log Z_theta - log Z_0 per component, in nats, from both ends."""

    forward: Tensor
    """`(C,)`: exp of it is unbiased for Z, so it tends to lie below log Z."""
    reverse: Tensor
    """`(C,)`: lies above log Z as far as the chains it starts from are samples of the model."""
    standard_error: Tensor
    """`(C,)`, of `forward`."""
    ess: Tensor
    """`(C,)`, effective sample size of the forward weights over their number."""
    accepted: float
    """Mean acceptance of the Metropolis steps."""


@torch.no_grad()
def annealed_log_z(
    energy: ReferencedEnergy,
    shape: tuple[int, int],
    *,
    chains: int = 8,
    steps: int = 100,
    settle: int = 100,
    step_size: float = 0.1,
    cap: float = 1.0,
    generator: torch.Generator,
) -> LogZ:
    """log Z_theta / Z_0 of each component by annealing F from 0 to 1 and back, with
    Metropolis-adjusted steps.

    Forwards from exact samples of the reference, then `settle` steps on the model, then backwards
    from there. Where the two estimates agree, log Z is known, unless all chains missed the same
    modes (`bounds.py`); a likelihood is stated conservatively with the larger one.

    Arguments:
        energy: The model.
        shape: `(M, T)`.
        chains: Chains per component.
        steps: Temperatures each way, equally spaced, one step each.
        settle: Steps at full scale between the two; with `steps = 1` at least one, or nothing
            would ever move.
        step_size: eps of the adjusted `ReferenceLangevin`.
        cap: Its cap.
        generator: Of everything random.
    """
    if steps < 1 or settle < 0 or steps + settle < 2:
        raise ValueError(
            f"steps must be at least 1, settle at least 0, and one of them more, found steps="
            f"{steps}, settle={settle}: no chain would move"
        )
    base: Any = energy.base
    count, device = base.n_components, base.mean.device
    size = chunk_size(device, math.prod(shape))
    c = torch.arange(count, device=device).repeat(chains)
    x0 = base.sample(c, generator).view(-1, 1, *shape)
    parts = slices(len(c), size)
    seeds = torch.randint(
        2**62, (len(parts),), generator=generator, device=generator.device
    ).tolist()
    rising = torch.linspace(0, 1, steps + 1).tolist()

    def anneal(part: slice) -> tuple[Tensor, Tensor, Tensor]:
        own = torch.Generator(device).manual_seed(seeds[part.start // size])
        sampler = ReferenceLangevin(base.given(c[part]), step_size, cap, adjusted=True)
        state = sampler.init(
            GivenEnergy(energy, c[part]), x0[part]
        )  # F and its gradient, at full scale
        accepted = []

        def move(state: State, scale: float) -> State:
            """One step on the reference plus scale F, 0 < scale; F stays cached at full scale."""
            scaled = state._replace(value=scale * state.value, grad=scale * state.grad)
            moved, info = sampler.step(GivenEnergy(energy, c[part], scale), scaled, own)
            accepted.append(info.accepted.mean())
            return moved._replace(value=moved.value / scale, grad=moved.grad / scale)

        def walk(state: State, schedule: list[float]) -> tuple[State, Tensor]:
            """Along the temperatures, a step after each change but the last; and the log weights
            gathered.
            """
            log_weight = torch.zeros(len(c[part]), dtype=torch.float64, device=device)
            for i, (now, then) in enumerate(pairwise(schedule), 2):
                log_weight -= (then - now) * state.value
                state = move(state, then) if i < len(schedule) else state
            return state, log_weight

        state, up = walk(state, rising)
        for _ in range(settle):
            state = move(state, 1.0)
        _, down = walk(state, rising[::-1])
        return up, down, torch.stack(accepted).mean()

    results = run_chunks(anneal, parts, parallel=device.type == "cpu")
    up, down = (torch.cat([r[i] for r in results]).view(chains, count) for i in (0, 1))
    ess = effective_sample_size(up.T)
    return LogZ(
        (up.logsumexp(0) - math.log(chains)).float(),
        (math.log(chains) - down.logsumexp(0)).float(),
        ((chains / ess - 1) / chains).clamp_min(0).sqrt().float(),
        (ess / chains).float(),
        float(torch.stack([r[2] for r in results]).mean()),
    )


@torch.no_grad()
def ais(
    energy: Energy,
    base: Base,
    *,
    chains: int = 256,
    steps: int = 200,
    schedule: Callable[[float], float] | None = None,
    sampler: Callable[[float], Sampler] | None = None,
    generator: torch.Generator,
    exact_samples: Tensor | None = None,
    chunk: int | None = None,
) -> AnnealedLogZ:
    """log Z = log int exp(-E) by annealing from a normalised density.

    What the result may be trusted with stands in `AnnealedLogZ`: without exact samples of the
    model it is a lower bound, however well the chains agree.

    Arguments:
        energy: E, `(B, ...) -> (B,)`.
        base: Normalised, with `log_prob(x) -> (B,)` and `sample(n, generator) -> (n, ...)`; it
            should cover the model.
        chains: Their number, at least 2.
        steps: Changes of beta; a step of the sampler after each but the last.
        schedule: beta of the fraction of steps taken; equal steps when None.
        sampler: From beta to a sampler that leaves `exp(-E_beta)` invariant: one that accepts or
            rejects, with a step size that does not depend on these chains. None: `MALA`, tuned on
            pilot chains of its own (`tuned_mala`).
        generator: Of everything random, on the device of the chains.
        exact_samples: `(n, ...)`, for an upper bound. Each must be an exact draw of the model:
            simulated from it (data of a model that the data were drawn from), not found by chains,
            which may all miss the same modes. That is taken on trust, and cannot be checked.
        chunk: Chains worked on at once; as suits the device when None. Each chunk has a generator
            of its own, so that the result depends on it.
    """
    if chains < 2:
        raise ValueError(f"chains must be at least 2, found {chains}: one has no standard error")
    betas = temperatures(steps, schedule)
    x0 = base.sample(chains, generator)
    _check_start(energy, base, x0, exact_samples)
    sampler = sampler or tuned_mala(energy, base, betas, chains, generator)
    size = chunk or chunk_size(x0.device, x0[0].numel())
    up, accepted = _annealed(energy, base, sampler, betas, x0, generator, size)
    down = None
    if exact_samples is not None:
        down, _ = _annealed(energy, base, sampler, betas[::-1], exact_samples, generator, size)
    return AnnealedLogZ(up, accepted, down)


def _annealed(
    energy: Energy,
    base: Base,
    sampler: Callable[[float], Sampler],
    betas: Sequence[float],
    x0: Tensor,
    generator: torch.Generator,
    size: int,
) -> tuple[Tensor, float]:
    """Log weights `(n,)` of chains that start at x0 `(n, ...)` and go along `betas`, up or down;
    and their mean acceptance.
    """
    parts = slices(len(x0), size)
    device = generator.device
    seeds = torch.randint(2**62, (len(parts),), generator=generator, device=device).tolist()

    def one(part: slice) -> tuple[Tensor, Tensor]:
        own = torch.Generator(device).manual_seed(seeds[part.start // size])
        e, b = Remembered(rows_of(energy, part)), Remembered(rows_of(base, part).log_prob)
        x = stand(x0[part], e, b)
        log_weight, accepted = _work(e, b, x, betas[1] - betas[0]), []
        for now, then in pairwise(betas[1:]):
            mover, path = rows_of(sampler(now), part), AnnealedEnergy(e, b, now)
            state, info = mover.step(path, mover.init(path, x), own)
            x = stand(state.x, e, b)
            log_weight = log_weight + _work(e, b, x, then - now)
            accepted.append(info.accepted.mean())
        return log_weight, torch.stack(accepted).mean() if accepted else x0.new_tensor(math.nan)

    results = run_chunks(one, parts, parallel=x0.device.type == "cpu")
    log_weight = torch.cat([r[0] for r in results])
    _check_weights(log_weight)
    sizes = torch.tensor([p.stop - p.start for p in parts], dtype=torch.float64)
    means = torch.stack([r[1] for r in results]).double().cpu()
    return log_weight, float((means * sizes).sum() / sizes.sum())


def _work(energy: Energy, base: Density, x: Tensor, change: float) -> Tensor:
    """What a change of beta adds to the log weights of chains at x `(B, ...)`: `(B,)`."""
    return -change * (energy(x).double() + base.log_prob(x).double())


def _check_start(energy: Energy, base: Base, x0: Tensor, exact_samples: Tensor | None) -> None:
    first = slice(0, min(2, len(x0)))
    for name, part in (("energy", energy), ("base.log_prob", base)):
        values = rows_of(part, first)
        found = (values if name == "energy" else values.log_prob)(x0[first])
        if found.shape != x0[first].shape[:1]:
            raise ValueError(
                f"{name} must give one number a row, {tuple(x0[first].shape[:1])}, found "
                f"{tuple(found.shape)}: sum over all dimensions but the first"
            )
    if exact_samples is None:
        return
    if exact_samples.shape[1:] != x0.shape[1:] or len(exact_samples) < 2:
        raise ValueError(
            f"exact_samples must be (n, *{tuple(x0.shape[1:])}) with n >= 2, found "
            f"{tuple(exact_samples.shape)}: draws of the same shape as the base's"
        )


def _check_weights(log_weight: Tensor) -> None:
    bad = int((log_weight.isnan() | (log_weight == math.inf)).sum())
    if bad:
        raise ValueError(
            f"energy or base.log_prob gave NaN or minus infinity: found in {bad} of "
            f"{len(log_weight)} chains; a weight takes energies above minus infinity"
        )
