r"""Energies made of energies.

    Sum             sum_k w_k E_k(x)                    products of experts, tempering
    Mixture         -log sum_k w_k exp(-E_k(x))         mixtures; E_k each with its log Z
    Marginal        -log p(x | y) over components       a class of a `ReferencedEnergy`
    Guided          E_0(x) + w (E_1(x) - E_0(x))        guidance from E_0 towards E_1
    FixedRegion     z -> E(x), x = z in the free cells, known elsewhere    inpainting, bandwidth
    Observed        E(x) + |y - A x|^2 / (2 s^2)        denoising, inverse problems
    LowPrecision    E under autocast

All are callables `(B, ...) -> (B,)`, in nats, hold what they have per row (`rows`), and can be
put into each other. What they give is an energy like any other: each sampler runs on each.

References:
    Training products of experts by minimizing contrastive divergence (Hinton, 2002)
    Compositional visual generation with energy based models (Du, Li & Mordatch, 2020)
    Classifier-free diffusion guidance (Ho & Salimans, 2022)
"""

from __future__ import annotations

__all__ = ["Sum", "Mixture", "Marginal", "Guided", "FixedRegion", "Observed", "LowPrecision"]

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sance_audio.energy.interface import Energy, rows_of


def _per_row(v: Any, part: Any) -> Any:
    """v `(B, ...)` narrowed; a number, `()`, or one row for all as it is."""
    if isinstance(v, Tensor) and v.ndim and len(v) > 1:
        return v[part]
    return v


class Sum:
    """`sum_k w_k E_k(x)`: the product of experts `prod_k p_k(x)^w_k`; of one, its tempering.

    Arguments:
        energies: E_k, at least one.
        weights: w_k: numbers, or one a row `(B,)`; ones when None.
    """

    def __init__(
        self, energies: Sequence[Energy], weights: Sequence[float | Tensor] | None = None
    ):
        self.energies = tuple(energies)
        self.weights = (1.0,) * len(self.energies) if weights is None else tuple(weights)
        _same_number(self.energies, self.weights)

    def __call__(self, x: Tensor) -> Tensor:
        total: Any = 0
        for energy, weight in zip(self.energies, self.weights, strict=True):
            if not (isinstance(weight, (int, float)) and weight == 0):  # 0 of infinity is 0
                total = total + weight * energy(x)
        return total if isinstance(total, Tensor) else 0 * self.energies[0](x)

    def rows(self, part: Any) -> Sum:
        weights = [_per_row(w, part) for w in self.weights]
        return Sum([rows_of(e, part) for e in self.energies], weights)


class Mixture:
    """`-log sum_k w_k exp(-E_k(x))`.

    The shares in the mixture are `w_k Z_k`: for shares w_k each energy must be normalised, as
    `Marginal` is, or have its log Z in `log_z`.

    Arguments:
        energies: E_k, at least one.
        weights: w_k > 0: numbers; equal, summing to 1, when None.
        log_z: log Z_k, in nats; zeros when None.
    """

    def __init__(
        self,
        energies: Sequence[Energy],
        weights: Sequence[float] | None = None,
        log_z: Sequence[float] | None = None,
    ):
        self.energies, count = tuple(energies), len(energies)
        self.weights = (1 / max(1, count),) * count if weights is None else tuple(weights)
        self.log_z = (0.0,) * count if log_z is None else tuple(log_z)
        _same_number(self.energies, self.weights)
        _same_number(self.energies, self.log_z)
        if min(self.weights) <= 0:
            raise ValueError(f"weights of a mixture must be positive, found {self.weights}")

    def __call__(self, x: Tensor) -> Tensor:
        parts = zip(self.energies, self.weights, self.log_z, strict=True)
        return -torch.stack([math.log(w) - z - e(x) for e, w, z in parts], 1).logsumexp(1)

    def rows(self, part: Any) -> Mixture:
        return Mixture([rows_of(e, part) for e in self.energies], self.weights, self.log_z)


class Marginal:
    """`-log sum_c w_c exp(-E(x | c)) / Z_c`: the normalised energy of a mixture of components, as
    of one class.

    Arguments:
        energy: A `ReferencedEnergy`, or what has its `marginal`.
        log_weight: `(C,)`, log w_c, as `reference.log_weight(label)` gives them.
    """

    def __init__(self, energy: Any, log_weight: Tensor):
        self.energy, self.log_weight = energy, log_weight

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy.marginal(x, self.log_weight)


