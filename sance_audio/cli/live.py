"""`sance-audio score RUN --stdin`: raw samples from a pipe, one line of JSON a window."""

from __future__ import annotations

__all__ = ["ENCODINGS", "Tally", "blocks_of", "score_stdin"]

import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

ENCODINGS = {"s16": "<i2", "s32": "<i4", "f32": "<f4"}
"""Little-endian samples, as arecord and ffmpeg name them (S16_LE, s16le)."""
READ = 2**16
"""Bytes that are read at once, at most."""
CHANNELS = 1024
"""At most, as in files."""
CONTAINERS = (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS", b"ID3")
"""What files begin with that are no raw samples."""

Array = np.ndarray


@dataclass
class Tally:
    """What came of a stream."""

    frames: int = 0
    dropped: int = 0
    """Bytes at its end that are no whole frame."""
    windows: int = 0
    odd: int = 0


def blocks_of(file: BinaryIO, encoding: str, channels: int, tally: Tally) -> Iterator[Array]:
    """Raw interleaved samples as blocks `(n,)` as they come, channels mixed down.

    Raises:
        ValueError: a stream that begins as an audio file does.
    """
    kind = np.dtype(ENCODINGS[encoding])
    full = 1.0 if kind.kind == "f" else float(np.iinfo(kind).max) + 1
    size, held, first = kind.itemsize * channels, b"", True
    while data := file.read1(READ):  # type: ignore[attr-defined]
        held += data
        if first and len(held) >= 4:
            first = False
            if held.startswith(CONTAINERS):
                raise ValueError(
                    f"--stdin: expected raw samples, found a file that begins with {held[:4]!r}; "
                    f"pipe `ffmpeg -i FILE -f s16le -ac 1 -ar RATE -` instead, or pass its path"
                )
        frames = len(held) // size
        x = np.frombuffer(held, kind, frames * channels).reshape(frames, channels)
        held = held[frames * size :]
        tally.frames += frames
        with np.errstate(all="ignore"):  # what is no number is refused where it is scored
            yield (x.astype(np.float32).mean(1) / full).astype(np.float32)
    tally.dropped = len(held)


def score_stdin(args: Any) -> None:
    """Score standard input window by window; the summary goes to standard error."""
    from sance_audio.detection import EnergyDetector

    rate = _checked(args)
    detector = EnergyDetector.from_pretrained(args.run)
    tally, status = Tally(), 0
    blocks = blocks_of(sys.stdin.buffer, args.encoding, args.channels, tally)
    try:
        for found in detector.score_stream(blocks, rate):
            tally.windows, tally.odd = tally.windows + 1, tally.odd + found.odd
            known = {k: v for k, v in found._asdict().items() if math.isfinite(v)}
            print(json.dumps(known), flush=True)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # nobody reads any more; nothing is left to flush into
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if tally.frames == 0 and status == 0:
        raise ValueError("--stdin: the stream ended before its first sample")
    print(_summary(tally, rate, detector.window_), file=sys.stderr)
    if status:
        raise SystemExit(status)


def _summary(tally: Tally, rate: int, window: float) -> str:
    lines = [
        f"{tally.frames / rate:.1f} s of sound, {tally.windows} windows of {window:g} s or less, "
        f"{tally.odd} odd"
    ]
    if tally.dropped:
        lines.append(f"the stream stopped within a frame: its last {tally.dropped} bytes dropped")
    return "\n".join(lines)


def _checked(args: Any) -> int:
    """The rate, in Hz; ValueError for options that do not go together."""
    from sance_audio.decoding import RATES

    if args.rate is None or not RATES[0] <= args.rate <= RATES[1]:
        raise ValueError(
            f"--stdin needs --rate, the sample rate of what is piped, {RATES[0]} to {RATES[1]} "
            f"Hz, found {args.rate}"
        )
    if not 1 <= args.channels <= CHANNELS:
        raise ValueError(
            f"--channels must be at least 1 and at most {CHANNELS}, found {args.channels}"
        )
    if args.paths or args.page is not None or args.workers != 1 or args.out != type(args).out:
        raise ValueError(
            "--stdin scores one stream, to standard output: leave out paths, --page, --workers "
            "and --out"
        )
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError(
            "--stdin: nothing is piped; for example: arecord -q -t raw -f S16_LE -r 16000 | "
            "sance-audio score RUN --stdin --rate 16000"
        )
    return args.rate
