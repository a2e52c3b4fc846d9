r"""Metropolis-adjusted samplers: their target is invariant at any step size.

    MALA    a step of `Langevin` as the proposal; one gradient a step
    HMC     L leapfrog steps of Hamiltonian dynamics as the proposal; L gradients a step

The gradient at the current state is cached in the state. `ReferenceLangevin(adjusted=True)` is
MALA on the other proposal, which is exact in the Gaussian part of the energy.

References:
    Exponential convergence of Langevin distributions and their discrete approximations
        (Roberts & Tweedie, 1996)
    MCMC using Hamiltonian dynamics (Neal, 2011)
"""

from __future__ import annotations

__all__ = ["MALA", "HMC"]

from torch import Tensor

from sance_audio.energy import Energy, value_and_grad
from sance_audio.samplers.interface import (
    Generators,
    Info,
    Noise,
    Preconditioned,
    Preconditioner,
    State,
    StepSize,
    dot,
    log_uniform,
    metropolis,
    per_row,
    randn,
)


class _Adjusted(Preconditioned):
    def random(self, x: Tensor, generator: Generators) -> Noise:
        return randn(x, generator), log_uniform(x, generator)


class MALA(_Adjusted):
    r"""Metropolis-adjusted Langevin: `x' = x - eps P g + sqrt(2 eps) P^(1/2) xi`, accepted with
    probability min(1, a), where with g, g' the gradients at x and x'

        log a = E - E' - eps |r|^2 / 4 + sqrt(eps / 2) r . xi,    r = P^(1/2) (g + g')

    which is `p(x') q(x | x') / (p(x) q(x' | x))` with the noise of the way back written in terms
    of that of the way there: no difference of large numbers, and no inverse of P.

    Arguments:
        step_size: eps: a number, one a chain, or a schedule.
        preconditioner: P, with `root`; the identity when None. It must not depend on x.
    """

    target = 0.574  # Roberts & Rosenthal, 1998

    def move(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        eps, (xi, log_u) = self.eps(noise), noise[:2]
        e = per_row(eps, xi)
        drift = self.root(self.root(state.grad))
        x = state.x - e * drift + (2 * e) ** 0.5 * self.root(xi)
        value, grad = value_and_grad(energy, x)
        r = self.root(state.grad + grad)
        log_ratio = state.value - value - eps * dot(r, r) / 4 + (eps / 2) ** 0.5 * dot(r, xi)
        return metropolis(state, State(x, value, grad), log_ratio, log_u)


class HMC(_Adjusted):
    r"""Hamiltonian Monte Carlo: L leapfrog steps from a fresh momentum, accepted by the change of
    the total energy `E(x) + |w|^2 / 2`.

        w <- w - eps/2 P^(1/2) g;   x <- x + eps P^(1/2) w;   w <- w - eps/2 P^(1/2) g

    w is the momentum in units in which the mass, P^-1, is the identity.

    Arguments:
        step_size: eps of a leapfrog step: a number, one a chain, or a schedule.
        n_leapfrog: L.
        preconditioner: P, with `root`; the identity when None. It must not depend on x.
    """

    heat = 0.5  # eps is a length here, the square of one elsewhere
    target = 0.8  # Betancourt, Byrne & Girolami, 2014: between .6 and .9

    def __init__(
        self, step_size: StepSize, n_leapfrog: int, preconditioner: Preconditioner | None = None
    ):
        super().__init__(step_size, preconditioner)
        if n_leapfrog < 1:
            raise ValueError(f"n_leapfrog must be at least 1, found {n_leapfrog}")
        self.n_leapfrog = n_leapfrog

    def move(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        eps, (w0, log_u) = per_row(self.eps(noise), state.x), noise[:2]
        x, value, grad, w = state.x, state.value, state.grad, w0
        w = w - eps / 2 * self.root(grad)
        for i in range(self.n_leapfrog):
            x = x + eps * self.root(w)
            value, grad = value_and_grad(energy, x)
            w = w - (eps if i + 1 < self.n_leapfrog else eps / 2) * self.root(grad)
        log_ratio = state.value - value + (dot(w0, w0) - dot(w, w)) / 2
        return metropolis(state, State(x, value, grad), log_ratio, log_u)
