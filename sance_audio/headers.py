"""What the header of a RIFF (WAV) or AIFF file announces, beside what is there.

libsndfile reads a file that is cut short, or whose header lies, for what is there and says
nothing; so the chunks are looked at here. Encoders that write to a pipe do not know the length;
the sizes they put in its place (0, or just below 2^31 or 2^32) announce nothing.
"""

from __future__ import annotations

__all__ = ["Announcement", "Lengthened", "announcement"]

import io
from pathlib import Path
from typing import Any, Literal, NamedTuple

Order = Literal["little", "big"]
ORDERS: dict[bytes, Order] = {b"RIFF": "little", b"RF64": "little", b"RIFX": "big", b"FORM": "big"}

CHUNKS = 1000
"""Chunks that are looked at for the one that holds the sound."""


class Announcement(NamedTuple):
    """How much sound the header of a RIFF or AIFF file announces."""

    size: int
    """In bytes."""
    there: int
    """Bytes from the sound's first to the file's last."""
    place: int
    """Where in the file the four bytes of `size` stand."""
    order: Order

    @property
    def missing(self) -> bool:
        """Whether there is sound, and the header says that there is none."""
        return self.size == 0 < self.there

    @property
    def too_much(self) -> bool:
        """Whether the header announces more than is there, and knew what it said."""
        return self.size > self.there and not _placeholder(self.size)


class Lengthened(io.FileIO):
    """A file whose header announces all the sound that is there."""

    def __init__(self, path: str | Path, said: Announcement):
        super().__init__(path)
        self.place, self.size = said.place, min(said.there, 2**32 - 1).to_bytes(4, said.order)

    def readinto(self, buffer: Any) -> int:
        start, view = self.tell(), memoryview(buffer).cast("B")
        n = super().readinto(view) or 0
        for i, byte in enumerate(self.size, self.place - start):
            if 0 <= i < n:
                view[i] = byte
        return n


def announcement(path: str | Path, size: int) -> Announcement | None:
    """What a RIFF or AIFF file of `size` bytes announces; None for any other file."""
    with open(path, "rb") as file:
        head = file.read(12)
        order = ORDERS.get(head[:4])
        if order is None or head[8:] not in (b"WAVE", b"AIFF", b"AIFC"):
            return None
        place, wide = 12, 0
        for _ in range(CHUNKS):
            file.seek(place)
            chunk = file.read(24)
            if len(chunk) < 8:
                return None
            name, length = chunk[:4], int.from_bytes(chunk[4:8], order)
            if name == b"ds64":
                wide = int.from_bytes(chunk[16:24], "little")
            if name in (b"data", b"SSND"):
                there = size - place - 8
                if length == 0 and _is_chunk(chunk[8:16], there - 8, order):
                    there = 0
                length = wide if wide and _placeholder(length) else length
                return Announcement(length, there, place + 4, order)
            place += 8 + length + length % 2
    return None


def _is_chunk(head: bytes, room: int, order: Order) -> bool:
    """Whether these eight bytes begin another chunk that fits into `room`, and are not sound."""
    readable = all(0x20 <= byte < 0x7F for byte in head[:4])
    return len(head) == 8 and readable and int.from_bytes(head[4:], order) <= room


def _placeholder(length: int) -> bool:
    """Whether a size is what encoders write who cannot know it."""
    return any(limit - 2**12 <= length < limit for limit in (2**31, 2**32))
