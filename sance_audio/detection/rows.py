"""Clips described: windows, each with its vectors, log-mels and energies.

A recording is cut into half-overlapping windows; a shorter one is one window, as long as it is.
Each window is scaled to one peak, as if it were a recording of its own: what is loud elsewhere
says nothing of it, and it can be judged before the recording ends. Nothing is held longer than it
is needed.
"""

from __future__ import annotations

__all__ = ["LONGEST", "Clips", "Describer", "Row", "gathered", "statistics", "waveform", "whole"]

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sance_audio import audio
from sance_audio.chunks import chunk_size, chunked, run_chunks, slices
from sance_audio.detection.descriptors import Descriptors
from sance_audio.model import AudioEBM
from sance_audio.streams import Sound, listen, parts_of

SHORTEST, LONGEST = 2.5, 10.0
"""Seconds of a window, where nothing else is asked for."""
ROOM = 1.1
"""Its length, of that of the longest normal."""
PEAK = 0.5
LOWEST_RATE = 8_000
"""Hz; recordings of lower rates are described at it."""
TOGETHER, SAMPLES = 64, 2**18
"""Windows, or samples in them, from which on windows are described together."""
BATCH = 64
"""Windows that go through the model together, at most."""
GROUPS = 8
"""Of bands, and of frames, whose residual energies are told apart."""

Array = np.ndarray
Clips = Iterable[Any]
"""Paths, arrays `(N,)` at the detector's rate, or pairs (array, sample rate in Hz)."""


@dataclass
class Row:
    """One window."""

    clip: int
    """Number of the clip that it is of."""
    vectors: dict[str, Array]
    log_mel: Tensor
    """`(M, T)`."""
    samples: int = 0
    energy: float = float("nan")
    """Mean over the model's windows in it, nats; NaN without a model."""
    windows: int = 0
    """Of the model, in it."""
    log_p: Array | None = None
    """log p(y | x) summed over them, `(classes,)`."""


class Describer:
    """Makes rows of clips.

    Arguments:
        sample_rate: Of plain arrays and of the analysis, in Hz.
        model: Whose energies are part of a row; at the same rate.
        learnt: Whether its network counts, or its Gaussian reference alone.
        window: Seconds of a window; `LONGEST` when None.
    """

    def __init__(
        self,
        sample_rate: int,
        model: AudioEBM | None = None,
        learnt: bool = True,
        window: float | None = None,
    ):
        self.sample_rate, self.model, self.learnt = sample_rate, model, learnt
        self.length = max(1, round((LONGEST if window is None else window) * sample_rate))
        self.descriptors = Descriptors(max(sample_rate, LOWEST_RATE))
        self.peak = PEAK if model is None else model.peak

    def listen(self, path: str | Path) -> Sound:
        """A file, with its windows.

        Raises:
            AudioError: a file that cannot be decoded.
        """
        return listen(path, self.sample_rate, self.length, padded=False)

    def shorten(self, rows: Sequence[Row]) -> None:
        """From now on, windows a little longer than the longest of these rows, within bounds: a
        clip as long as normals are, to a few samples, stays one.
        """
        longest = round(ROOM * max((row.samples for row in rows), default=0))
        self.length = min(self.length, max(longest, round(SHORTEST * self.sample_rate)))

    def scaled(self, window: Tensor) -> Tensor:
        """A window `(N,)` at the peak that all are described at."""
        return window if self.peak is None else window * audio.gain(window.abs().max(), self.peak)

    def windows(self, clips: Clips) -> Iterator[Iterator[Tensor]]:
        """Of each clip, its windows: parts `(<= PART, <= length)`, made when asked for."""
        return (self._parts(clip) for clip in clips)

    def _parts(self, clip: Any) -> Iterator[Tensor]:
        if isinstance(clip, (str, Path)):
            return self.listen(clip).parts()
        wave = waveform(clip, self.sample_rate)
        return parts_of(wave, self.length, padded=False)

    def rows(
        self, clips: Iterable[Iterable[Tensor]], classes: bool = False
    ) -> Iterator[list[Row]]:
        """Rows of the windows of clips, some at a time, in order; those of one clip may come in
        several lists. `classes` asks for `log_p`.
        """
        waiting: list[tuple[int, Tensor]] = []
        for i, clip in enumerate(clips):
            for part in clip:
                waiting += [(i, window) for window in part]
                held = sum(len(window) for _, window in waiting)
                if len(waiting) >= TOGETHER or held >= SAMPLES:
                    yield self.described(waiting, classes)
                    waiting = []
        if waiting:
            yield self.described(waiting, classes)

    def described(self, windows: Sequence[tuple[int, Tensor]], classes: bool = False) -> list[Row]:
        """Rows of windows `(N,)`, each with the number of its clip."""
        rate = self.descriptors.sample_rate
        waves = [self.scaled(wave) for _, wave in windows]

        def one(part: slice) -> Row:
            (i, _), wave = windows[part.start], waves[part.start]
            own = self.descriptors(audio.resample(wave, self.sample_rate, rate))
            return Row(i, *own, samples=len(wave))

        rows = run_chunks(one, slices(len(windows), 1))
        if self.model is not None:
            self._add_energies(self.model, rows, waves, classes)
        return rows

    def _add_energies(
        self, model: AudioEBM, rows: list[Row], waves: list[Tensor], classes: bool
    ) -> None:
        cut = [audio.windows(wave, model.window) for wave in waves]
        counts = [len(part) for part in cut]
        found: list[tuple[Tensor, ...]] = []
        for some in torch.cat(cut).split(BATCH):
            x = model.log_mels(some)
            energy, s = statistics(model, x, self.learnt)
            found.append((energy, s, model.classify(x) if classes else s[:, :0]))
        columns = (torch.cat(column).double().cpu() for column in zip(*found, strict=True))
        parts = zip(rows, *(column.split(counts) for column in columns), strict=True)
        for row, e, own, p in parts:
            row.energy, row.windows, row.log_p = float(e.mean()), len(e), p.sum(0).numpy()
            mean = own.mean(0)
            row.vectors["energy"] = torch.cat([mean, own.amax(0) - mean]).numpy()


