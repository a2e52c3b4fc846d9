r"""The engine: many chains, many steps, in chunks.

Chains run in chunks of rows, side by side in threads on a CPU, so that their number is not bound
by memory. Within a step nothing waits for the device: what went wrong is collected there, and
looked at once, at the end. A chain whose energy or gradient is not finite stops where it was last
finite and is named; the others do not depend on it.
"""

from __future__ import annotations

__all__ = ["sample", "check_chains", "start", "automatic_chunk"]

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sance_audio.chunks import chunk_size, run_chunks, slices
from sance_audio.energy import Energy, rows_of
from sance_audio.samplers.interface import (
    Generators,
    Info,
    Sampler,
    SamplingError,
    SamplingWarning,
)
from sance_audio.samplers.paths import Compute, in_precision, stepper
from sance_audio.samplers.watch import Report, Watch

CELLS = 2**20
"""Cells of all chains together (256 log-mels of 64 x 64), up to which they run in one chunk."""
BLOCK = 16
"""Steps between two looks, on the device, at which chains are finite."""


@torch.no_grad()
def sample(
    energy: Energy,
    sampler: Sampler,
    x0: Tensor,
    steps: int,
    *,
    generator: Generators,
    callback: Callable[[int, Any, Info], None] | None = None,
    thin: int | None = None,
    chunk: int | None = None,
    compute: Compute | None = None,
) -> Tensor:
    """Run every chain for `steps` steps.

    Arguments:
        energy: Callable `(B, ...) -> (B,)`; with `rows(slice)` if it holds something per chain.
            No gradient of its parameters is computed.
        sampler: Likewise.
        x0: Starts `(B, ...)`.
        steps: Number of steps, at least 1.
        generator: One for all, or one per chain, on the device of x0.
        callback: Called with (step from 1, State, Info) after every step; the chains then run in
            one chunk.
        thin: Keep every `thin`-th state.
        chunk: Chains per chunk; chunks run side by side in threads on a CPU. When None, all in one
            up to `CELLS` cells, else `chunk_size`. One generator and several chunks: each chunk
            has a generator of its own, seeded from it.
        compute: How steps are computed (see `choose`): eagerly and in the type of x0 when None.

    Returns:
        The last states `(B, ...)`; with `thin`, the kept ones `(steps // thin, B, ...)`. Of an
        unadjusted sampler, the energy of the last state is not computed, nor looked at.

    Raises:
        ValueError: no steps or chains, x0 of integers, an energy of another shape or type than
            `(B,)`, generators or step sizes of another number than the chains, a generator on
            another device, or one that stands for several chains.
        SamplingError: no chain could go on, or none ever moved.

    Warns:
        SamplingWarning: some chains stopped (which, and when), or a step rejected all proposals
            for certain.
    """
    check_chains(sampler, x0, steps, generator)
    if thin is not None and not 1 <= thin <= steps:
        raise ValueError(f"thin must lie between 1 and steps={steps}, found {thin}")
    chunk = automatic_chunk(x0) if chunk is None else chunk
    parts = slices(len(x0), chunk if callback is None else len(x0))
    generators = _spread(generator, parts)
    compute = compute or Compute()
    energy = in_precision(energy, compute)

    def run(index: int) -> tuple[Tensor, Report]:
        whole = len(parts) == 1  # then nothing is narrowed, so that what has other rows is seen
        e = energy if whole else rows_of(energy, parts[index])
        s = sampler if whole else rows_of(sampler, parts[index])
        return _run(e, s, x0[parts[index]], steps, generators[index], callback, thin, compute)

    if len(parts) == 1:
        found, report = run(0)
        _tell([report], sampler, steps)
        return found
    order = {part.start: index for index, part in enumerate(parts)}
    parallel = x0.device.type == "cpu"
    pieces = run_chunks(lambda part: run(order[part.start]), parts, parallel=parallel)
    _tell([report for _, report in pieces], sampler, steps)
    return torch.cat([found for found, _ in pieces], 0 if thin is None else 1)


