"""Where one clip is odd, window by window.

Of half-overlapping windows each gives the frames that are nearer to its middle than to its
neighbours', so that memory is that of the answer alone.
"""

from __future__ import annotations

__all__ = ["frame_scores", "map_of"]

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from sance_audio import audio
from sance_audio.detection.maps import LocalScorer, frames_of
from sance_audio.detection.regions import FrameScores, ScoreMap
from sance_audio.detection.rows import Describer, waveform
from sance_audio.streams import parts_of

Array = np.ndarray


def map_of(describer: Describer, local: LocalScorer, clip: Any) -> ScoreMap:
    """When and in what bands one clip is odd."""
    parts = list(_windows(describer, local, clip))
    score = np.concatenate([part for _, part in parts], 1)
    seconds = np.concatenate([times for times, _ in parts])
    return ScoreMap(seconds, describer.descriptors.hertz, score, local.p_cells(score))


def frame_scores(describer: Describer, local: LocalScorer, clip: Any) -> FrameScores:
    """When one clip is odd, by the oddest bands of each frame."""
    parts = [(times, frames_of(part)) for times, part in _windows(describer, local, clip)]
    seconds, score = (np.concatenate(both) for both in zip(*parts, strict=True))
    return FrameScores(seconds, score, local.p_frames(score))


def _windows(describer: Describer, local: LocalScorer, clip: Any) -> Iterator[tuple[Array, Array]]:
    """Of each window the frames that are its own: their seconds `(t,)` and scores `(M, t)`."""
    rate, length = describer.sample_rate, describer.length
    if isinstance(clip, (str, Path)):
        sound = describer.listen(clip)
        n, parts = sound.samples, sound.parts()
    else:
        wave = waveform(clip, rate)
        n, parts = len(wave), parts_of(wave, length, padded=False)
    starts = list(audio.window_starts(n, length)) if n > length else [0]
    middles = [(a + b + length) / 2 for a, b in itertools.pairwise(starts)]
    borders = np.array([0.0, *middles, n + 1.0]) / rate
    windows = (window for part in parts for window in part)
    for i, window in enumerate(windows):
        x = _log_mel(describer, window)
        times = starts[i] / rate + np.arange(x.shape[1]) * describer.descriptors.seconds_per_frame
        own = (times >= borders[i]) & (times < borders[i + 1])
        yield times[own], local(x)[:, own]


def _log_mel(describer: Describer, wave: Tensor) -> Tensor:
    own = describer.descriptors
    x = audio.resample(describer.scaled(wave), describer.sample_rate, own.sample_rate)
    return own.features(pad(x, (0, max(0, own.n_fft - len(x)))).unsqueeze(0))[0, 0]
