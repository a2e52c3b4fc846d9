r"""Recordings as they are: every channel, in numbers that lose nothing, and back into a WAV.

Integer PCM is held as int32, full scale `2^31`, whatever its width, and float formats as floats of
their own width, so that what is read and written again is the same to the bit. A format that loses
(MP3, Ogg, A-law) is held as float32, and written as a float WAV.
"""

from __future__ import annotations

__all__ = ["Track", "read_track", "write_track"]

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
    """`(N, channels)`: int32, float32 or float64."""
    sample_rate: int
    """In Hz."""
    subtype: str
    """Of the WAV that keeps it: "PCM_16" and so on, "FLOAT" or "DOUBLE"."""
    partial: str = ""
    """In words: less was there than the header announces; empty where all was."""

    @property
    def waveform(self) -> Tensor:
        """`(channels, N)`, full scale 1, nothing lost."""
        x = torch.from_numpy(self.samples.T.copy())
        return x if x.is_floating_point() else x.double() / 2**31

    def replaced(self, waveform: Tensor, first: int, stop: int) -> Track:
        """The same track but for the samples `[first, stop)`, which are those of a waveform
        `(channels, N)`, rounded to what the subtype holds.
        """
        samples, new = self.samples.copy(), waveform[:, first:stop].T.numpy()
        if self.subtype in BITS:
            step = 2.0 ** (32 - BITS[self.subtype])
            new = (new.astype(np.float64) * (2**31 / step)).round() * step
            new = new.clip(-(2**31), 2**31 - step)
        samples[first:stop] = new.astype(samples.dtype)
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
