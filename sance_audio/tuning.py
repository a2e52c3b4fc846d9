"""How a model's steps are computed on this machine: threads and path, by a short measurement.

Two threads of PyTorch's own can be many times slower than one where a core is shared, and a
compiler takes a minute to save a fifth: neither is a matter of taste. What is chosen decides the
last bits of a sample, so it is stored with the model.
"""

from __future__ import annotations

__all__ = ["tune"]

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sance_audio.chunks import chunk_size, cores
from sance_audio.energy import EnergyModel, GivenEnergy
from sance_audio.generation import draw
from sance_audio.samplers import Compute, ReferenceLangevin, choose, timed

MANY_THREADS = 0.75
"""Time over that of one thread a chunk, below which more are taken."""
COMPILING = 600.0
"""Seconds of sampling planned, below which compiling is not tried on a CPU: it takes up to a
minute in every process that draws a clip, and saves a fifth.
"""
STEPS = 4


@torch.no_grad()
def tune(
    model: EnergyModel,
    step_size: float,
    cap: float = 1.0,
    *,
    planned: int = 0,
    rounds: int = 5,
) -> Compute:
    """Threads and path for sampling from a model, by measurement.

    Arguments:
        model: As it will be used.
        step_size, cap: Of `ReferenceLangevin`.
        planned: Langevin steps of all clips that will be drawn with it; where these take less
            than `COMPILING` seconds on a CPU, only the eager path is looked at.
        rounds: Measurements of each candidate.

    Returns:
        The choice, with the figures that decided it in `why`.
    """
    levels = len(getattr(model.density.network, "levels", ())) - 1
    if levels > 0 and model.device.type != "cpu":
        return Compute(why="levels of noise: each has a sampler of its own; not captured")
    if model.device.type != "cpu":
        return _path(model, step_size, cap, Compute(), "one stream")
    workers = cores()
    clips = workers * chunk_size(model.device)
    steps = STEPS * max(1, levels)
    candidates = [Compute(threads=n) for n in sorted({1, workers})]

    def run(compute: Compute) -> Callable[[], object]:
        return lambda: draw(
            model, [0] * clips, range(clips), steps=steps, step_size=step_size, cap=cap,
            compute=compute,
        )  # fmt: skip

    runs = {c.threads: run(c) for c in candidates}
    timed(runs, 1)  # the first calls do not count
    seconds = timed(runs, rounds)
    one = seconds[1]
    ratio = {
        n: statistics.median(a / b for a, b in zip(own, one, strict=True))
        for n, own in seconds.items()
    }
    threads = min(ratio, key=ratio.__getitem__)
    threads = threads if ratio[threads] < MANY_THREADS else 1
    a_step = statistics.median(one) / (clips * steps)
    words = f"{1e6 * a_step:.0f} us a step and clip with one thread a chunk"
    for n in ratio:
        words += f", {ratio[n]:.2f} of that with {n}" if n > 1 else ""
    chosen = Compute(threads=threads)
    if levels > 0:
        return replace(chosen, why=f"{words}; levels of noise: not compiled")
    if planned * a_step < COMPILING:
        return replace(chosen, why=f"{words}; {planned * a_step:.0f} s planned: not compiled")
    return _path(model, step_size, cap, chosen, words)


def _path(
    model: EnergyModel, step_size: float, cap: float, compute: Compute, words: str
) -> Compute:
    """The fastest path for one chunk of the model's chains."""
    chunk = chunk_size(model.device)
    c = torch.arange(chunk, device=model.device) % model.reference.n_components
    base = model.density.base
    generator = torch.Generator(model.device).manual_seed(0)
    x: Tensor = base.sample(c, generator).view(-1, 1, *model.shape)
    sampler = ReferenceLangevin(base.given(c), step_size, cap)
    chosen = choose(GivenEnergy(model.density, c), sampler, x, compute=compute)
    return replace(chosen, why=f"{words}; {chosen.why}")
