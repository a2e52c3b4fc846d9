r"""Markov chain samplers of `p(x) = exp(-E(x)) / Z`, and the engine that runs them.

A sampler is a plain object:

    init(energy, x) -> State
    step(energy, state, generator) -> (State, Info)

The state holds what the next step would otherwise compute again. `energy` is any callable
`(B, ...) -> (B,)`; a generator is one `torch.Generator`, or a sequence of B of them, one per
chain, whose chains then do not depend on their neighbours.

    Langevin             x' = x - eps P grad E(x) + sqrt(2 eps) P^(1/2) xi
    ReferenceLangevin    the same with P = min(C, cap) for E = -log N(mu, C) + F,
                         its Gaussian part integrated exactly

References:
    Exponential convergence of Langevin distributions and their discrete approximations
        (Roberts & Tweedie, 1996)
    MCMC methods for functions: modifying old algorithms to make them faster (Cotter et al., 2013)
"""

from __future__ import annotations

__all__ = ["State", "Info", "Langevin", "ReferenceLangevin", "sample", "randn", "clip_seeds"]

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sance_audio.chunks import run_chunks, slices
from sance_audio.energy import Energy, rows_of, value_and_grad

Generators = torch.Generator | Sequence[torch.Generator]


class State(NamedTuple):
    """Where the chains are, and what has been computed there."""

    x: Tensor
    """`(B, ...)`."""
    value: Tensor
    """`(B,)`: the energy, or the part of it that the sampler differentiates."""
    grad: Tensor
    """`(B, ...)`: gradient of `value`."""


class Info(NamedTuple):
    """What happened in a step."""

    accepted: Tensor
    """`(B,)`, probability with which the proposal was accepted; ones for unadjusted samplers."""


class Sampler(Protocol):
    def init(self, energy: Any, x: Tensor) -> State: ...

    def step(self, energy: Any, state: State, generator: Generators) -> tuple[State, Info]: ...


class Preconditioner(Protocol):
    """A fixed symmetric positive matrix P per chain."""

    def apply(self, v: Tensor) -> Tensor:
        """P v, `(B, ...)`."""
        ...

    def root(self, v: Tensor) -> Tensor:
        """P^(1/2) v, `(B, ...)`."""
        ...


class Langevin:
    """Unadjusted Langevin at temperature 1: `x' = x - eps P grad E(x) + sqrt(2 eps) P^(1/2) xi`.

    On a Gaussian of variance v it is stationary at v / (1 - eps / (2 v)): biased upwards, more so
    for larger steps.

    Arguments:
        step_size: eps.
        preconditioner: P, with `apply` and `root`; the identity when None. It must not depend on
            x.
    """

    def __init__(self, step_size: float, preconditioner: Preconditioner | None = None):
        _positive("step_size", step_size)
        self.step_size, self.preconditioner = step_size, preconditioner

    def init(self, energy: Energy, x: Tensor) -> State:
        return State(x, *value_and_grad(energy, x))

    def step(self, energy: Energy, state: State, generator: Generators) -> tuple[State, Info]:
        drift, xi = state.grad, randn(state.x, generator)
        if self.preconditioner is not None:
            drift, xi = self.preconditioner.apply(drift), self.preconditioner.root(xi)
        x = state.x - self.step_size * drift + (2 * self.step_size) ** 0.5 * xi
        return self.init(energy, x), Info(torch.ones_like(state.value))

    def rows(self, part: slice) -> Langevin:
        return Langevin(self.step_size, rows_of(self.preconditioner, part))


