"""What users pass, checked: clips, their groups, their rate."""

from __future__ import annotations

__all__ = ["check_parameters", "clips_of", "groups_of", "rate_of"]

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sance_audio import audio
from sance_audio.detection.contrast import PRESETS
from sance_audio.detection.rows import LOWEST_RATE, Clips, is_pair
from sance_audio.model import AudioEBM

HIGHEST_RATE = 16_000
"""Hz, that clips of unlike rates are brought to at most."""


def check_parameters(detector: Any) -> None:
    """Raise ValueError for a parameter of an `EnergyDetector` that cannot be."""
    for name, allowed in (
        ("score", ("typicality", "energy")),
        ("preset", tuple(PRESETS)),
        ("aggregate", ("mean", "max")),
    ):
        if getattr(detector, name) not in allowed:
            choice = " or ".join(map(repr, allowed))
            raise ValueError(f"{name} must be {choice}, found {getattr(detector, name)!r}")
    calibration, alpha = detector.calibration, detector.alpha
    if calibration is not None and not 0 <= calibration < 1:
        raise ValueError(f"calibration is a share between 0 and 1, found {calibration}")
    if detector.window is not None and not 0.05 <= detector.window <= 600:
        raise ValueError(f"window is a number of seconds from .05 to 600, found {detector.window}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a false-alarm rate between 0 and 1, found {alpha}")


def clips_of(X: Any) -> Clips:
    """Clips as they were given; of a folder, the audio files below it.

    Raises:
        ValueError: one array instead of several; complex numbers.
        TypeError: a sparse matrix; what cannot be gone through.
    """
    if hasattr(X, "toarray"):
        raise TypeError("sparse input is not supported: pass waveforms as dense arrays")
    if isinstance(X, (str, Path)) and Path(X).is_dir():
        return audio.find_audio([X])
    if isinstance(X, (str, Path)):
        raise TypeError(
            f"expected several clips, found the path {X}: pass a folder or a list of paths"
        )
    if hasattr(X, "__array__") and not isinstance(X, (np.ndarray, Tensor)):  # a data frame, say
        X = np.asarray(X)
    if isinstance(X, np.ndarray):
        if np.iscomplexobj(X):
            raise ValueError("Complex data not supported: waveforms are real")
        if X.ndim == 1 and X.dtype != object:
            raise ValueError(
                f"expected clips (B, N) or a list of them, found one array {X.shape}. Reshape "
                f"your data: one clip is (1, N)"
            )
        if X.ndim == 2 and X.shape[1] < 2:
            raise ValueError(
                f"{X.shape[1]} feature(s) (shape={X.shape}) while a minimum of 2 is required: a "
                f"clip of a single sample is no sound (n_features={X.shape[1]})"
            )
    return X


def groups_of(groups: Any, count: int) -> np.ndarray:
    """The recording of each of `count` clips, `(count,)`; each its own when None.

    Raises:
        ValueError: another number of them.
    """
    if groups is None:
        return np.arange(count)
    found = np.asarray(groups)
    if found.shape != (count,):
        raise ValueError(f"expected a group for each of {count} clips, found {found.shape}")
    return np.unique(found, return_inverse=True)[1]


def rate_of(X: Clips, model: AudioEBM | None, sample_rate: int | None) -> int:
    """The rate of a detector, in Hz: the model's, or the one asked for, or the commonest of the
    clips, between 8 and 16 kHz.

    Raises:
        ValueError: another rate than the model's.
    """
    if model is not None:
        if sample_rate not in (None, model.sample_rate):
            raise ValueError(
                f"sample_rate={sample_rate}, the model's is {model.sample_rate}: leave it out"
            )
        return model.sample_rate
    if sample_rate is not None:
        if sample_rate < 1:
            raise ValueError(f"sample_rate must be positive, found {sample_rate}")
        return sample_rate
    rates: Counter[int] = Counter()
    for clip in X:
        if isinstance(clip, (str, Path)):
            rates[audio.info(clip).sample_rate] += 1
        elif is_pair(clip):
            rates[int(clip[1])] += 1
    common = rates.most_common(1)[0][0] if rates else HIGHEST_RATE
    return min(max(common, LOWEST_RATE), HIGHEST_RATE)
