r"""How steps are computed: eagerly, compiled, or as a captured CUDA graph; chosen by measurement.

    eager         `sampler.step`, one after the other
    compiled      `torch.compile` of several moves in one call, gradients by function transforms;
                  random numbers are drawn outside, from the same stream
    cuda_graph    the same several moves, captured once and replayed; on a GPU

`choose` times what there is, checks each result against the eager one, and says in words what it
took and why. A path that cannot be had gives way to the eager one, and says why.
"""

from __future__ import annotations

__all__ = ["Compute", "PATHS", "choose", "stepper", "in_precision", "compiled_block", "timed"]

import functools
import statistics
import time
import types
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sance_audio.energy import LowPrecision
from sance_audio.samplers.graphs import GraphedBlock
from sance_audio.samplers.interface import (
    Generators,
    Info,
    Noise,
    SamplingWarning,
    State,
    StepSized,
)

PATHS = ("eager", "compiled", "cuda_graph")
PRECISIONS = ("float32", "bfloat16")
WORTHWHILE = 0.95
"""Time over that of the eager path, below which another one is taken."""
TOLERANCE = 1e-3
"""Largest difference to the eager path after a block, over the size of x."""

K = TypeVar("K", bound=Hashable)
Walk = Callable[[Any, int, Generators], Iterator[tuple[Any, Info, int]]]


