r"""Changes planted in normal log-mels, so that a score of cells can be learnt from normals alone.

`plant` gives y = x + w (d - x): x the log-mels `(M, T)` of a normal clip, d those of the clip with
one thing different, w the softened edges of one to five rectangles of cells, of one band and one
length. What differs is drawn anew each time:

    level       louder or quieter
    noise       noise added, of the clip's own colour, or flat
    tremolo     a slow to fast swing of the level
    crackle     impulses added
    gone        what is above the quiet moments of a band, taken away
    dynamics    swings about the local mean, flatter or larger

Reference:
    CutPaste: self-supervised learning for anomaly detection and localization (Li et al., 2021)
"""

from __future__ import annotations

__all__ = ["plant"]

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from sance_audio.detection.descriptors import FLOOR

LOWEST = float(np.log(FLOOR))
SHORTEST = 4
"""Frames of a rectangle."""
LONGEST = 0.6
"""Of the clip."""
WIDEST = 48
"""Bands of a rectangle."""
AGAIN = 0.4
"""Probability of more than one rectangle."""
SPREAD = 0.45
"""Deviation of the log-mels of steady noise, nats."""

Array = np.ndarray
Random = np.random.Generator


def plant(x: Array, rng: Random) -> tuple[Array, Array]:
    """Log-mels with a change, and where it is, both `(M, T)`."""
    where = rectangles(x.shape, rng)
    loud = np.log(max(float(np.exp(x[where]).mean()), FLOOR))
    change = CHANGES[rng.integers(len(CHANGES))](x, loud, rng)
    soft = gaussian_filter(where.astype(np.float32), (0.5, 1.5))
    return np.maximum(x + soft * (change - x), LOWEST).astype(np.float32), where


def rectangles(shape: tuple[int, ...], rng: Random) -> Array:
    """Which cells `(M, T)` are inside."""
    bands, frames = shape
    longest = max(SHORTEST + 1, LONGEST * frames)
    length = min(frames, int(np.exp(rng.uniform(np.log(SHORTEST), np.log(longest)))))
    width = min(bands, round(np.exp(rng.uniform(np.log(1.5), np.log(WIDEST)))))
    low, where = rng.integers(0, bands - width + 1), np.zeros(shape, bool)
    for _ in range(1 if rng.random() > AGAIN else rng.integers(1, 6)):
        start = rng.integers(0, frames - length + 1)
        if not where.any() or where.mean() < LONGEST / 2:
            where[low : low + width, start : start + length] = True
    return where


# Changes: functions of x, of the log-mel of the mean inside the rectangles, and of randomness.


def _noise(shape: tuple[int, ...], rng: Random) -> Array:
    """Of unit deviation, alike in frames whose windows overlap."""
    return 2.1 * gaussian_filter(rng.standard_normal(shape).astype(np.float32), (0.35, 1.2))


def level(x: Array, loud: float, rng: Random) -> Array:
    return x + rng.choice([-1, 1]) * rng.uniform(0.25, 1.5)


def own_noise(x: Array, loud: float, rng: Random) -> Array:
    own = np.log(np.exp(x).mean(1, keepdims=True))
    return np.logaddexp(x, own + rng.uniform(-1, 1.5) + SPREAD * _noise(x.shape, rng))


def flat_noise(x: Array, loud: float, rng: Random) -> Array:
    return np.logaddexp(x, loud + rng.uniform(-1.2, 1.5) + SPREAD * _noise(x.shape, rng))


def tremolo(x: Array, loud: float, rng: Random) -> Array:
    rate = np.exp(rng.uniform(np.log(0.02), np.log(0.45)))
    phase = 2 * np.pi * (rate * np.arange(x.shape[1]) + rng.random())
    return x + rng.uniform(0.3, 1.2) * np.sin(phase)


def crackle(x: Array, loud: float, rng: Random) -> Array:
    struck = rng.random(x.shape[1] + 4) < rng.uniform(0.02, 0.4)
    envelope = np.log(np.convolve(struck, [0.2, 0.8, 1, 0.8, 0.2], "valid").clip(1e-3, 1))
    noise = 0.7 * SPREAD * _noise(x.shape, rng)
    return np.logaddexp(x, loud + rng.uniform(-0.5, 2) + envelope + noise)


def gone(x: Array, loud: float, rng: Random) -> Array:
    quiet = np.quantile(x, 0.2, axis=1, keepdims=True)
    return np.minimum(x, quiet + 0.8 * SPREAD * _noise(x.shape, rng))


def dynamics(x: Array, loud: float, rng: Random) -> Array:
    local = gaussian_filter(x, (0, 10))
    return local + rng.choice([0.5, 1.8]) * (x - local)


Change = Callable[[Array, float, Random], Array]
CHANGES: tuple[Change, ...] = (level, own_noise, flat_noise, tremolo, crackle, gone, dynamics)
