r"""What a sampler is: its state, what it says of a step, its randomness.

A sampler of `p(x) = exp(-E(x)) / Z` is a plain object:

    init(energy, x) -> State
    step(energy, state, generator) -> (State, Info)

and `step` is two halves, so that a compiler may have the second one:

    draw(x, step, generator) -> noise         everything random of one step
    move(energy, state, noise) -> (State, Info)    a pure function of tensors

The state holds what the next step would otherwise compute again. `energy` is any callable
`(B, ...) -> (B,)`; a generator is one `torch.Generator`, or a sequence of B of them, one per
chain, whose chains then do not depend on their neighbours.
"""

from __future__ import annotations

__all__ = [
    "Generators",
    "State",
    "Info",
    "Sampler",
    "StepSized",
    "Preconditioned",
    "Preconditioner",
    "SamplingError",
    "SamplingWarning",
    "metropolis",
    "randn",
    "log_uniform",
    "per_row",
    "row_sum",
    "dot",
    "clip_seeds",
]

import copy
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from sance_audio.energy import rows_of, value_and_grad

Generators = torch.Generator | Sequence[torch.Generator]
Noise = tuple[Tensor, ...]
StepSize = float | Tensor | Callable[[int], float]


class SamplingError(ValueError):
    """No chain can go on."""


class SamplingWarning(UserWarning):
    """Some chains stopped, or did not move; the others went on."""


class State(NamedTuple):
    """Where the chains are, and what has been computed there."""

    x: Tensor
    """`(B, ...)`."""
    value: Tensor
    """`(B,)`: the energy, or the part of it that the sampler differentiates."""
    grad: Tensor
    """`(B, ...)`: gradient of `value`."""
    step: int = 0
    """Steps taken so far; what a schedule is asked with."""


class Info(NamedTuple):
    """What happened in a step."""

    accepted: Tensor
    """`(B,)`, probability with which the proposal was accepted; ones for unadjusted samplers."""
    failed: Tensor | None = None
    """`(B,)`, whether the proposal's energy was NaN or its gradient not finite: it was rejected
    then. None for unadjusted samplers, whose states would show it.
    """


class Sampler(Protocol):
    def init(self, energy: Any, x: Tensor) -> Any: ...

    def step(self, energy: Any, state: Any, generator: Generators) -> tuple[Any, Info]: ...


class Preconditioner(Protocol):
    """A fixed symmetric positive matrix P per chain."""

    def apply(self, v: Tensor) -> Tensor:
        """P v, `(B, ...)`."""
        ...

    def root(self, v: Tensor) -> Tensor:
        """P^(1/2) v, `(B, ...)`."""
        ...


S = TypeVar("S", bound="StepSized")


class StepSized(ABC):
    """A sampler with a step size eps: a number, one a chain `(B,)`, or a schedule, any callable
    from the number of steps taken to a number.
    """

    target = 1.0
    """Mean acceptance that warm-up aims at; 1 for samplers that always accept."""
    heat = 1.0
    """At an inverse temperature beta, steps are larger by `beta ** -heat`."""

    def __init__(self, step_size: StepSize):
        if not callable(step_size):
            _check_step_size(step_size)
        self.step_size = step_size

    @abstractmethod
    def init(self, energy: Any, x: Tensor) -> Any:
        """The state of chains at x `(B, ...)`."""

    @abstractmethod
    def move(self, energy: Any, state: Any, noise: Noise) -> tuple[Any, Info]:
        """The state after a step with this noise, and what happened."""

    def part(self, energy: Any) -> Any:
        """What of the energy is differentiated, `(B, ...) -> (B,)`: all of it."""
        return energy

    def random(self, x: Tensor, generator: Generators) -> Noise:
        """The random numbers of one step: standard normal noise `(B, ...)`."""
        return (randn(x, generator),)

    def draw(self, x: Tensor, step: int, generator: Generators) -> Noise:
        """All that a step from x `(B, ...)` is decided by beside the state: random numbers, and a
        scheduled step size `()` after them.
        """
        return (*self.random(x, generator), *self.scheduled(x, step))

    def scheduled(self, x: Tensor, step: int) -> Noise:
        """The step size that a schedule has for this step, `()`; nothing without a schedule."""
        if not callable(self.step_size):
            return ()
        eps = self.step_size(step)
        if isinstance(eps, Tensor) and eps.numel() == 1:
            eps = float(eps)
        if isinstance(eps, Tensor) or not eps > 0:
            raise ValueError(f"step_size({step}) must be one positive number, found {eps}")
        return (torch.full((), float(eps), dtype=x.dtype, device=x.device),)

    def step(self, energy: Any, state: Any, generator: Generators) -> tuple[Any, Info]:
        return self.move(energy, state, self.draw(state.x, state.step, generator))

    def eps(self, noise: Noise) -> Any:
        """The step size of a step with this noise: a number or a tensor, `()` or `(B,)`."""
        return noise[-1] if callable(self.step_size) else self.step_size

    def with_step_size(self: S, step_size: StepSize) -> S:
        """The same sampler with another step size."""
        other = copy.copy(self)
        StepSized.__init__(other, step_size)
        return other

    def rows(self: S, part: Any) -> S:
        """The sampler of some of the chains: a slice, or an index tensor."""
        if isinstance(self.step_size, Tensor) and self.step_size.numel() > 1:
            return self.with_step_size(self.step_size[part])
        return copy.copy(self)


