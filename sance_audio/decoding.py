"""Decoding: what a file's header says, and its samples block by block, at the file's own rate.

Every failure becomes one `AudioError`. A file that holds less than its header announces is read
for what is there, and `partial` says so in words.
"""

from __future__ import annotations

__all__ = ["AudioError", "Info", "Recording", "Source", "opened", "info", "load", "shown"]

import os
import re
import stat
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from sance_audio.headers import Lengthened, announcement

RATES = 500, 1_000_000
"""Sample rates that are believed, in Hz: a damaged header must not blow a clip up."""

BLOCK = 2**16
"""Samples, over all channels, decoded at once."""

UNKNOWN = 2**62
"""Frames from which on libsndfile means: the header does not say."""


class AudioError(ValueError):
    """A file that cannot be used as a recording; the message names it and says why."""


class Info(NamedTuple):
    """What a file's header says."""

    sample_rate: int
    """In Hz."""
    channels: int
    frames: int
    """Samples per channel; 0 where the header does not say (a FLAC written to a pipe)."""
    partial: str = ""
    """In words: the file ends before its header says; empty where it does not."""


class Recording(NamedTuple):
    """A decoded file, or a part of one."""

    waveform: Tensor
    """`(N,)`, N >= 1: one channel, or the average of all."""
    sample_rate: int
    """In Hz, the file's own."""
    channels: int
    """That were averaged: the file's, or 1 where one was asked for."""
    partial: str = ""
    """In words: less was there than the header announces; empty where all was."""


