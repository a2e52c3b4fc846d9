"""Recordings as windows at the model's rate, in memory that does not grow with their length.

A recording of up to `HELD` seconds is held; a longer one is decoded twice, block by block: once
for its peak, which every window is scaled by, and whether all samples are numbers; once for its
windows. Both ways give the same windows to the bit: resampling in blocks carries its state.
"""

from __future__ import annotations

__all__ = ["Sound", "listen", "parts_of", "batches", "count_windows", "cut", "resampled"]

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor

from sance_audio import audio
from sance_audio.decoding import opened, refuse_broken, shown

HELD = 60.0
"""Seconds up to which a recording is held in memory."""

PART, SAMPLES = 64, 2**18
"""Windows handed on together, at most, and samples in them (but for a single window)."""

SILENCE_DBFS = -80.0
"""Level below which a recording counts as silent, and, relative to a constant offset, what is
beside that offset."""


@dataclass(frozen=True)
class Sound:
    """A recording, listened to once: what was found, and its windows when asked for."""

    sample_rate: int
    """In Hz, the file's own."""
    channels: int
    seconds: float
    """Duration of what could be decoded."""
    samples: int
    """At the model's rate, N >= 1."""
    held: bool
    """Whether it is held in memory."""
    partial: str
    """As in `audio.Recording`."""
    silent: bool
    constant: bool
    """Whether it is one value throughout, an offset that nobody hears."""
    parts: Callable[[], Iterator[Tensor]]
    """Its windows `(<= PART, length)`, in order, as `audio.windows` cuts them."""


def listen(
    path: str | Path,
    sample_rate: int,
    length: int,
    peak: float | None = None,
    *,
    padded: bool = True,
) -> Sound:
    """Decode a file once.

    Arguments:
        path: Any file that `audio.load` decodes.
        sample_rate: Of the windows, in Hz.
        length: Of a window, in samples.
        peak: What the largest magnitude of the whole recording is scaled to; None leaves levels as
            they are.
        padded: Whether a recording shorter than a window is padded to one; if not, its only
            window is as short as it is.

    Raises:
        AudioError: as `audio.load`; from `parts`, where the file changed in the meantime.
    """
    levels, top, n = _Levels(), torch.zeros(()), 0
    blocks: list[Tensor] = []
    with opened(path) as source:
        rate, channels, frames, _ = source.info
        held = 0 < frames <= HELD * rate
        for y in resampled(levels.watch(source.blocks()), rate, sample_rate):
            top, n = torch.maximum(top, y.abs().max()), n + len(y)
            if held:
                blocks.append(y)
        partial = source.shortfall(levels.count)
    if n == 0:
        raise audio.AudioError(f"{shown(path)}: no samples could be decoded")
    refuse_broken(path, levels.bad)
    factor = None if peak is None else audio.gain(top, peak)

    def parts() -> Iterator[Tensor]:
        found = 0
        for part in _cut(blocks if held else _again(path, sample_rate), length, factor, padded):
            found += len(part) if padded or part.shape[1] == min(n, length) else 0
            yield part
        if found < count_windows(n, length):
            raise audio.AudioError(f"{shown(path)}: the file changed while it was read")

    facts = levels.silent, levels.constant
    return Sound(rate, channels, levels.count / rate, n, held, partial, *facts, parts)


def _again(path: str | Path, sample_rate: int) -> Iterator[Tensor]:
    """A file decoded and resampled once more, block by block."""
    with opened(path) as source:
        yield from resampled(source.blocks(), source.info.sample_rate, sample_rate)


def parts_of(
    waveform: Tensor, length: int, peak: float | None = None, *, padded: bool = True
) -> Iterator[Tensor]:
    """`audio.windows` of a waveform `(N,)`, at most `PART` at once; `padded` as of `listen`."""
    factor = None if peak is None else audio.gain(waveform.abs().max(), peak)
    return _cut([waveform], length, factor, padded)


def batches(
    clips: Iterable[Iterable[Tensor]], size: int
) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Parts of clips joined to at most `size` windows `(W, N)`, with the clip that each part is of
    and the part's number of windows.
    """
    parts: list[Tensor] = []
    owners: list[tuple[int, int]] = []
    for i, clip in enumerate(clips):
        for part in clip:
            if parts and sum(n for _, n in owners) + len(part) > size:
                yield torch.cat(parts), owners
                parts, owners = [], []
            parts.append(part)
            owners.append((i, len(part)))
    if parts:
        yield torch.cat(parts), owners


def count_windows(n: int, length: int) -> int:
    """How many windows `audio.windows` cuts from n samples.

    >>> [count_windows(n, 4) for n in (1, 4, 5, 6, 7)]
    [1, 1, 2, 2, 3]
    """
    return 1 + max(0, -(-(n - length) // (length // 2)))


def _cut(
    blocks: Iterable[Tensor], length: int, factor: Tensor | None, padded: bool = True
) -> Iterator[Tensor]:
    """The windows of samples that come in blocks, scaled by `factor`, some at a time."""
    scaled = blocks if factor is None else (block * factor for block in blocks)
    together = max(1, min(PART, SAMPLES // length))
    ready: list[Tensor] = []
    for _, window in cut(scaled, length):
        ready.append(audio.fit_length(window, length) if padded else window)
        if len(ready) == together:
            yield torch.stack(ready)
            ready = []
    if ready:
        yield torch.stack(ready)


def cut(blocks: Iterable[Tensor], length: int) -> Iterator[tuple[int, Tensor]]:
    """Samples that come in blocks `(n,)` as windows, each as soon as it is whole: where it begins,
    and its samples `(length,)`. The windows are those of `audio.windows`; fewer samples than one
    window has are a window as short as they are, at the end of the blocks.
    """
    here, held = 0, torch.zeros(0)
    start, last = 0, -1
    for block in blocks:
        held = torch.cat([held, block])
        while start + length <= here + len(held):
            yield start, held[start - here : start - here + length]
            start, last = start + max(1, length // 2), start
        gone = max(0, len(held) - length)
        here, held = here + gone, held[gone:]
    if len(held) and last < here:
        yield here, held


def resampled(blocks: Iterable[Tensor], rate: int, new_rate: int) -> Iterator[Tensor]:
    """`audio.resample` of a waveform that comes in blocks `(n,)`; rates in Hz."""
    if rate == new_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, new_rate, 1, "float32", quality="HQ")
    first, n = None, 0
    for block in blocks:
        first = block[:1] if first is None else first
        y = stream.resample_chunk(block.numpy())
        n += len(y)
        if len(y):
            yield torch.from_numpy(y)
    y = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    if len(y):
        yield torch.from_numpy(y)
    elif n == 0 and first is not None:
        yield first.clone()


class _Levels:
    """What is summed up over the samples of a file, at its own rate."""

    def __init__(self) -> None:
        self.count, self.bad = 0, 0
        self.total, self.squares = 0.0, 0.0

    def watch(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        for block in blocks:
            x = block.double()
            self.count += len(x)
            self.bad += int((~x.isfinite()).sum())
            self.total += float(x.sum())
            self.squares += float(x.square().sum())
            yield block

    @property
    def silent(self) -> bool:
        return _dbfs(self.squares / self.count) < SILENCE_DBFS

    @property
    def constant(self) -> bool:
        mean, square = self.total / self.count, self.squares / self.count
        beside = max(0.0, square - mean**2) / max(square, 1e-300)
        return not self.silent and self.count > 1 and _dbfs(beside) < SILENCE_DBFS


def _dbfs(square: float) -> float:
    return 10 * math.log10(max(square, 1e-24))