@dataclass(frozen=True)
class Compute:
    """How steps are computed. Last bits depend on all of it, so it is stored with a model."""

    path: str = "eager"
    """One of `PATHS`."""
    block: int = 8
    """Steps in one call, where the path has calls of several."""
    precision: str = "float32"
    """Of the energy: float32, its own type; or bfloat16, under autocast. Chains keep theirs."""
    threads: int = 1
    """Threads of PyTorch's own per chunk, on a CPU: with 1, chunks run side by side."""
    why: str = "not measured"

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise ValueError(f"path must be one of {', '.join(PATHS)}, found {self.path!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, found {self.precision!r}"
            )
        for name in ("block", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")


def in_precision(energy: Any, compute: Compute) -> Any:
    """The energy, in lower precision where that is asked for."""
    if compute.precision == "float32":
        return energy
    return LowPrecision(energy, getattr(torch, compute.precision))


def stepper(energy: Any, sampler: Any, state: Any, block: int, compute: Compute) -> Walk:
    """A function `walk(state, count, generator)` that yields (state, info, steps) until `count`
    steps are done; info holds sums where a yield stands for several steps.
    """
    if compute.path == "eager":
        return functools.partial(_eager, energy, sampler)
    if not (isinstance(sampler, StepSized) and type(state) is State):
        return _instead(energy, sampler, compute, "its state is more than x, value and gradient")
    if compute.path == "cuda_graph" and state.x.device.type != "cuda":
        return _instead(energy, sampler, compute, f"the chains are on {state.x.device}")
    return _Blocks(energy, sampler, block, compute)


def _eager(
    energy: Any, sampler: Any, state: Any, count: int, generator: Generators
) -> Iterator[tuple[Any, Info, int]]:
    for _ in range(count):
        state, info = sampler.step(energy, state, generator)
        yield state, info, 1


class _Blocks:
    """A walk in blocks of steps: whole ones in one call each; what is left, eagerly. Where a call
    fails, eager moves take its place, for good.
    """

    def __init__(self, energy: Any, sampler: StepSized, block: int, compute: Compute):
        if isinstance(sampler.step_size, (int, float)):  # an input: another one compiles nothing
            sampler = sampler.with_step_size(_Fixed(float(sampler.step_size)))
        self.energy, self.sampler, self.block, self.compute = energy, sampler, block, compute
        self.plain = functools.partial(moves, energy, sampler, block)
        self.several: Callable[..., tuple[Tensor, ...]] = (
            GraphedBlock(self.plain)
            if compute.path == "cuda_graph"
            else functools.partial(compiled_block(energy, sampler, block), energy, sampler, block)
        )

    def __call__(
        self, state: State, count: int, generator: Generators
    ) -> Iterator[tuple[State, Info, int]]:
        while count >= self.block:
            noise = _stacked(self.sampler, state, self.block, generator)
            try:
                found = self.several(*state[:3], noise)
            except Exception as error:  # whatever a compiler may raise; the noise is still there
                _warn(self.sampler, self.compute, f"{type(error).__name__}: {error}"[:300])
                self.several = self.plain
                found = self.plain(*state[:3], noise)
            x, value, grad, accepted, failed = found
            state = State(x, value, grad, state.step + self.block)
            yield state, Info(accepted, failed), self.block
            count -= self.block
        yield from _eager(self.energy, self.sampler, state, count, generator)


@dataclass(frozen=True)
class _Fixed:
    """A schedule that stays at one step size."""

    eps: float

    def __call__(self, step: int) -> float:
        return self.eps


def _stacked(sampler: StepSized, state: State, block: int, generator: Generators) -> Noise:
    """Noise of the next steps, `(block, ...)` each, drawn step by step as the eager path does."""
    fixed = isinstance(sampler.step_size, _Fixed) and type(sampler).draw is StepSized.draw
    draws = [
        sampler.random(state.x, generator)
        if fixed
        else sampler.draw(state.x, state.step + i, generator)
        for i in range(block)
    ]
    noise = tuple(torch.stack(parts) for parts in zip(*draws, strict=True))
    if not fixed:
        return noise
    eps = sampler.step_size(0)  # type: ignore[operator]
    return (*noise, torch.full((block,), eps, dtype=state.x.dtype, device=state.x.device))


def moves(
    energy: Any,
    sampler: StepSized,
    block: int,
    x: Tensor,
    value: Tensor,
    grad: Tensor,
    noise: Noise,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`block` moves: x, value, gradient; sums of the acceptances `(B,)`; which chains were not
    finite on the way `(B,)`.
    """
    state = State(x, value, grad)
    values, infos = [], []
    for i in range(block):
        state, info = sampler.move(energy, state, tuple(part[i] for part in noise))
        values.append(state.value)
        infos.append(info)
    accepted = torch.stack([info.accepted for info in infos]).sum(0)
    failed = ~torch.stack(values).isfinite().all(0)
    rejected = [info.failed for info in infos if info.failed is not None]
    if rejected:
        failed = failed | torch.stack(rejected).any(0)
    return state.x, state.value, state.grad, accepted, failed


def compiled_block(energy: Any, sampler: StepSized, block: int) -> Callable[..., Any]:
    """`moves`, compiled: one graph for each shape. Each kind of energy and sampler has a code
    object of its own, since a compiler bounds the graphs of one.
    """
    kind: Any = getattr(energy, "__code__", type(energy))
    return _compiled(kind, type(sampler), block)


@functools.cache
def _compiled(energy: Any, sampler: type, block: int) -> Callable[..., Any]:
    code = moves.__code__.replace(co_name=f"moves_of_{sampler.__name__}_{block}")
    own = types.FunctionType(code, moves.__globals__, closure=moves.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def _instead(energy: Any, sampler: Any, compute: Compute, why: str) -> Walk:
    """The eager path, and a warning that says why."""
    _warn(sampler, compute, why)
    return functools.partial(_eager, energy, sampler)


def _warn(sampler: Any, compute: Compute, why: str) -> None:
    text = f"{compute.path} steps of {type(sampler).__name__} cannot be had, taking eager ones"
    warnings.warn(f"{text}: {why}", SamplingWarning, stacklevel=4)


@torch.no_grad()
def choose(
    energy: Any,
    sampler: Any,
    x0: Tensor,
    *,
    compute: Compute | None = None,
    paths: tuple[str, ...] = PATHS,
    steps: int = 16,
    rounds: int = 5,
    seed: int = 0,
) -> Compute:
    """The fastest path for these chains, by a short measurement: every path in turn, several
    times; the median of its time over that of the eager path in the same round decides.

    A path is taken only where it is faster by 5 % and ends where the eager path ends.

    Arguments:
        energy, sampler, x0: As `sample` will have them.
        compute: Everything but the path; the default when None.
        paths: What to try.
        steps: Steps per measurement.
        rounds: Measurements of each path.
        seed: Of the noise.

    Returns:
        `compute` with the path, and in `why` the figures that decided.
    """
    compute = compute or Compute()
    low = in_precision(energy, compute)
    probe = _Probe(low, sampler, sampler.init(low, x0), compute, steps, seed)
    expected, usable, words = probe("eager"), [], []
    for name in paths:
        if name == "eager" or (name == "cuda_graph" and x0.device.type != "cuda"):
            continue
        trouble, first = _tried(probe, name, expected)
        words.append(trouble or f"{name} took {first:.1f} s at first")
        usable += [] if trouble else [name]
    runs = {name: functools.partial(probe, name) for name in ["eager", *usable]}
    seconds = timed(runs, rounds)
    eager = seconds["eager"]
    ratio = {
        name: statistics.median(a / b for a, b in zip(seconds[name], eager, strict=True))
        for name in usable
    }
    words.insert(0, f"eager {1e6 * statistics.median(eager) / steps:.0f} us a step")
    words += [f"{name} {r:.2f} of that" for name, r in ratio.items()]
    best = min(ratio, key=ratio.__getitem__, default="eager")
    path = best if ratio.get(best, 1.0) < WORTHWHILE else "eager"
    return replace(compute, path=path, why="; ".join(words))


class _Probe:
    """Where the chains are after some steps on a path, from the same start with the same noise;
    what a path has compiled or captured, it keeps.
    """

    def __init__(
        self, energy: Any, sampler: Any, state: Any, compute: Compute, steps: int, seed: int
    ):
        self.parts, self.state, self.compute = (energy, sampler), state, compute
        self.steps, self.seed = steps, seed
        self.walks: dict[str, Walk] = {}

    def __call__(self, path: str) -> Tensor:
        if path not in self.walks:
            own = replace(self.compute, path=path)
            self.walks[path] = stepper(*self.parts, self.state, own.block, own)
        device = self.state.x.device
        generator = torch.Generator(device).manual_seed(self.seed)
        *_, (last, _, _) = self.walks[path](self.state, self.steps, generator)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return last.x


def _tried(
    probe: Callable[[str], Tensor], name: str, expected: Tensor
) -> tuple[str | None, float]:
    """Why a path cannot be taken, or None; and the seconds of its first call."""
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = probe(name)
    first = time.perf_counter() - began
    refused = [str(w.message) for w in caught if issubclass(w.category, SamplingWarning)]
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not refused and not error <= TOLERANCE:
        refused = [f"{name} ends elsewhere than eager, by {error:.1e} of the largest x"]
    return (refused[0] if refused else None), first


def timed(functions: Mapping[K, Callable[[], Any]], rounds: int) -> dict[K, list[float]]:
    """Seconds of each function, in turn, `rounds` times."""
    seconds: dict[K, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return seconds