class Source:
    """An open file: `info`, and its samples from a place on."""

    def __init__(self, path: str | Path, sound: soundfile.SoundFile, partial: str):
        self.path, self._sound = path, sound
        frames = sound.frames if sound.frames < UNKNOWN else 0
        self.info = Info(sound.samplerate, sound.channels, frames, partial)
        if sound.frames == 0:
            raise AudioError(
                f"{shown(path)}: holds no samples (a header only); fetch or record it again"
            )
        if not RATES[0] <= sound.samplerate <= RATES[1]:
            raise AudioError(
                f"{shown(path)}: its header says {sound.samplerate} Hz; expected {RATES[0]} to "
                f"{RATES[1]}"
            )

    def blocks(
        self, first: int = 0, count: int = UNKNOWN, channel: int | None = None
    ) -> Iterator[Tensor]:
        """Mono blocks `(n,)` of at most `count` samples from `first` on, to the file's end at
        most: of one channel, or the average of all. Samples are as they are: NaN or infinite ones
        too.
        """
        skip = first if self._sound.subtype == "VORBIS" else 0  # libsndfile seeks by 64 too far
        if first > skip:
            with _decoding(self.path):
                self._sound.seek(first)
        size = max(1, BLOCK // self.info.channels)
        while count > 0:
            with _decoding(self.path):
                n = min(size, skip or count)
                x = self._sound.read(n, dtype="float32", always_2d=True)
            if len(x) == 0:
                return
            if skip:
                skip -= len(x)
                continue
            count -= len(x)
            if channel is None:
                x = x.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
            yield torch.from_numpy(x[:, channel or 0].copy())

    def exact(self, lossless: Container[str]) -> tuple[np.ndarray, str]:
        """All samples `(N, channels)`, and the file's subtype: as int16 or int32, whichever holds
        them, at the integer's own full scale, or as floats of the file's own width, where the
        subtype is among `lossless`; as float32 where it is not.
        """
        kind = self._sound.subtype
        dtype = {"FLOAT": "float32", "DOUBLE": "float64"}.get(kind, "int32")
        dtype = "int16" if kind.endswith(("_16", "S8", "U8")) else dtype
        dtype = dtype if kind in lossless else "float32"
        size = max(1, BLOCK // self.info.channels)
        samples, count = np.empty((size, self.info.channels), dtype), 0
        while True:
            with _decoding(self.path):
                block = self._sound.read(size, dtype=dtype, always_2d=True)
                if count + len(block) > len(samples):  # an eighth at a time, moved, not copied
                    more = len(samples) // 8 + size
                    samples.resize((len(samples) + more, samples.shape[1]), refcheck=False)
            samples[count : count + len(block)] = block
            count += len(block)
            if len(block) == 0:
                return samples[:count], kind

    def shortfall(self, decoded: int, first: int = 0, count: int = UNKNOWN) -> str:
        """What `partial` is to say after `blocks(first, count)` gave `decoded` samples."""
        announced = min(count, self.info.frames - first)
        if self.info.partial or decoded >= announced:
            return self.info.partial
        return f"cut short: its header announces {announced} samples, {decoded} could be decoded"


class _Sequential(soundfile.SoundFile):
    """Reads on without asking for its place after every block: seeking fails in a stream whose
    length is wrong or unknown.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def opened(path: str | Path) -> Iterator[Source]:
    """Open a file for decoding.

    Raises:
        AudioError: missing, no file, not to be read, empty, not audio, no samples, or a rate that
            cannot be.
    """
    size = _size(path)
    with ExitStack() as stack:
        with _decoding(path):
            partial = ""
            file: str | bytes | Lengthened = str(path) if os.name == "nt" else os.fsencode(path)
            said = announcement(path, size)
            if said and said.missing:
                file = stack.enter_context(Lengthened(path, said))
            elif said and said.too_much:
                partial = (
                    f"cut short: its header announces {said.size} bytes of sound, {said.there} "
                    f"are there"
                )
            sound = stack.enter_context(_Sequential(file))
        yield Source(path, sound, partial)


def info(path: str | Path) -> Info:
    """What a file's header says; no sound is decoded.

    Raises:
        AudioError: as `load`, but for samples that only decoding would find.
    """
    with opened(path) as source:
        return source.info


def load(
    path: str | Path,
    start: float = 0.0,
    seconds: float | None = None,
    channel: int | None = None,
) -> Recording:
    """Decode a file, at its own rate.

    Arguments:
        path: WAV, FLAC, Ogg, MP3 or whatever else libsndfile decodes.
        start: Where to begin, in seconds; what stands before is skipped, not decoded, in formats
            that can seek.
        seconds: How much to decode; to the end when None, or when the end comes first.
        channel: Which one, from 0; the average of all when None.

    Raises:
        AudioError: missing, empty, not audio, no such channel, no samples (there), or samples that
            are NaN or infinite.
    """
    if not start >= 0 or not (seconds is None or seconds > 0):
        raise ValueError(f"expected start >= 0 and seconds > 0, found {start} and {seconds}")
    with opened(path) as source:
        rate, channels, frames, _ = source.info
        if channel is not None and not 0 <= channel < channels:
            raise AudioError(
                f"{shown(path)}: expected a channel {channel}, counted from 0, found {channels} "
                f"channels"
            )
        first = round(start * rate)
        count = UNKNOWN if seconds is None else max(1, round(seconds * rate))
        if 0 < frames <= first:
            raise AudioError(f"{shown(path)}: ends at {frames / rate:g} s, before {start:g} s")
        blocks = list(source.blocks(first, count, channel))
        if not blocks:
            raise AudioError(f"{shown(path)}: no samples could be decoded at {start:g} s")
        waveform = torch.cat(blocks)
        partial = source.shortfall(len(waveform), first, count)
    refuse_broken(path, int((~waveform.isfinite()).sum()))
    return Recording(waveform, rate, channels if channel is None else 1, partial)


def refuse_broken(path: str | Path, bad: int) -> None:
    """Raise AudioError where a file holds samples that are no numbers."""
    if bad:
        raise AudioError(f"{shown(path)}: {bad} samples are NaN or infinite; export it again")


def shown(path: str | Path) -> str:
    r"""A path for a message: one line, whatever the name holds.

    >>> print(shown("a\nb.wav"))
    a\nb.wav
    """
    return re.sub(
        r"[^ -~\x80-\U0010ffff]|[\x80-\x9f\u2028\u2029\ud800-\udfff]", _escaped, str(path)
    )


def _escaped(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


@contextmanager
def _decoding(path: str | Path) -> Iterator[None]:
    """Turn every failure to decode into an AudioError."""
    try:
        yield
    except (soundfile.LibsndfileError, OSError, MemoryError, ValueError, RuntimeError) as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None)
        raise AudioError(
            f"{shown(path)}: cannot be decoded as audio ({reason or error}); expected WAV, FLAC, "
            f"Ogg or MP3"
        ) from error


def _size(path: str | Path) -> int:
    """Bytes of a regular file that may be read."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            may = os.access(path, os.R_OK | os.X_OK)
            found = "a directory" + ("" if may else " that may not be read (permission denied)")
        elif not stat.S_ISREG(status.st_mode):
            found = "a device, pipe or socket"
        elif status.st_size == 0:
            raise AudioError(
                f"{shown(path)}: the file is empty (0 bytes); fetch or record it again"
            )
        else:
            with open(path, "rb"):
                return status.st_size
    except FileNotFoundError:
        link = os.path.islink(path)
        found = "a symbolic link that leads nowhere" if link else "nothing there"
    except OSError as error:
        found = f"what cannot be read ({error.strerror})"
    raise AudioError(f"{shown(path)}: expected an audio file, found {found}")