def _run(
    energy: Any,
    sampler: Any,
    x0: Tensor,
    steps: int,
    generator: Generators,
    callback: Callable[[int, Any, Info], None] | None,
    thin: int | None,
    compute: Compute,
) -> tuple[Tensor, Report]:
    """One chunk: its result, as `sample` returns it, and what happened to its chains."""
    state = start(energy, sampler, x0)
    watch = Watch(state)
    longest = 1 if callback is not None else min(compute.block, thin or steps)
    walk = stepper(energy, sampler, state, longest, compute)
    look = 1 if callback is not None else -(-BLOCK // longest) * longest
    kept, done = [], 0
    spare = callback is None and compute.path == "eager" and _unadjusted(sampler)
    last_evaluated = steps - 1 if spare else steps  # the last gradient would not be used
    while done < last_evaluated:
        kept_next = thin - done % thin if thin is not None else look
        block = min(look, kept_next, last_evaluated - done)
        before = state
        for after, info, count in walk(before, block, generator):
            watch.step(after, info, count)
            state, last = after, info
        state, done = watch.block(before, state, done + block), done + block
        if callback is not None:
            callback(done, state, last)
        if thin is not None and done % thin == 0:
            kept.append(state.x)
    if spare:
        x = sampler.propose(state, sampler.draw(state.x, state.step, generator))
        state = watch.block(state, state._replace(x=x), steps)
        if thin is not None and steps % thin == 0:
            kept.append(state.x)
    return (torch.stack(kept) if thin is not None else state.x), watch.report()


def _unadjusted(sampler: Any) -> bool:
    """Whether a step's x is known before its energy is."""
    return hasattr(sampler, "propose") and sampler.target >= 1


def check_chains(sampler: Any, x0: Tensor, steps: int, generator: Generators) -> None:
    """Raise ValueError for what cannot be run; see `sample`."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be at least 1, a whole number, found {steps}")
    if x0.ndim < 2 or not len(x0):
        raise ValueError(f"x0 must be chains (B, ...), at least one, found {tuple(x0.shape)}")
    if not x0.is_floating_point():
        raise ValueError(f"x0 must be floating-point, found {x0.dtype}: x0.float()")
    eps = getattr(sampler, "step_size", None)
    if isinstance(eps, Tensor) and eps.ndim and len(eps) not in (1, len(x0)):
        raise ValueError(f"{len(eps)} step sizes for {len(x0)} chains: one for all, or one each")
    own = [generator] if isinstance(generator, torch.Generator) else list(generator or ())
    if own != [generator] and len(own) != len(x0):
        raise ValueError(f"{len(own)} generators for {len(x0)} chains: one each is needed")
    if len({id(g) for g in own}) < len(own):
        raise ValueError(
            "one generator stands for several chains: give each its own, or one alone"
        )
    for g in own:
        if g.device.type != x0.device.type:
            raise ValueError(
                f"the generator is on {g.device}, x0 on {x0.device}: make it by "
                f"torch.Generator({str(x0.device)!r})"
            )


def start(energy: Any, sampler: Any, x0: Tensor) -> Any:
    """The first state; ValueError where the energy cannot take x0, or is not one number a row in
    the type of the rows.
    """
    try:
        state = sampler.init(energy, x0)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shape = tuple(x0.shape)
        raise ValueError(f"the energy cannot take x {shape} of {x0.dtype}: {error}") from error
    if state.value.shape != x0.shape[:1]:
        raise ValueError(
            f"the energy of x {tuple(x0.shape)} must be one number a row, {tuple(x0.shape[:1])}, "
            f"found {tuple(state.value.shape)}"
        )
    if state.value.dtype != x0.dtype:
        raise ValueError(f"the energy is {state.value.dtype}, x0 {x0.dtype}: make them the same")
    return state


def automatic_chunk(x0: Tensor) -> int:
    """Chains per chunk: all, but where there are too many cells for one."""
    return len(x0) if x0.numel() <= CELLS else chunk_size(x0.device, x0[0].numel())


def _spread(generator: Generators, parts: list[slice]) -> list[Generators]:
    """The generator(s) of each chunk."""
    if not isinstance(generator, torch.Generator):
        return [generator[part] for part in parts]
    if len(parts) == 1:
        return [generator]
    device = generator.device
    seeds = torch.randint(2**62, (len(parts),), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def _tell(reports: list[Report], sampler: Any, steps: int) -> None:
    """Warn of chains that stopped, and of steps that rejected everything; raise where no chain is
    left, or none ever moved.
    """
    stopped, offset = [], 0
    for report in reports:
        for row, step in report.stopped.items():
            stopped.append((offset + row, step))
        offset += report.chains
    if stopped:
        when = ", ".join(f"{chain} (step {step})" for chain, step in stopped[:8])
        more = f" and {len(stopped) - 8} more" if len(stopped) > 8 else ""
        text = (
            f"energy or gradient not finite: of {offset} chains {len(stopped)} stopped where they "
            f"were last finite: chain {when}{more}"
        )
        if len(stopped) == offset:
            raise SamplingError(f"{text}; none is left. A smaller step_size, or other starts")
        warnings.warn(text, SamplingWarning, stacklevel=3)
    if getattr(sampler, "target", 1.0) >= 1:  # rejects nothing
        return
    expected = sum(report.expected for report in reports)
    rejected = sum(report.rejected for report in reports)
    remedy = "lower it, or find one with warm_up"
    if offset * steps >= 20 and expected < 0.05:
        raise SamplingError(
            f"no chain moved: {steps} steps of {offset} chains had {expected:.1e} proposals "
            f"accepted; step_size={sampler.step_size} is too large: {remedy}"
        )
    if rejected:
        warnings.warn(
            f"at least {rejected} of {steps * len(reports)} steps rejected every proposal "
            f"(acceptance below 0.1 % in all chains); step_size={sampler.step_size} is too "
            f"large: {remedy}",
            SamplingWarning,
            stacklevel=3,
        )
