"""Scores while a sound goes on: a window is scored as soon as it is whole, and then forgotten."""

from __future__ import annotations

__all__ = ["WindowScore", "mono", "stream"]

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sance_audio.decoding import RATES
from sance_audio.detection.rows import Describer, Row, is_pair
from sance_audio.streams import cut, resampled


class WindowScore(NamedTuple):
    """What was found of one window of a stream."""

    start: float
    """Seconds since the beginning."""
    end: float
    anomaly_score: float
    p_value: float
    """Of a window of a new recording; NaN without calibration."""
    energy: float
    """Nats; NaN without a model."""
    odd: bool
    """Whether it is called odd at the detector's false-alarm rate; without calibration, above the
    quantile of the normals' scores that `predict` takes, which is one of whole recordings."""


def stream(
    describer: Describer, blocks: Iterable[Any], sample_rate: int | None
) -> Iterator[tuple[tuple[float, float], Row]]:
    """Of each window of a sound that comes in blocks: from when to when, in seconds, and its row.

    Arguments:
        sample_rate: Of the blocks, in Hz; the describer's when None.

    Raises:
        ValueError: as `mono`; a rate below 1 Hz, or above 1 MHz.
    """
    own = describer.sample_rate
    rate = own if sample_rate is None else sample_rate
    if not 1 <= rate <= RATES[1]:
        raise ValueError(f"sample_rate must be positive, at most {RATES[1]} Hz, found {rate}")
    for start, window in cut(resampled(mono(blocks, rate), rate, own), describer.length):
        (row,) = describer.described([(0, window)])
        yield (start / own, (start + len(window)) / own), row


def mono(blocks: Iterable[Any], sample_rate: int) -> Iterator[Tensor]:
    """Blocks `(n,)`, n >= 0, or pairs of a block and its rate in Hz, as tensors.

    Raises:
        ValueError: a block of another shape, with samples that are not finite, or of another rate
            than `sample_rate`; said where in the stream.
    """
    samples = 0
    for block in blocks:
        rate = sample_rate
        if is_pair(block):
            block, rate = block[0], int(block[1])
        where = f"block at {samples / sample_rate:.2f} s of the stream"
        if rate != sample_rate:
            expected = (
                f"the stream began at {sample_rate} Hz; begin another where the rate changes"
            )
            if samples == 0:
                expected = f"expected {sample_rate} Hz; give sample_rate={rate}"
            raise ValueError(f"{where}: comes at {rate} Hz, {expected}")
        wave = torch.from_numpy(np.array(np.asarray(block), np.float32))
        if wave.ndim != 1:
            raise ValueError(
                f"{where}: expected samples (n,), found shape {tuple(wave.shape)}; mix channels "
                f"down first"
            )
        if not bool(torch.isfinite(wave).all()):
            raise ValueError(f"{where}: holds NaN or infinite samples")
        samples += len(wave)
        yield wave