class ReferenceLangevin:
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
        step_size: eps.
        cap: Largest eigenvalue that preconditions the drift.
        adjusted: Accept or reject each proposal (Metropolis), which makes the target invariant.

    The energy given to `init` and `step` is the whole E. Where it has a method `learnt` (as
    `GivenEnergy` has), that is F, and the Gaussian part is not computed; for any other callable,
    grad F is grad E less the reference's own.
    """

    def __init__(
        self, reference: Any, step_size: float, cap: float = 1.0, *, adjusted: bool = False
    ):
        _positive("step_size", step_size)
        _positive("cap", cap)
        if not hasattr(reference, "spectral"):
            if reference.n_components != 1:
                raise ValueError(
                    f"the reference has {reference.n_components} components: pass "
                    f"reference.given(c), one per chain"
                )
            reference = reference.given(torch.zeros(1, dtype=torch.long))
        self.reference, self.step_size, self.cap, self.adjusted = (
            reference,
            step_size,
            cap,
            adjusted,
        )
        self._lambda = torch.cat([reference.eigenvalues, reference.remainder[:, None]], 1)
        self._rho = torch.exp(-step_size * self._lambda.clamp_max(cap) / self._lambda)

    def init(self, energy: Energy, x: Tensor) -> State:
        learnt = getattr(energy, "learnt", None)
        if learnt is None:

            def learnt(x: Tensor) -> Tensor:
                return energy(x) + self.reference.log_prob(x)

        return State(x, *value_and_grad(learnt, x))

    def step(self, energy: Energy, state: State, generator: Generators) -> tuple[State, Info]:
        lam, rho = self._lambda, self._rho
        factors = torch.stack([rho, -(1 - rho) * lam, ((1 - rho**2) * lam).sqrt()], 1)
        u = state.x.flatten(1) - self.reference.mean
        vectors = torch.stack([u, state.grad.flatten(1), randn(u, generator)], 1)
        moved = self.reference.spectral(vectors, factors[..., :-1], factors[..., -1])
        x = self.reference.mean + moved
        proposal = self.init(energy, x.view_as(state.x))
        if not self.adjusted:
            return proposal, Info(torch.ones_like(state.value))
        log_ratio = self._log_ratio(state, proposal)
        accept = torch.log(_uniform(state.value, generator)) < log_ratio
        kept = State(
            *(torch.where(_like(accept, a), b, a) for a, b in zip(state, proposal, strict=True))
        )
        return kept, Info(log_ratio.clamp_max(0).exp().nan_to_num(0.0))

    def _log_ratio(self, state: State, proposal: State) -> Tensor:
        """log of `p(x') q(x | x') / (p(x) q(x' | x))`, `(B,)`.

        With u = x - mu, primes at the proposal, and all that cancels left out:

            F - F' - sum_i [(u_i - rho_i u'_i) g'_i - (u'_i - rho_i u_i) g_i] / (1 + rho_i)
                   - sum_i (1 - rho_i) lambda_i (g'_i^2 - g_i^2) / (2 (1 + rho_i))
        """
        lam, rho = self._lambda, self._rho
        u, v = (
            state.x.flatten(1) - self.reference.mean,
            proposal.x.flatten(1) - self.reference.mean,
        )
        g, k = state.grad.flatten(1), proposal.grad.flatten(1)
        by_one, by_rho = 1 / (1 + rho), rho / (1 + rho)
        half = (1 - rho) * lam / (2 * (1 + rho))
        linear = self._form(u, k, by_one) - self._form(v, k, by_rho) - self._form(v, g, by_one)
        linear = linear + self._form(u, g, by_rho)
        quadratic = self._form(k, k, half) - self._form(g, g, half)
        return state.value - proposal.value - linear - quadratic

    def _form(self, a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
        """a^T f(C) b, `(B,)`, with f's values at the eigenvalues of C in `factor` `(B, r + 1)`."""
        along, elsewhere = factor[:, None, :-1], factor[:, -1:]
        image = self.reference.spectral(b.unsqueeze(1), along, elsewhere)
        return (a * image).sum(1)

    def rows(self, part: slice) -> ReferenceLangevin:
        return ReferenceLangevin(
            self.reference.rows(part), self.step_size, self.cap, adjusted=self.adjusted
        )


def sample(
    energy: Energy,
    sampler: Sampler,
    x0: Tensor,
    steps: int,
    *,
    generator: Generators,
    callback: Callable[[int, State, Info], None] | None = None,
    thin: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Run every chain for `steps` steps.

    Arguments:
        energy: Callable `(B, ...) -> (B,)`; with `rows(slice)` if it holds something per chain.
        sampler: Likewise.
        x0: Starts `(B, ...)`.
        steps: Number of steps, at least 1.
        generator: One for all, or one per chain.
        callback: Called with (step from 1, State, Info) after every step; the chains then run in
            one chunk.
        thin: Keep every `thin`-th state.
        chunk: Chains per chunk; chunks run side by side in threads on a CPU. All in one when None.
            One generator and several chunks: each chunk has a generator of its own, seeded from
            it.

    Returns:
        The last states `(B, ...)`; with `thin`, the kept ones `(steps // thin, B, ...)`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    if thin is not None and not 1 <= thin <= steps:
        raise ValueError(f"thin must lie between 1 and steps={steps}, found {thin}")
    count = len(x0)
    if not isinstance(generator, torch.Generator) and len(generator) != count:
        raise ValueError(f"{len(generator)} generators for {count} chains: one each is needed")
    parts = slices(count, chunk or count) if callback is None else [slice(0, count)]
    generators = _spread(generator, parts)

    def run(index_part: tuple[int, slice]) -> Tensor:
        index, part = index_part
        e, s = rows_of(energy, part), rows_of(sampler, part)
        state, kept = s.init(e, x0[part]), []
        for step in range(1, steps + 1):
            state, info = s.step(e, state, generators[index])
            if callback is not None:
                callback(step, state, info)
            if thin is not None and step % thin == 0:
                kept.append(state.x)
        return torch.stack(kept) if thin is not None else state.x

    if chunk is None or callback is not None:
        return run((0, parts[0]))
    order = {part.start: index for index, part in enumerate(parts)}
    pieces = run_chunks(
        lambda part: run((order[part.start], part)), parts, parallel=x0.device.type == "cpu"
    )
    return torch.cat(pieces, 0 if thin is None else 1)


def randn(like: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise of the shape, type and device of `like` `(B, ...)`."""
    if isinstance(generator, torch.Generator):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    rows = [
        torch.randn(like.shape[1:], generator=g, dtype=like.dtype, device=g.device)
        for g in generator
    ]
    return torch.stack(rows).to(like.device)


def clip_seeds(generator: torch.Generator | None, n: int) -> list[int]:
    """Seeds of the first n clips of a generator: a prefix of those for any larger n."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    base = torch.randint(2**62, (), generator=generator, device=generator.device)
    own = torch.Generator().manual_seed(int(base))
    return [int(torch.randint(2**62, (), generator=own)) for _ in range(n)]


def _uniform(like: Tensor, generator: Generators) -> Tensor:
    if isinstance(generator, torch.Generator):
        return torch.rand(like.shape, generator=generator, device=like.device)
    return torch.stack([torch.rand((), generator=g, device=g.device) for g in generator]).to(
        like.device
    )


def _spread(generator: Generators, parts: list[slice]) -> list[Generators]:
    """The generator(s) of each chunk."""
    if not isinstance(generator, torch.Generator):
        return [generator[part] for part in parts]
    if len(parts) == 1:
        return [generator]
    device = generator.device
    seeds = torch.randint(2**62, (len(parts),), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (x.ndim - 1))


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, found {value}")
