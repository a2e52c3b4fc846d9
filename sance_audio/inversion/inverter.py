"""What inverters share: iterations in groups of clips and blocks of frames, phases from seeds.

On a CPU each clip goes through all iterations by itself, in one thread of as many as PyTorch has
(`chunks`), on a GPU with others; a long one in
several blocks, each iteration behind the one before it by the frames that it reads ahead
(`frames`).
"""

from __future__ import annotations

__all__ = ["QUALITY", "Inverter", "Pull", "check_magnitudes", "generators_of"]

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sance_audio.audio import fit_length
from sance_audio.chunks import run_chunks, slices
from sance_audio.inversion.frames import Frames, Iteration
from sance_audio.samplers import Generators, clip_seeds, randn

QUALITY = {"fast": 12, "default": 32, "best": 100}
"""Iterations."""
BLOCK = 256
"""Frames that a core works on together: their spectra stay in its cache."""
SILENT = 1e-7
"""A frame of so much of a clip's largest magnitude, or less, is silence."""
ON_GPU = 256 * BLOCK
"""Frames, of one clip or many, that a GPU works on together."""


class Pull(Protocol):
    """Two gains, that of the first step, from noise, and that of the others; and the factor
    `(B, 1)` that waveforms are to be multiplied with.
    """

    level: Tensor

    def start(self, spectra: Tensor, first: int) -> Tensor: ...

    def __call__(self, spectra: Tensor, first: int) -> Tensor: ...


class Inverter(nn.Module):
    """What both inverters share: iterations, phases, length and blocks."""

    def __init__(
        self,
        n_iter: int | None,
        quality: str | None,
        momentum: tuple[float, float],
        relaxation: float,
    ):
        super().__init__()
        self.n_iter = iterations(n_iter, quality)
        self.momentum, self.relaxation = momentum, relaxation

    def betas(self) -> list[float]:
        """Momentum of each iteration; the first has no iterate before it."""
        first, last = self.momentum
        steps = max(self.n_iter - 1, 1)
        return [0.0, *(first + (last - first) * k / steps for k in range(1, self.n_iter))]

    def invert(
        self,
        frames: Frames,
        given: Tensor,
        pull: Callable[[Tensor], Pull],
        length: int | None,
        generator: Generators | None,
    ) -> Tensor:
        """Waveforms `(B, N)` of magnitudes or mels `(B, ., T)`, clip by clip or in groups,
        and in blocks of frames.
        """
        generators = generators_of(generator, len(given))
        alone = given.device.type == "cpu"  # last bits depend on the number of rows
        together = BLOCK if alone else ON_GPU
        size = 1 if alone else max(1, together // frames.count)

        @torch.no_grad()
        def one(part: slice) -> Tensor:
            with torch.autocast(given.device.type, enabled=False):
                towards = pull(given[part])
                mask = audible(frames, given[part])
                stages = [Iteration(frames, towards.start, mask=mask)]
                stages += [Iteration(frames, towards, beta, mask) for beta in self.betas()]
                blocks = white_noise(frames, generators[part], given.device, together)
                return run(frames, stages, blocks).mul_(towards.level)

        waves = run_chunks(one, slices(len(given), size), alone and torch.get_num_threads() > 1)
        wave = torch.cat(waves) if len(waves) > 1 else waves[0]
        wanted = frames.length if length is None else length
        return wave if wanted == wave.shape[1] else fit_length(wave, wanted, "start")

    def extra_repr(self) -> str:
        return f"n_iter={self.n_iter}, momentum={self.momentum}, relaxation={self.relaxation:g}"


def iterations(n_iter: int | None, quality: str | None) -> int:
    """Iterations that either asks for; `QUALITY["default"]` when neither does.

    Raises:
        ValueError: both; an unknown quality; fewer than one iteration.
    """
    if n_iter is not None and quality is not None:
        raise ValueError(f"pass n_iter or quality, not both: found {n_iter=} and {quality=}")
    if n_iter is None:
        quality = "default" if quality is None else quality
        if quality not in QUALITY:
            raise ValueError(f"quality must be one of {', '.join(QUALITY)}, found {quality!r}")
        return QUALITY[quality]
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, found {n_iter}")
    return n_iter


def check_magnitudes(given: Tensor, height: int, name: str) -> None:
    """Raise ValueError where `given` is not `(B, height, T >= 2)`, finite and not negative."""
    if given.ndim != 3 or given.shape[1] != height or given.shape[2] < 2 or len(given) < 1:
        raise ValueError(f"expected {name} (B, {height}, T >= 2), found {tuple(given.shape)}")
    low, high = torch.aminmax(given)
    if not bool((low >= 0) & torch.isfinite(high)):
        raise ValueError(
            f"{name} must be finite and not negative, found values from {float(low):g} to "
            f"{float(high):g}: pass magnitudes, not their logarithms"
        )


def audible(frames: Frames, given: Tensor) -> Tensor | None:
    """Hops that may sound, `(B, J, 1)`: samples within a frame without a magnitude are 0. None
    where no frame is silent.
    """
    loudest = given.amax(1)
    silent = loudest <= SILENT * loudest.amax(1, keepdim=True)
    return frames.audible(silent) if bool(silent.any()) else None


def generators_of(generator: Generators | None, n: int) -> Sequence[torch.Generator]:
    """One generator per clip."""
    if generator is None:
        return [torch.Generator().manual_seed(0) for _ in range(n)]
    if isinstance(generator, torch.Generator):
        return [torch.Generator().manual_seed(seed) for seed in clip_seeds(generator, n)]
    if len(generator) != n:
        raise ValueError(f"expected one generator or {n}, one per clip, found {len(generator)}")
    return generator


def white_noise(
    frames: Frames, generators: Sequence[torch.Generator], device: torch.device, together: int
) -> Iterator[tuple[Tensor, bool]]:
    """White noise in hops, `together` frames at a time, and whether it is the last.

    It is drawn for `BLOCK` frames at a time wherever it is used, so that a seed is a sound.
    """
    pieces = -(-frames.count // BLOCK)
    edges = [frames.count * k // pieces for k in range(pieces + 1)]
    edges = [0, *(edge + frames.overlap - 1 for edge in edges[1:])]
    whole = pieces if frames.reflect else max(1, together // BLOCK)
    shape = [(stop - start, frames.hop) for start, stop in itertools.pairwise(edges)]
    for first in range(0, pieces, whole):
        drawn = [
            randn(torch.empty(len(generators), *hops, device=device), generators)
            for hops in shape[first : first + whole]
        ]
        yield torch.cat(drawn, 1) if len(drawn) > 1 else drawn[0], first + whole >= pieces


def run(
    frames: Frames, stages: Sequence[Iteration], blocks: Iterator[tuple[Tensor, bool]]
) -> Tensor:
    """Every block through every stage; the signal `(B, length)` that comes out at the end."""
    out, done = None, 0
    for x, last in blocks:
        if out is None:
            out = x.new_empty(len(x), frames.hops, frames.hop)
        before = None
        for stage in stages:
            x, before = stage.push(x, before, last)
        out[:, done : done + x.shape[1]] = x
        done += x.shape[1]
    assert out is not None
    return frames.signal_of(out)
