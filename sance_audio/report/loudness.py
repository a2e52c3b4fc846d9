r"""How loud a clip is, and the gains that make clips equally loud.

Loudness as in ITU-R BS.1770-4, of one channel: the mean square behind two filters, a shelf for
the head and a high-pass for the ear,

    L = -0.691 + 10 log10 mean(y^2)   LUFS,

over blocks of 400 ms. Of a clip, the loudest block (its largest momentary loudness) counts:
programme loudness, with its gates, is not defined below 400 ms, and half a second of a drum is
mostly its end.
"""

from __future__ import annotations

__all__ = ["gains", "loudness"]

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

BLOCK = 0.4
"""Seconds of a block; neighbours overlap by three quarters."""
SILENT = -70.0
"""LUFS below which there is nothing to hear (the absolute gate of BS.1770)."""
DEEPEST = 15.0
"""Decibels that clips are turned down by, at most, below the median loudness: the quietest clips
stay quieter rather than silence all others."""

Array = np.ndarray


def loudness(waveform: Tensor, sample_rate: int) -> float:
    """The largest momentary loudness of `(N,)`, in LUFS; -inf of silence.

    A full-scale sine at 997 Hz has -3.01 LUFS, by definition:

    >>> import torch
    >>> t = torch.arange(48000) / 48000
    >>> round(loudness(torch.sin(2 * torch.pi * 997 * t), 48000), 1)
    -3.0
    """
    from scipy.signal import lfilter

    y = waveform.detach().cpu().double().numpy()
    for b, a in _weighting(sample_rate):
        y = lfilter(b, a, y)
    size = max(1, round(BLOCK * sample_rate))
    y = np.pad(y, (0, max(0, size - len(y))))  # a shorter clip is as loud as in silence
    total = np.concatenate([[0.0], np.cumsum(y**2)])
    starts = np.arange(0, len(y) - size + 1, max(1, size // 4))
    mean = float((total[starts + size] - total[starts]).max()) / size
    return -0.691 + 10 * math.log10(mean) if mean > 1e-15 else -math.inf


def gains(levels: Sequence[float]) -> list[float]:
    """Factors, none above 1, that bring clips of these loudnesses (LUFS) to that of the quietest.

    Clips that are far quieter than most, or silent, stay as they are and do not decide.

    >>> [round(g, 2) for g in gains([-20.0, -26.0, -23.0])]
    [0.5, 1.0, 0.71]
    >>> [round(g, 2) for g in gains([-20.0, -20.0, -90.0])]
    [1.0, 1.0, 1.0]
    """
    heard = [level for level in levels if level > SILENT]
    if not heard:
        return [1.0] * len(levels)
    target = max(min(heard), float(np.median(heard)) - DEEPEST)
    return [min(1.0, 10 ** ((target - level) / 20)) for level in levels]


def _weighting(sample_rate: int) -> list[tuple[Array, Array]]:
    """The two filters of K-weighting at any rate: the analogue prototypes that BS.1770's figures
    for 48 kHz come from, by the bilinear transform. A rate with no room for the shelf goes
    without.
    """
    filters = []
    if sample_rate > 2 * 1700:
        k, q = math.tan(math.pi * 1681.974450955533 / sample_rate), 0.7071752369554196
        high = 10 ** (3.999843853973347 / 20)
        band = high**0.4996667741545416
        a0 = 1 + k / q + k * k
        b = [high + band * k / q + k * k, 2 * (k * k - high), high - band * k / q + k * k]
        filters.append(_normed(b, [a0, 2 * (k * k - 1), 1 - k / q + k * k]))
    k, q = math.tan(math.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    a0 = 1 + k / q + k * k
    low = [1.0, -2.0, 1.0], [a0, 2 * (k * k - 1), 1 - k / q + k * k]
    filters.append((np.array(low[0]), np.array(low[1]) / a0))
    return filters


def _normed(b: Sequence[float], a: Sequence[float]) -> tuple[Array, Array]:
    return np.array(b) / a[0], np.array(a) / a[0]