class Guided:
    """`E_0(x) + w (E_1(x) - E_0(x))`: E_0 at w = 0, E_1 at w = 1, beyond it for larger w.

    With E_1 the energy of a class and E_0 that of all, a product of p(x) and p(y | x)^w.

    Arguments:
        conditional: E_1.
        unconditional: E_0.
        weight: w: a number, or one a row `(B,)`.
    """

    def __init__(self, conditional: Energy, unconditional: Energy, weight: float | Tensor):
        self.conditional, self.unconditional, self.weight = conditional, unconditional, weight

    def __call__(self, x: Tensor) -> Tensor:
        base, goal = self.unconditional(x), self.conditional(x)
        guided = base + self.weight * (goal - base)
        return guided.masked_fill((base == torch.inf) | (goal == torch.inf), torch.inf)

    def rows(self, part: Any) -> Guided:
        conditional, base = rows_of(self.conditional, part), rows_of(self.unconditional, part)
        return Guided(conditional, base, _per_row(self.weight, part))


class FixedRegion:
    """The energy of the free cells of x, the others being known: inpainting, where a stretch of
    frames is free, bandwidth extension, where the upper bands are.

    Chains run over the free cells alone, z `(B, U)`.

    Arguments:
        energy: E.
        known: `(B, ...)`, or `(1, ...)` for all rows; values in free cells do not matter.
        free: Which cells are free, booleans of the shape of one row.
    """

    def __init__(self, energy: Energy, known: Tensor, free: Tensor):
        if free.dtype != torch.bool or free.shape != known.shape[1:]:
            raise ValueError(
                f"free must be booleans {tuple(known.shape[1:])}, one a cell, found {free.dtype} "
                f"{tuple(free.shape)}"
            )
        self.energy, self.known, self.free = energy, known, free
        self.index = free.flatten().nonzero().flatten()
        if not len(self.index):
            raise ValueError("no cell is free: there is nothing to sample")

    def narrow(self, x: Tensor) -> Tensor:
        """The free cells `(B, U)` of x `(B, ...)`."""
        return x.flatten(1)[:, self.index]

    def complete(self, z: Tensor) -> Tensor:
        """x `(B, ...)` with z `(B, U)` in its free cells, known elsewhere."""
        known = self.known.flatten(1).expand(len(z), -1)
        return known.index_copy(1, self.index, z).view(-1, *self.known.shape[1:])

    def __call__(self, z: Tensor) -> Tensor:
        return self.energy(self.complete(z))

    def rows(self, part: Any) -> FixedRegion:
        own = copy.copy(self)  # what is free stays, and is not looked at again
        own.energy, own.known = rows_of(self.energy, part), _per_row(self.known, part)
        return own


class Observed:
    """`E(x) + |y - A x|^2 / (2 s^2)`: the posterior of x given y = A x + noise of deviation s.

    With A the identity, denoising.

    Arguments:
        energy: E, of the prior.
        y: What was observed, `(B, ...)`, or `(1, ...)` for all rows.
        deviation: s: a number, or of the shape of a row, infinite where nothing was observed.
        operator: A, a differentiable function of x `(B, ...)` to rows like those of y; the
            identity when None.

    Raises:
        ValueError: where it is called, y and what the operator gives are of different shapes.
    """

    def __init__(
        self,
        energy: Energy,
        y: Tensor,
        deviation: float | Tensor,
        operator: Callable[[Tensor], Tensor] | None = None,
    ):
        if not bool((torch.as_tensor(deviation) > 0).all()):
            raise ValueError(f"deviation must be positive, found {deviation}")
        self.energy, self.y, self.deviation, self.operator = energy, y, deviation, operator

    def __call__(self, x: Tensor) -> Tensor:
        seen = x if self.operator is None else self.operator(x)
        if seen.ndim < 2 or seen.shape[1:] != self.y.shape[1:] or len(self.y) not in (1, len(x)):
            raise ValueError(
                f"y must be (1, ...) or (B, ...), shaped like what the operator gives, found y "
                f"{tuple(self.y.shape)} for {tuple(seen.shape)} of x {tuple(x.shape)}"
            )
        misfit = ((self.y - seen) / self.deviation).flatten(1)
        return self.energy(x) + 0.5 * misfit.square().sum(1)

    def rows(self, part: Any) -> Observed:
        own = copy.copy(self)
        own.energy, own.y = rows_of(self.energy, part), _per_row(self.y, part)
        own.operator = rows_of(self.operator, part)
        return own


class LowPrecision:
    """E under autocast, its value in the type of x: faster where the device is, and biased.

    Arguments:
        energy: E.
        dtype: torch.bfloat16.
    """

    def __init__(self, energy: Any, dtype: torch.dtype = torch.bfloat16):
        self.energy, self.dtype = energy, dtype
        if hasattr(energy, "learnt"):
            self.learnt = self._learnt

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return self.energy(x).to(x.dtype)

    def _learnt(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return self.energy.learnt(x).to(x.dtype)

    def rows(self, part: Any) -> LowPrecision:
        return LowPrecision(rows_of(self.energy, part), self.dtype)


def _same_number(energies: Sequence[Any], weights: Sequence[Any]) -> None:
    if not energies or len(energies) != len(weights):
        raise ValueError(f"{len(energies)} energies, {len(weights)} numbers: one each, at least 1")
