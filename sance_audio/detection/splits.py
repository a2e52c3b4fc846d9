"""Which recordings calibrate, and which are fitted."""

from __future__ import annotations

__all__ = ["SHARE", "clips_needed", "held_out"]

import numpy as np

from sance_audio.detection.conformal import needed

SHARE = 0.4
"""Of the recordings that calibrate, at least."""
FEWEST = 2
"""Recordings that are left to fit, at least."""

Array = np.ndarray


def clips_needed(alpha: float, calibration: float | None) -> int:
    """Recordings without which `held_out` raises."""
    fewest = needed(alpha)
    if calibration:
        fewest = int(np.ceil(fewest / calibration - 1e-9))
    return max(FEWEST + 1, fewest + (0 if calibration else FEWEST))


def held_out(groups: Array, alpha: float, calibration: float | None, seed: int) -> Array:
    """Which clips calibrate, `(n,)`; those of one recording together.

    Arguments:
        groups: `(n,)`: the recording of each.
        alpha, calibration, seed: As of `EnergyDetector`.

    Raises:
        ValueError: no clips, or too few recordings.
    """
    if len(groups) == 0:
        raise ValueError("no clips were given: 0 samples, at least 1 is required")
    names = np.unique(groups)
    count, fewest = len(names), needed(alpha)
    if calibration == 0:
        number, fewest = 0, 0
    elif calibration is None:
        number = max(fewest, round(SHARE * count))
    else:
        number = round(calibration * count)
    if number < fewest or count - number < FEWEST:
        raise ValueError(
            f"{count} recordings (n_samples={len(groups)}) are too few: alpha={alpha} needs "
            f"{fewest} that calibrate and {FEWEST} or more to fit, found {min(number, count)} and "
            f"{max(0, count - number)}; pass {clips_needed(alpha, calibration)} or more "
            f"recordings, raise alpha, or give calibration=0 for scores without p-values"
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.isin(groups, names[order[:number]])
