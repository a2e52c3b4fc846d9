r"""The path of annealed importance sampling: from a normalised base, beta = 0, to the model, 1.

    E_beta(x) = (1 - beta) (-log base(x)) + beta E(x)

with its temperatures, and a Metropolis-adjusted transition for each.

References:
    Annealed importance sampling (Neal, 2001)
    Optimal scaling of discrete approximations to Langevin diffusions
        (Roberts & Rosenthal, 1998)
"""

from __future__ import annotations

__all__ = ["Base", "AnnealedEnergy", "temperatures", "tuned_mala"]

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from sance_audio.energy import Energy, rows_of
from sance_audio.samplers import MALA

PILOT = 32
"""Chains that step sizes are tuned on, at most."""
FIRST_MOVES, MOVES = 60, 2
"""Of the pilot chains: at the first temperature, where nothing is known yet, and at the others."""
FIRST_GAIN, GAIN = 1.0, 0.3
"""By how much a step size follows the acceptance, in log."""


class Base(Protocol):
    """A normalised density that can be sampled exactly."""

    def log_prob(self, x: Tensor) -> Tensor:
        """`(B, ...) -> (B,)`, in nats."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n exact draws, `(n, ...)`."""
        ...


class AnnealedEnergy:
    """`E_beta` of some rows, 0 < beta <= 1."""

    def __init__(self, energy: Energy, base: Base, beta: float):
        self.energy, self.base, self.beta = energy, base, beta

    def __call__(self, x: Tensor) -> Tensor:
        """`E_beta(x)`, `(B,)`."""
        if self.beta == 1:  # the base may have no density here
            return self.energy(x)
        return self.beta * self.energy(x) - (1 - self.beta) * self.base.log_prob(x)


def temperatures(steps: int, schedule: Callable[[float], float] | None) -> list[float]:
    """The `steps + 1` values of beta, from 0 to 1.

    Arguments:
        steps: How many changes of beta.
        schedule: Increasing, from 0 at 0 to 1 at 1; the identity when None.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    betas = t if schedule is None else [float(schedule(s)) for s in t]
    rising = all(a < b for a, b in pairwise(betas))
    if not (abs(betas[0]) < 1e-9 and abs(betas[-1] - 1) < 1e-9 and rising):
        raise ValueError(
            f"schedule must increase from 0 at 0 to 1 at 1, found values from {betas[0]:.4g} to "
            f"{betas[-1]:.4g}{'' if rising else ' that do not increase'}: t ** 2 is one"
        )
    return [0.0, *betas[1:-1], 1.0]


@torch.no_grad()
def tuned_mala(
    energy: Energy, base: Base, betas: Sequence[float], chains: int, generator: torch.Generator
) -> Callable[[float], MALA]:
    """A `MALA` for each of the temperatures (of others, that of the nearest), which `ais` is given
    as `sampler`.

    Step sizes follow the acceptance of pilot chains on the same path, up or down to 57 %. Since
    these are other chains than those that are weighted, the weights stay unbiased.

    Arguments:
        energy, base: The ends of the path.
        betas: Its temperatures, from 0 to 1.
        chains: Of which the first `PILOT` rows are taken.
        generator: Of the pilot.
    """
    n = min(chains, PILOT)
    energy, base = rows_of(energy, slice(0, n)), rows_of(base, slice(0, n))
    x = base.sample(n, generator)
    log_eps, sizes = -math.log(x[0].numel()) / 3, {}
    for i, beta in enumerate(betas[1:]):
        moves, gain = (FIRST_MOVES, FIRST_GAIN) if i == 0 else (MOVES, GAIN)
        path = AnnealedEnergy(energy, base, beta)
        state = MALA(1.0).init(path, x)
        for _ in range(moves):
            state, info = MALA(math.exp(log_eps)).step(path, state, generator)
            log_eps += gain * (float(info.accepted.mean()) - MALA.target)
        x, sizes[beta] = state.x, math.exp(log_eps)
    return lambda beta: MALA(sizes[min(sizes, key=lambda known: abs(known - beta))])
