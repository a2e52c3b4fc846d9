r"""The path of annealed importance sampling: from a normalised base, beta = 0, to the model, 1.

    E_beta(x) = (1 - beta) (-log base(x)) + beta E(x)

with its temperatures, and a Metropolis-adjusted transition for each.

References:
    Annealed importance sampling (Neal, 2001)
    Optimal scaling of discrete approximations to Langevin diffusions
        (Roberts & Rosenthal, 1998)
"""

from __future__ import annotations

__all__ = ["Base", "AnnealedEnergy", "Remembered", "stand", "temperatures", "tuned_mala"]

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sance_audio.energy import Energy, rows_of, value_and_grad
from sance_audio.samplers import MALA
from sance_audio.samplers.interface import per_row

PILOT = 32
"""Chains that step sizes are tuned on, at most."""
FIRST_MOVES, MOVES = 60, 2
"""Of the pilot chains: at the first temperature, where nothing is known yet, and at the others."""
FIRST_GAIN, GAIN = 1.0, 0.3
"""By how much a step size follows the acceptance, in log."""


class Density(Protocol):
    """A normalised density."""

    def log_prob(self, x: Tensor) -> Tensor:
        """`(B, ...) -> (B,)`, in nats."""
        ...


class Base(Density, Protocol):
    """One that can be sampled exactly."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n exact draws, `(n, ...)`."""
        ...


class AnnealedEnergy:
    """`E_beta` of some rows, 0 < beta <= 1."""

    def __init__(self, energy: Energy, base: Density, beta: float):
        self.energy, self.base, self.beta = energy, base, beta

    def __call__(self, x: Tensor) -> Tensor:
        """`E_beta(x)`, `(B,)`."""
        if self.beta == 1:  # the base may have no density here
            return self.energy(x)
        return self.beta * self.energy(x) - (1 - self.beta) * self.base.log_prob(x)


class _Place(NamedTuple):
    """Where chains were, and what has been computed there."""

    x: Tensor
    """`(B, ...)`."""
    value: Tensor
    """`(B,)`."""
    grad: Tensor | None
    """`(B, ...)`, where it was asked for."""


class Remembered:
    """A function that knows its value and gradient where the chains stand, and where it was last
    evaluated: for a chain at either place nothing is computed again, whichever sampler and
    temperature ask, so that a step of `MALA` and a change of beta cost one gradient.

    Arguments:
        function: `(B, ...) -> (B,)`, of which row i depends on row i of x only.
    """

    def __init__(self, function: Energy):
        self.function = function
        self.here: _Place | None = None
        self.last: _Place | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """`(B,)`, with a gradient where x `(B, ...)` asks for one."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._at(x, False).value.clone()
        place = self._at(x.detach(), True)
        return _Known.apply(x, place.value, place.grad)

    log_prob = __call__

    def stand(self, x: Tensor) -> None:
        """The chains stand at x `(B, ...)`."""
        self.here = self._at(x, False)

    def _at(self, x: Tensor, slope: bool) -> _Place:
        place = self._recalled(x)
        if place is not None and not (slope and place.grad is None):
            return place
        found = value_and_grad(self.function, x) if slope else (self.function(x).detach(), None)
        new = _Place(x.clone(), *found)
        if self.here is not None and torch.equal(x, self.here.x):
            self.here = new
        else:
            self.last = new
        return new

    def _recalled(self, x: Tensor) -> _Place | None:
        """What is known at x, if it is of every row."""
        here, last = (p if p and p.x.shape == x.shape else None for p in (self.here, self.last))
        if here is None or last is None:
            place = here or last
            return place if place is not None and torch.equal(x, place.x) else None
        moved, stayed = ((x == p.x).flatten(1).all(1) for p in (last, here))
        if not bool((moved | stayed).all()):
            return None
        grad = None
        if here.grad is not None and last.grad is not None:
            grad = torch.where(per_row(stayed, x), here.grad, last.grad)
        return _Place(x.clone(), torch.where(stayed, here.value, last.value), grad)


def stand(x: Tensor, *ends: Remembered) -> Tensor:
    """x `(B, ...)`, which all of them are told that the chains stand at."""
    for end in ends:
        end.stand(x)
    return x


class _Known(torch.autograd.Function):
    """A value `(B,)` whose gradient with respect to x `(B, ...)` is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_value: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return per_row(of_value, grad) * grad, None, None


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
    e, b = rows_of(energy, slice(0, n)), rows_of(base, slice(0, n))
    x = b.sample(n, generator)
    ends = Remembered(e), Remembered(b.log_prob)
    stand(x, *ends)
    log_eps, sizes = -math.log(x[0].numel()) / 3, {}
    for i, beta in enumerate(betas[1:]):
        moves, gain = (FIRST_MOVES, FIRST_GAIN) if i == 0 else (MOVES, GAIN)
        path = AnnealedEnergy(*ends, beta)
        state = MALA(1.0).init(path, x)
        for _ in range(moves):
            state, info = MALA(math.exp(log_eps)).step(path, state, generator)
            stand(state.x, *ends)
            log_eps += gain * (float(info.accepted.mean()) - MALA.target)
        x, sizes[beta] = state.x, math.exp(log_eps)
    return lambda beta: MALA(sizes[min(sizes, key=lambda known: abs(known - beta))])
