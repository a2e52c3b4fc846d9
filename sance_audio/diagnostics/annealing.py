r"""How a model fares: log Z by annealed importance sampling.

Forwards from exact samples of the reference the estimate of Z is unbiased, so that of log Z tends
to lie below; backwards from samples of the model above, as far as these are samples. Where the two
agree, log Z is known. (The ledger of a training run, `ledger.py`, is another way to it.)

References:
    Annealed importance sampling (Neal, 2001)
    Accurate and conservative estimates of MRF log-likelihood using reverse annealing
        (Burda, Grosse & Salakhutdinov, 2015)
"""

from __future__ import annotations

__all__ = ["LogZ", "annealed_log_z"]

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sance_audio.chunks import chunk_size, run_chunks, slices
from sance_audio.divergences import effective_sample_size
from sance_audio.energy import GivenEnergy, ReferencedEnergy
from sance_audio.samplers import ReferenceLangevin, State


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
    from there. Where the two estimates agree, log Z is known; a likelihood is stated
    conservatively with the larger one.

    Arguments:
        energy: The model.
        shape: `(M, T)`.
        chains: Chains per component.
        steps: Temperatures each way, equally spaced, one step each.
        settle: Steps at full scale between the two.
        step_size: eps of the adjusted `ReferenceLangevin`.
        cap: Its cap.
        generator: Of everything random.
    """
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
