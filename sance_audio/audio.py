"""Waveforms in and out: read, write, resample, fit to a length.

A waveform is a float32 tensor of shape `(N,)`, mono, nominally within [-1, 1]; a sample rate is in
Hz. Every failure to decode becomes one `AudioError` that names the file, what was found and what
to do (`decoding`).
"""

from __future__ import annotations

__all__ = [
    "AudioError",
    "Info",
    "Recording",
    "info",
    "load",
    "read",
    "write",
    "resample",
    "batch",
    "fit_length",
    "windows",
    "window_starts",
    "gain",
    "file_label",
    "find_audio",
    "PEAK",
]

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from sance_audio.decoding import AudioError, Info, Recording, info, load, shown
from sance_audio.files import write_whole

PEAK = 0.999
"""No written sample exceeds this magnitude (full scale is 1)."""
QUIETEST = 1e-8
"""Largest magnitude below which a clip is silence, which no gain makes louder."""

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".au", ".opus"}


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
        OSError: a full disk, or whatever else kept the file from being written; it names the file.
    """
    x = waveform.detach().cpu().to(torch.float64).reshape(-1).numpy()
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"{path}: refusing to write a waveform that is empty or not finite")
    peak = float(np.abs(x).max())
    factor = PEAK / peak if peak > PEAK else 1.0
    encoded = io.BytesIO()  # libsndfile writes short in silence; Python says what went wrong
    soundfile.write(encoded, x * factor, sample_rate, subtype="PCM_16", format="WAV")
    write_whole(path, encoded.getbuffer())
    return factor


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
    """A class name as part of a file name: nothing in it leads to another folder, and it is no
    longer than a file system takes beside an index.

    >>> file_label("closed-hat"), file_label("../a b"), len(file_label(300 * "x"))
    ('closed-hat', '.._a_b', 40)
    """
    return re.sub(r"[^\w.-]+", "_", label.encode(errors="replace").decode())[:40]


def windows(waveform: Tensor, length: int, peak: float | None = None) -> Tensor:
    """One clip `(N,)` as windows `(W, length)`.

    Scaled to `peak` first (silence stays silence) unless it is None. A short clip is centred in
    zeros; a longer one is cut at a stride of half a window, the last window aligned to its end.

    >>> windows(torch.arange(1.0, 6), 4).tolist()
    [[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]]
    """
    if peak is not None:
        waveform = waveform * gain(waveform.abs().max(), peak)
    if waveform.shape[-1] <= length:
        return fit_length(waveform, length).unsqueeze(0)
    starts = window_starts(waveform.shape[-1], length)
    return torch.stack([waveform[start : start + length] for start in starts])


def window_starts(n: int, length: int) -> Iterator[int]:
    """Where the windows of n samples begin, for n >= length.

    >>> list(window_starts(9, 4)), list(window_starts(4, 4))
    ([0, 2, 4, 5], [0])
    """
    yield from range(0, n - length, length // 2)
    yield n - length


def gain(top: Tensor, peak: float) -> Tensor:
    """What a clip whose largest magnitude is `top` `()` is multiplied with to reach `peak`."""
    return peak / top.clamp_min(QUIETEST)


def find_audio(paths: list[str | Path]) -> list[Path]:
    """Files as given, and the audio files anywhere below given folders (by suffix), sorted within
    each.

    Below a folder, linked folders are followed, each folder once; what begins with a dot is passed
    over. What cannot be read (a folder without permission, a link that leads nowhere) is
    among the paths: decoding it gives the `AudioError` that says why.

    Raises:
        ValueError: a path that does not exist, or a folder without a single audio file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):
            below = sorted(_below(path))
            if not below:
                kinds = " ".join(sorted(SUFFIXES))
                raise ValueError(
                    f"{shown(path)}: no audio files below this folder (looked for {kinds})"
                )
            found += below
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise ValueError(f"{shown(path)}: no such file or folder")
    return found


def batch(waveform: Tensor) -> Tensor:
    """A batch of clips `(B, N)`, float32, from `(B, N)` or one clip `(N,)`.

    Raises:
        ValueError: another shape, nothing in it, or samples that are not finite.
    """
    waveform = torch.as_tensor(waveform, dtype=torch.float32)
    if waveform.ndim == 1:
        waveform = waveform.unsqueeze(0)
    if waveform.ndim != 2 or waveform.numel() == 0:
        raise ValueError(
            f"expected waveforms (B, N), B and N at least 1, found {tuple(waveform.shape)}"
        )
    if not bool(torch.isfinite(waveform).all()):
        raise ValueError("the waveform holds NaN or infinite samples")
    return waveform


def _below(top: Path) -> Iterator[Path]:
    """Audio files below a folder, and folders that cannot be listed, in no order.

    Links to folders come after all that stands below without them: a file is found by its own
    path where it has one.
    """
    waiting, seen = [str(top)], set()
    while waiting:
        unread: list[OSError] = []
        for root, folders, names in os.walk(waiting.pop(0), onerror=unread.append):
            real = os.path.realpath(root)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = (os.path.join(root, name) for name in sorted(folders))
            waiting += [path for path in paths if os.path.islink(path)]
            for name in names:
                if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                    yield Path(root, name)
        yield from (Path(error.filename) for error in unread)
