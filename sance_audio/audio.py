"""Waveforms in and out: read, write, resample, fit to a length.

A waveform is a float32 tensor of shape `(N,)`, mono, nominally within [-1, 1]; a sample rate is in
Hz. Every failure to decode becomes one `AudioError` that names the file, what was found and what
to do.
"""

from __future__ import annotations

__all__ = [
    "AudioError",
    "Recording",
    "load",
    "read",
    "write",
    "resample",
    "fit_length",
    "windows",
    "file_label",
    "find_audio",
    "PEAK",
]

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from sance_audio.files import atomic

PEAK = 0.999
"""No written sample exceeds this magnitude (full scale is 1)."""

RATES = 500, 1_000_000
"""Sample rates that are believed, in Hz: a damaged header must not blow a clip up."""

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".au", ".opus"}


class AudioError(ValueError):
    """A file that cannot be used as a recording; the message names it and says why."""


class Recording(NamedTuple):
    """A decoded file."""

    waveform: Tensor
    """`(N,)`, N >= 1, channels averaged."""
    sample_rate: int
    """In Hz, the file's own."""
    channels: int


def load(path: str | Path) -> Recording:
    """Decode a file, at its own rate.

    Arguments:
        path: WAV, FLAC, Ogg, MP3 or whatever else libsndfile decodes.

    Raises:
        AudioError: missing, empty, not audio, no samples, or samples that are NaN or infinite.
    """
    path = Path(path)
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing there"
        raise AudioError(f"{path}: expected an audio file, found {found}")
    try:
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: the file is empty (0 bytes); fetch or record it again")
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except AudioError:
        raise
    except (soundfile.LibsndfileError, OSError, MemoryError, ValueError, RuntimeError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise AudioError(
            f"{path}: cannot be decoded as audio ({reason}); expected WAV, FLAC, Ogg or MP3"
        ) from error
    if len(samples) == 0:
        raise AudioError(f"{path}: holds no samples (a header only); fetch or record it again")
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{path}: its header says {rate} Hz; expected {RATES[0]} to {RATES[1]}")
    mono = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    if not np.isfinite(mono).all():
        bad = int((~np.isfinite(mono)).sum())
        raise AudioError(f"{path}: {bad} samples are NaN or infinite; export it again")
    return Recording(torch.from_numpy(mono), rate, samples.shape[1])


def read(path: str | Path, sample_rate: int | None = None) -> tuple[Tensor, int]:
    """Decode a file to mono at `sample_rate` Hz (its own when None): the waveform `(N,)` and its
    rate.

    Raises:
        AudioError: as `load`.
    """
    recording = load(path)
    rate = sample_rate or recording.sample_rate
    return resample(recording.waveform, recording.sample_rate, rate), rate


def write(path: str | Path, waveform: Tensor, sample_rate: int) -> float:
    """Write a mono 16-bit PCM WAV, atomically. Never scaled up; scaled down where the peak passes
    `PEAK`.

    Arguments:
        path: Where to; folders are made.
        waveform: `(N,)`.
        sample_rate: In Hz.

    Returns:
        The gain applied, 1.0 where none was needed.

    Raises:
        ValueError: an empty waveform, or one with NaN or infinite samples.
    """
    x = waveform.detach().cpu().to(torch.float64).reshape(-1).numpy()
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"{path}: refusing to write a waveform that is empty or not finite")
    peak = float(np.abs(x).max())
    gain = PEAK / peak if peak > PEAK else 1.0
    with atomic(path) as temporary:
        soundfile.write(temporary, x * gain, sample_rate, subtype="PCM_16", format="WAV")
    return gain


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Resample `(N,)` from `rate` to `new_rate` Hz with soxr at high quality; at least one sample
    remains.
    """
    if rate == new_rate:
        return waveform
    if rate < 1 or new_rate < 1:
        raise ValueError(f"sample rates must be positive, found {rate} and {new_rate}")
    y = soxr.resample(waveform.detach().cpu().numpy(), rate, new_rate, quality="HQ")
    return torch.from_numpy(y) if len(y) else waveform[:1].clone()


def fit_length(waveform: Tensor, length: int, align: str = "centre") -> Tensor:
    """Pad with zeros or crop `(..., N)` to `(..., length)`, the clip's centre or start kept in
    place.

    >>> fit_length(torch.ones(2), 5).tolist()
    [0.0, 1.0, 1.0, 0.0, 0.0]
    >>> fit_length(torch.arange(5.0), 3).tolist()
    [1.0, 2.0, 3.0]
    >>> fit_length(torch.arange(5.0), 3, "start").tolist()
    [0.0, 1.0, 2.0]
    """
    if align not in ("centre", "start"):
        raise ValueError(f"align must be 'centre' or 'start', found {align!r}")
    extra = length - waveform.shape[-1]
    before = (extra // 2 if extra >= 0 else -(-extra // 2)) if align == "centre" else 0
    return torch.nn.functional.pad(waveform, (before, extra - before))


def file_label(label: str) -> str:
    """A class name as part of a file name: nothing in it leads to another folder.

    >>> file_label("closed-hat"), file_label("../a b")
    ('closed-hat', '.._a_b')
    """
    return re.sub(r"[^\w.-]+", "_", label)


def windows(waveform: Tensor, length: int, peak: float | None = None) -> Tensor:
    """One clip `(N,)` as windows `(W, length)`.

    Scaled to `peak` first (silence stays silence) unless it is None. A short clip is centred in
    zeros; a longer one is cut at a stride of half a window, the last window aligned to its end.

    >>> windows(torch.arange(1.0, 6), 4).tolist()
    [[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]]
    """
    if peak is not None:
        waveform = waveform * (peak / waveform.abs().max().clamp_min(1e-8))
    extra = waveform.shape[-1] - length
    if extra <= 0:
        return fit_length(waveform, length).unsqueeze(0)
    starts = [*range(0, extra, length // 2), extra]
    return torch.stack([waveform[start : start + length] for start in starts])


def find_audio(paths: list[str | Path]) -> list[Path]:
    """Files as given, and the audio files anywhere below given folders (by suffix), sorted within
    each.

    Raises:
        ValueError: a path that does not exist, or a folder without a single audio file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            below = sorted(
                Path(root) / name
                for root, _, names in os.walk(path)
                for name in names
                if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
            )
            if not below:
                kinds = " ".join(sorted(SUFFIXES))
                raise ValueError(f"{path}: no audio files below this folder (looked for {kinds})")
            found += below
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"{path}: no such file or folder")
    return found
