r"""Scores of normals that touched no fit, and what they say of a new score.

G recordings (groups), each with clips of its own, whose scores are s_gi. For a clip of a new
recording with score s

    p(s) = (1 + sum_g mean_i [s_gi >= s]) / (G + 1)

is at most alpha with probability at most alpha, whatever the distribution of scores: recordings
are exchangeable, clips of one recording need not be. With one clip each this is split conformal
prediction.

References:
    Testing for outliers with conformal p-values (Bates et al., 2023)
    Distribution-free inference for regression with hierarchical data (Lee, Barber & Willett, 2023)
"""

from __future__ import annotations

__all__ = ["Calibration", "gamma_threshold", "needed"]

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
SLACK = 1e-9


def needed(alpha: float) -> int:
    """Recordings without which no p-value reaches alpha: the smallest G with
    `alpha >= 1 / (G + 1)`.

    >>> needed(0.05), needed(0.1), needed(0.5)
    (19, 9, 1)
    """
    return int(np.ceil(1 / alpha - SLACK)) - 1


@dataclass(frozen=True)
class Calibration:
    """Scores `(n,)` in ascending order, and the weight of each, `1 / clips of its recording`."""

    scores: Array
    weights: Array

    @classmethod
    def of(cls, scores: Array, groups: Array) -> Calibration:
        """Of scores `(n,)` and the recording of each."""
        _, number, count = np.unique(groups, return_inverse=True, return_counts=True)
        order = np.argsort(scores, kind="stable")
        return cls(scores[order], 1.0 / count[number][order])

    @property
    def recordings(self) -> int:
        """G."""
        return round(float(self.weights.sum()))

    def p_value(self, score: Array) -> Array:
        """p of scores `(B,)`, between 1 / (G + 1) and 1."""
        above = np.concatenate([np.cumsum(self.weights[::-1])[::-1], [0.0]])
        at_least = above[np.searchsorted(self.scores, score, side="left")]
        return (1 + at_least) / (self.recordings + 1)

    def threshold(self, alpha: float) -> float:
        """The largest calibration score whose p-value exceeds alpha: scores above it are odd.

        Raises:
            ValueError: alpha that no p-value of so few recordings reaches.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is a false-alarm rate between 0 and 1, found {alpha}")
        if self.recordings < needed(alpha):
            raise ValueError(
                f"alpha={alpha} is below 1 / (n + 1) = {1 / (self.recordings + 1):.3g} for the "
                f"n = {self.recordings} recordings that calibrate: no score could be called odd; "
                f"calibrate with {needed(alpha)} or more, or raise alpha"
            )
        return float(self.scores[self.p_value(self.scores) > alpha + SLACK][-1])


def gamma_threshold(scores: Array, quantile: float = 0.9) -> float:
    """The quantile of a gamma distribution fitted to normals' scores `(n,)`, as the DCASE
    baselines set their thresholds. It rests on the fit, not on a guarantee.

    Raises:
        ValueError: a quantile outside (0, 1); scores that are all the same.
    """
    from scipy.stats import gamma

    if not 0 < quantile < 1:
        raise ValueError(f"quantile lies between 0 and 1, found {quantile}")
    spread = float(scores.std())
    if not spread > 0:
        raise ValueError(f"{len(scores)} scores are all the same: no distribution can be fitted")
    origin = float(scores.min()) - 0.1 * spread  # scores may be negative; a gamma starts at 0
    shape, _, scale = gamma.fit(scores - origin, floc=0)
    return origin + float(gamma.ppf(quantile, shape, scale=scale))