class Preconditioned(StepSized):
    """A sampler of the whole energy, with a preconditioner.

    Arguments:
        step_size: eps: a number, one a chain, or a schedule.
        preconditioner: P; the identity when None. It must not depend on x.
    """

    def __init__(self, step_size: StepSize, preconditioner: Preconditioner | None = None):
        super().__init__(step_size)
        self.preconditioner = preconditioner

    def init(self, energy: Any, x: Tensor) -> State:
        return State(x, *value_and_grad(energy, x))

    def root(self, v: Tensor) -> Tensor:
        """P^(1/2) v."""
        return v if self.preconditioner is None else self.preconditioner.root(v)

    def rows(self, part: Any) -> Any:
        own = super().rows(part)
        own.preconditioner = rows_of(self.preconditioner, part)
        return own


def metropolis(
    state: State, proposal: State, log_ratio: Tensor, log_u: Tensor
) -> tuple[State, Info]:
    """Each chain's proposal where `log_u < log_ratio`, its state elsewhere.

    A proposal of infinite energy has probability 0 and is rejected; one whose energy is NaN, or
    whose gradient is not finite at a finite energy, is rejected and marked as failed.

    Arguments:
        state, proposal: Of B chains.
        log_ratio: `(B,)`, log of `p(x') q(x | x') / (p(x) q(x' | x))`.
        log_u: `(B,)`, logarithms of uniform numbers.
    """
    slope = row_sum(proposal.grad)
    failed = proposal.value.isnan() | (proposal.value.isfinite() & ~slope.isfinite())
    log_ratio = log_ratio.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    log_ratio = log_ratio.masked_fill(failed | (proposal.value == torch.inf), -torch.inf)
    accept = log_u < log_ratio
    kept = State(
        torch.where(per_row(accept, state.x), proposal.x, state.x),
        torch.where(accept, proposal.value, state.value),
        torch.where(per_row(accept, state.x), proposal.grad, state.grad),
        state.step + 1,
    )
    return kept, Info(log_ratio.clamp_max(0).exp(), failed)


def randn(like: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise of the shape, type and device of `like` `(B, ...)`."""
    if isinstance(generator, torch.Generator):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    rows = [
        torch.randn(like.shape[1:], generator=g, dtype=like.dtype, device=g.device)
        for g in generator
    ]
    return torch.stack(rows).to(like.device)


def log_uniform(x: Tensor, generator: Generators) -> Tensor:
    """Logarithms of uniform numbers `(B,)`, one a chain of x `(B, ...)`."""
    kind: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    if isinstance(generator, torch.Generator):
        return torch.rand(x.shape[:1], generator=generator, **kind).log()
    rows = [torch.rand((), generator=g, dtype=x.dtype, device=g.device) for g in generator]
    return torch.stack(rows).to(x.device).log()


def clip_seeds(generator: torch.Generator | None, n: int) -> list[int]:
    """Seeds of the first n clips of a generator: a prefix of those for any larger n."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    base = torch.randint(2**62, (), generator=generator, device=generator.device)
    own = torch.Generator().manual_seed(int(base))
    return [int(torch.randint(2**62, (), generator=own)) for _ in range(n)]


def per_row(v: Any, x: Tensor) -> Any:
    """v `(B,)` shaped to go with x `(B, ...)`; a number, or `()`, as it is."""
    if not isinstance(v, Tensor) or v.ndim == 0:
        return v
    return v.reshape(-1, *[1] * (x.ndim - 1))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products `(B,)` of `(B, ...)`."""
    return (a * b).flatten(1).sum(1)


def row_sum(x: Tensor) -> Tensor:
    """Sums `(B,)` of the rows of x `(B, ...)`, in float32 at least: finite where all cells are."""
    return x.flatten(1).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))


def _check_step_size(step_size: float | Tensor) -> None:
    if isinstance(step_size, Tensor):  # not looked at: that would wait for the device
        if step_size.ndim > 1:
            raise ValueError(
                f"step_size must be a number or one a chain (B,), found {tuple(step_size.shape)}"
            )
    elif not isinstance(step_size, numbers.Real) or not step_size > 0:
        raise ValueError(f"step_size must be positive, a number or a tensor, found {step_size!r}")
