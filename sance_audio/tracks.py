r"""Recordings as they are: every channel, in numbers that lose nothing, and back into a WAV.

Integer PCM is held as int16 or int32, at the integer's own full scale, and float formats as floats
of their own width, so that what is read and written again is the same to the bit. A format that
loses (MP3, Ogg, A-law) is held as float32, and written as a float WAV.
"""

from __future__ import annotations

__all__ = ["Track", "read_track", "write_track", "channels_of"]

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from sance_audio.decoding import AudioError, opened, shown
from sance_audio.files import write_whole

KEPT = {
    "PCM_S8": "PCM_U8",  # a WAV has no signed bytes; the values are the same
    "PCM_U8": "PCM_U8",
    "PCM_16": "PCM_16",
    "PCM_24": "PCM_24",
    "PCM_32": "PCM_32",
    "ALAC_16": "PCM_16",
    "ALAC_24": "PCM_24",
    "ALAC_32": "PCM_32",
    "FLOAT": "FLOAT",
    "DOUBLE": "DOUBLE",
}
"""Subtypes that lose nothing, and those that a WAV keeps them in."""
BITS = {"PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
LARGEST = 2**32 - 2**16
"""Bytes of sound that a WAV holds."""


class Track(NamedTuple):
    """A recording of several channels."""

    samples: np.ndarray
    """`(N, channels)`: int16, int32, float32 or float64."""
    sample_rate: int
    """In Hz."""
    subtype: str
    """Of the WAV that keeps it: "PCM_16" and so on, "FLOAT" or "DOUBLE"."""
    partial: str = ""
    """In words: less was there than the header announces; empty where all was."""

    @property
    def rows(self) -> Tensor:
        """The samples `(channels, N)` as they are held, not copied."""
        return torch.from_numpy(self.samples).T

    @property
    def full_scale(self) -> float:
        """What stands for 1 in the samples."""
        integer = self.samples.dtype.kind == "i"
        return 2.0 ** (8 * self.samples.dtype.itemsize - 1) if integer else 1.0

    def replaced(self, part: Tensor, first: int) -> Track:
        """The same track but for the samples from `first` on, which are those of `part`
        `(channels, n)`, of full scale 1, rounded to what the subtype holds.
        """
        samples, new = self.samples.copy(), part.T.numpy()
        if self.subtype in BITS:
            full = self.full_scale
            step = 2 * full / 2 ** BITS[self.subtype]
            new = (new.astype(np.float64) * (full / step)).round() * step
            new = new.clip(-full, full - step)
        samples[first : first + len(new)] = new.astype(samples.dtype)
        return self._replace(samples=samples)


def read_track(path: str | Path) -> Track:
    """Decode a file, all channels, at its own rate. Samples may be NaN or infinite.

    Raises:
        AudioError: missing, empty, not audio, or without samples.
    """
    with opened(path) as source:
        samples, kind = source.exact(KEPT)
        partial = source.shortfall(len(samples))
    if len(samples) == 0:
        raise AudioError(f"{shown(path)}: no samples could be decoded; fetch or record it again")
    return Track(samples, source.info.sample_rate, KEPT.get(kind, "FLOAT"), partial)


def write_track(path: str | Path, track: Track) -> None:
    """Write a WAV of the track's subtype, rate and channels, atomically.

    Raises:
        ValueError: more sound than a WAV holds.
        OSError: a full disk, or whatever else kept the file from being written; it names the file.
    """
    width = BITS.get(track.subtype, 64 if track.subtype == "DOUBLE" else 32) // 8
    if track.samples.size * width > LARGEST:
        raise ValueError(
            f"{shown(path)}: {track.samples.size * width} bytes of sound are more than a WAV "
            f"holds (4 GiB): cut the recording"
        )
    encoded = io.BytesIO()
    soundfile.write(encoded, track.samples, track.sample_rate, subtype=track.subtype, format="WAV")
    write_whole(path, encoded.getbuffer())


def channels_of(clip: Tensor) -> Tensor:
    """`(channels, N)` of a waveform `(N,)` or `(channels, N)`.

    Raises:
        ValueError: another shape, no floating-point numbers, no samples at all.
    """
    if clip.ndim not in (1, 2) or clip.numel() == 0 or not clip.is_floating_point():
        raise ValueError(
            f"expected a waveform (N,) or (channels, N) of floating-point samples, found "
            f"{tuple(clip.shape)} of {clip.dtype}"
        )
    if clip.is_meta:
        raise ValueError("the waveform is on the meta device, which holds no samples: load them")
    rows = clip if clip.ndim == 2 else clip.unsqueeze(0)
    if len(rows) > rows.shape[1]:
        raise ValueError(
            f"expected a waveform (N,) or (channels, N), found {tuple(clip.shape)}, which is more "
            f"channels than samples: transpose it"
        )
    return rows
