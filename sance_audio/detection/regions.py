"""Where a clip is odd: cells of time and frequency, frames, rectangles."""

from __future__ import annotations

__all__ = ["FrameScores", "Region", "ScoreMap"]

from typing import NamedTuple

import numpy as np

FEWEST = 9
"""Cells of a region."""

Array = np.ndarray


class Region(NamedTuple):
    """A rectangle round cells that are odd and adjoin."""

    start: float
    """Seconds."""
    end: float
    low: float
    """Hz."""
    high: float
    score: float
    """The largest in it."""


class FrameScores(NamedTuple):
    """When a clip is odd."""

    seconds: Array
    """Centres of the frames `(T,)`."""
    score: Array
    """`(T,)`; higher is odder."""
    p_value: Array
    """`(T,)`: about a share alpha of the frames of normals is at or below alpha."""


class ScoreMap(NamedTuple):
    """When and in what bands a clip is odd."""

    seconds: Array
    """Centres of the frames `(T,)`."""
    hertz: Array
    """Centres of the bands `(M,)`."""
    score: Array
    """`(M, T)`; higher is odder."""
    p_value: Array
    """`(M, T)`: about a share alpha of the cells of normals, in each band, is at or below alpha.
    An estimate from the recordings that calibrate, without the guarantee of a clip's p-value.
    """

    def regions(self, alpha: float = 0.01) -> list[Region]:
        """Rectangles round adjoining cells with p <= alpha, the oddest first. Of `alpha` of a
        normal clip's cells some adjoin too: a region is a place to listen to, no verdict.

        Raises:
            ValueError: alpha outside (0, 1).
        """
        from scipy.ndimage import find_objects, label

        if not 0 < alpha < 1:
            raise ValueError(f"alpha is a false-alarm rate between 0 and 1, found {alpha}")
        number, _ = label(self.p_value <= alpha)
        times, bands = _edges(self.seconds), _edges(self.hertz)
        found = []
        for i, (band, time) in enumerate(find_objects(number), 1):
            cells = self.score[band, time][number[band, time] == i]
            if len(cells) >= FEWEST:
                start, end = times[[time.start, time.stop]].tolist()
                low, high = bands[[band.start, band.stop]].tolist()
                found.append(Region(max(0.0, start), end, max(0.0, low), high, float(cells.max())))
        return sorted(found, key=lambda region: -region.score)


def _edges(centres: Array) -> Array:
    """Of n intervals, half-way between their centres `(n,)`: `(n + 1,)`."""
    if len(centres) == 1:
        return np.array([centres[0], centres[0]])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