@torch.no_grad()
def statistics(model: AudioEBM, x: Tensor, learnt: bool = True) -> tuple[Tensor, Tensor]:
    """Energies and energy statistics of log-mels `(B, 1, M, T)`.

    Returns:
        -log p(x) `(B,)` in nats, and s(x) `(B, S)`: the energy, then what `terms` gives.
        Everything but the energies is on a logarithmic scale.
    """
    energy = model.energy_of(x, reference_only=not learnt)
    size = chunk_size(x.device)
    found = chunked(
        lambda rows: terms(model, rows, model.component_of(rows), learnt), x, size=size
    )
    return energy, torch.cat([energy.unsqueeze(1), found], 1)


def terms(model: AudioEBM, x: Tensor, c: Tensor, learnt: bool = True) -> Tensor:
    """Of log-mels `(B, 1, M, T)` under the components c `(B,)`: the modelled and the residual part
    of the Gaussian, the residual's part in each of `GROUPS` groups of bands and of frames, and
    (with `learnt`) the network's energy, `(B, S - 1)`.
    """
    noisy = x + model.jitter
    gaussian = model.reference.given(c)
    modelled, residual = gaussian.parts(noisy)
    u = noisy.flatten(1) - gaussian.mean
    outside = u - (gaussian.basis @ (gaussian.basis.mT @ u.unsqueeze(2))).squeeze(2)
    cells = (outside.square() / gaussian.remainder.unsqueeze(1)).view(-1, 1, *model.shape)
    bands = torch.nn.functional.adaptive_avg_pool2d(cells, (GROUPS, 1)).flatten(1)
    times = torch.nn.functional.adaptive_avg_pool2d(cells, (1, GROUPS)).flatten(1)
    columns = [modelled.log().unsqueeze(1), residual.log().unsqueeze(1), bands.log(), times.log()]
    if learnt:
        columns.append(model.density.learnt(noisy, c).unsqueeze(1))
    return torch.cat(columns, 1)


def gathered(rows: Sequence[Row]) -> dict[str, Array]:
    """The vectors of rows, `(n, D)` each."""
    return {name: np.stack([row.vectors[name] for row in rows]) for name in rows[0].vectors}


def waveform(clip: Any, sample_rate: int) -> Tensor:
    """An array, or an array and its rate, as a mono waveform `(N,)` at `sample_rate` Hz.

    Raises:
        ValueError: another shape, no samples, or samples that are not finite.
    """
    rate = sample_rate
    if is_pair(clip):
        clip, rate = clip[0], int(clip[1])
    wave = torch.from_numpy(np.array(np.asarray(clip), np.float32))
    if wave.ndim != 1 or len(wave) == 0:
        raise ValueError(f"a clip is a waveform (N,) with N >= 1, found shape {tuple(wave.shape)}")
    if not bool(torch.isfinite(wave).all()):
        raise ValueError("a clip holds NaN or infinite samples")
    return audio.resample(wave, rate, sample_rate)


def is_pair(clip: Any) -> bool:
    """Whether a clip is an array with its rate."""
    return (
        isinstance(clip, Sequence)
        and not isinstance(clip, str)
        and len(clip) == 2
        and np.ndim(clip[1]) == 0
        and np.ndim(clip[0]) >= 1
    )


def whole(clip: Any, sample_rate: int) -> Tensor:
    """A clip, or a file, as one waveform `(N,)` at `sample_rate` Hz."""
    if isinstance(clip, (str, Path)):
        return audio.read(clip, sample_rate)[0]
    return waveform(clip, sample_rate)
