r"""Langevin samplers.

    Langevin             x' = x - eps P grad E(x) + sqrt(2 eps) P^(1/2) xi
    ReferenceLangevin    the same with P = min(C, cap) for E = -log N(mu, C) + F,
                         its Gaussian part integrated exactly

References:
    Exponential convergence of Langevin distributions and their discrete approximations
        (Roberts & Tweedie, 1996)
    MCMC methods for functions: modifying old algorithms to make them faster (Cotter et al., 2013)
"""

from __future__ import annotations

__all__ = ["Langevin", "ReferenceLangevin", "ReferencePreconditioner"]

from typing import Any

import torch
from torch import Tensor

from sance_audio.energy import Energy, rows_of, value_and_grad
from sance_audio.samplers.interface import (
    Generators,
    Info,
    Noise,
    Preconditioned,
    State,
    StepSize,
    StepSized,
    log_uniform,
    metropolis,
    per_row,
    randn,
)


class Langevin(Preconditioned):
    """Unadjusted Langevin at temperature 1: `x' = x - eps P grad E(x) + sqrt(2 eps) P^(1/2) xi`.

    On a Gaussian of variance v it is stationary at v / (1 - eps / (2 v)): biased upwards, more so
    for larger steps.

    Arguments:
        step_size: eps: a number, one a chain, or a schedule.
        preconditioner: P, with `apply` and `root`; the identity when None. It must not depend on
            x.
    """

    def propose(self, state: State, noise: Noise) -> Tensor:
        """x' `(B, ...)`."""
        eps, drift, xi = self.eps(noise), state.grad, noise[0]
        if self.preconditioner is not None:
            drift, xi = self.preconditioner.apply(drift), self.root(xi)
        if isinstance(eps, Tensor):
            eps = per_row(eps, xi)
            return state.x - eps * drift + (2 * eps) ** 0.5 * xi
        # two passes over x in place of four
        return torch.add(state.x, drift, alpha=-eps).add_(xi, alpha=(2 * eps) ** 0.5)

    def move(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        x = self.propose(state, noise)
        value, grad = value_and_grad(energy, x)
        return State(x, value, grad, state.step + 1), Info(torch.ones_like(value))


class ReferencePreconditioner:
    """`P = U diag(min(lambda, cap)) U^T + min(s, cap) (I - U U^T)` of a reference's covariance
    `C = U diag(lambda) U^T + s (I - U U^T)`: for `Langevin`, `MALA` and `HMC`.

    Arguments:
        reference: One Gaussian per chain: `GaussianReference.given(c)`.
        cap: Largest eigenvalue of P. All of C makes a stiff chain where a network is added.
    """

    def __init__(self, reference: Any, cap: float = 1.0):
        if not cap > 0:
            raise ValueError(f"cap must be positive, found {cap}")
        self.reference, self.cap = reference, cap

    def apply(self, v: Tensor) -> Tensor:
        return self._times(v, 1.0)

    def root(self, v: Tensor) -> Tensor:
        return self._times(v, 0.5)

    def _times(self, v: Tensor, power: float) -> Tensor:
        """P^power v, `(B, ...)`."""
        _same_type(v, self.reference)
        along = self.reference.eigenvalues.clamp_max(self.cap) ** power
        elsewhere = self.reference.remainder.clamp_max(self.cap) ** power
        flat = v.flatten(1).unsqueeze(1)
        return self.reference.spectral(flat, along.unsqueeze(1), elsewhere[:, None]).view_as(v)

    def rows(self, part: Any) -> ReferencePreconditioner:
        return ReferencePreconditioner(rows_of(self.reference, part), self.cap)


class ReferenceLangevin(StepSized):
    r"""Langevin for `E = -log N(x; mu, C) + F(x)` that is exact at any step size where F = 0.

    In the eigenbasis of C, direction i, with `rho_i = exp(-eps min(lambda_i, cap) / lambda_i)` and
    `g = grad F(x)`,

        x'_i = mu_i + rho_i (x_i - mu_i) - (1 - rho_i) lambda_i g_i + sqrt((1 - rho_i^2) lambda_i)
        xi_i

    the Ornstein-Uhlenbeck process of the reference, solved exactly, with the drift of F held
    constant over a step. The cap keeps that drift from being amplified by the large eigenvalues of
    C.

    Arguments:
        reference: The Gaussians: one per chain (`GaussianReference.given(c)`), or a
            `GaussianReference` of one component.
        step_size: eps: a number, one a chain, or a schedule.
        cap: Largest eigenvalue that preconditions the drift.
        adjusted: Accept or reject each proposal (Metropolis), which makes the target invariant:
            MALA on this proposal. A step computes one gradient all the same.

    The energy given to `init` and `step` is the whole E. Where it has a method `learnt` (as
    `GivenEnergy` has), that is F, and the Gaussian part is not computed; for any other callable,
    grad F is grad E less the reference's own.
    """

    heat = 0.0  # the reference stays as it is

    def __init__(
        self, reference: Any, step_size: StepSize, cap: float = 1.0, *, adjusted: bool = False
    ):
        super().__init__(step_size)
        if not cap > 0:
            raise ValueError(f"cap must be positive, found {cap}")
        if not hasattr(reference, "spectral"):
            if reference.n_components != 1:
                raise ValueError(
                    f"the reference has {reference.n_components} components: pass "
                    f"reference.given(c), one per chain"
                )
            reference = reference.given(torch.zeros(1, dtype=torch.long))
        self.reference, self.cap, self.adjusted = reference, cap, adjusted
        self.target = 0.574 if adjusted else 1.0
        self._lambda = torch.cat([reference.eigenvalues, reference.remainder[:, None]], 1)
        self._rate = self._lambda.clamp_max(cap) / self._lambda

    def init(self, energy: Energy, x: Tensor) -> State:
        rows, cells = self.reference.mean.shape
        if x.flatten(1).shape[1] != cells or rows not in (1, len(x)):
            raise ValueError(
                f"x is {tuple(x.shape)}, the reference of {rows} rows of {cells} cells: give one "
                f"Gaussian per chain, of as many cells"
            )
        _same_type(x, self.reference)
        return State(x, *value_and_grad(self.part(energy), x))

    def part(self, energy: Any) -> Any:
        """F: the energy less that of the reference."""
        if hasattr(energy, "learnt"):
            return energy.learnt
        return lambda x: energy(x) + self.reference.log_prob(x)

    def random(self, x: Tensor, generator: Generators) -> Noise:
        xi = randn(x.flatten(1), generator)
        return (xi, log_uniform(x, generator)) if self.adjusted else (xi,)

    def propose(self, state: State, noise: Noise) -> Tensor:
        """x' `(B, ...)`."""
        lam, rho = self._lambda, self._rho(noise)
        factors = torch.stack([rho, -(1 - rho) * lam, ((1 - rho**2) * lam).sqrt()], 1)
        u = state.x.flatten(1) - self.reference.mean
        vectors = torch.stack([u, state.grad.flatten(1), noise[0]], 1)
        moved = self.reference.spectral(vectors, factors[..., :-1], factors[..., -1])
        return (self.reference.mean + moved).view_as(state.x)

    def move(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        x = self.propose(state, noise)
        proposal = State(x, *value_and_grad(self.part(energy), x), state.step + 1)
        if not self.adjusted:
            return proposal, Info(torch.ones_like(proposal.value))
        log_ratio = self._log_ratio(state, proposal, self._rho(noise))
        return metropolis(state, proposal, log_ratio, noise[1])

    def _rho(self, noise: Noise) -> Tensor:
        """`(B, r + 1)`: along each direction of the basis, and elsewhere."""
        eps = self.eps(noise)
        eps = eps[:, None] if isinstance(eps, Tensor) and eps.ndim else eps
        return torch.exp(-eps * self._rate)

    def _log_ratio(self, state: State, proposal: State, rho: Tensor) -> Tensor:
        """log of `p(x') q(x | x') / (p(x) q(x' | x))`, `(B,)`.

        With u = x - mu, primes at the proposal, and all that cancels left out:

            F - F' - sum_i [(u_i - rho_i u'_i) g'_i - (u'_i - rho_i u_i) g_i] / (1 + rho_i)
                   - sum_i (1 - rho_i) lambda_i (g'_i^2 - g_i^2) / (2 (1 + rho_i))

        Every sum is over the eigenbasis: a sum over its known directions, of differences to the
        factor elsewhere, plus that factor times a plain inner product.
        """
        mean, lam = self.reference.mean, self._lambda
        flat = (state.x, proposal.x, state.grad, proposal.grad)
        u, v, g, k = (a.flatten(1) for a in flat)
        vectors = torch.stack([u - mean, v - mean, g, k], 1)
        along = (vectors @ self.reference.basis.expand(len(u), -1, -1)).unbind(1)

        def form(a: int, b: int, factor: Tensor) -> Tensor:
            elsewhere = factor[:, -1]
            inside = ((factor[:, :-1] - elsewhere[:, None]) * along[a] * along[b]).sum(1)
            return inside + elsewhere * (vectors[:, a] * vectors[:, b]).sum(1)

        by_one, by_rho = 1 / (1 + rho), rho / (1 + rho)
        half = (1 - rho) * lam / (2 * (1 + rho))
        linear = form(0, 3, by_one) - form(1, 3, by_rho) - form(1, 2, by_one) + form(0, 2, by_rho)
        quadratic = form(3, 3, half) - form(2, 2, half)
        return state.value - proposal.value - linear - quadratic

    def rows(self, part: Any) -> ReferenceLangevin:
        own = super().rows(part)
        return ReferenceLangevin(
            rows_of(self.reference, part), own.step_size, self.cap, adjusted=self.adjusted
        )


def _same_type(x: Tensor, reference: Any) -> None:
    if x.dtype != reference.mean.dtype:
        raise ValueError(
            f"x is {x.dtype}, the reference {reference.mean.dtype}: make them the same"
        )
