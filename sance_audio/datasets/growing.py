"""A file of rows that is built round by round, and goes on after the last whole round when its
building was stopped, however it was.

    .{name}.part         an .npy header of no rows, then rows of float32 as they come
    .{name}.part.jsonl   a line a round, written when its rows are on the disk: what each clip gave

At the end the header gets the number of rows, and the file its name. One process builds at a time;
others wait for it.
"""

from __future__ import annotations

__all__ = ["GrowingArray", "alone"]

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from sance_audio.files import append_jsonl, read_jsonl, sync, told, write_jsonl
from sance_audio.locks import hold

PAUSE = 0.5
"""Seconds between two looks whether another process has finished."""


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While no other process builds the same file; waits, and says so, until none does."""
    lock = path.with_name(f".{path.stem}.lock")
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = hold(lock)
        if held is None:
            print(f"{path}: another process builds it; waiting", file=sys.stderr)
        while held is None:
            time.sleep(PAUSE)
            held = hold(lock)
    try:
        yield
    finally:
        with suppress(PermissionError):  # an open file cannot be removed on Windows
            lock.unlink(missing_ok=True)
        held.close()


class GrowingArray:
    """An array `(rows, *shape)` of float32 under construction.

    Arguments:
        path: Where it will lie.
        shape: Of a row.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, shape
        self.part = path.with_name(f".{path.stem}.part")
        self.log = path.with_name(f".{path.stem}.part.jsonl")
        self.given: list[dict[str, Any]] = []
        """What each clip gave, in order; `rows` is its number of rows."""
        self.rows = 0
        with told(path):
            self._file: IO[bytes] = self.part.open("r+b" if self.part.exists() else "w+b")
            self._take_up(self._file.seek(0, os.SEEK_END))

    def _take_up(self, size: int) -> None:
        """Keep the whole rounds of `size` bytes that were written before."""
        self._start = self._header(0)
        kept = []
        for line in read_jsonl(self.log) if size else []:
            given = line.get("given") if isinstance(line, dict) else None
            if given is None or self._end(rows := sum(one["rows"] for one in given)) > size:
                break
            kept.append(line)
            self.given += given
            self.rows += rows
        write_jsonl(self.log, kept)
        self._file.truncate(self._end())

    def append(self, rows: Sequence[bytes], given: Sequence[dict[str, Any]]) -> None:
        """Add a round: its rows, and what its clips gave."""
        with told(self.path):
            end = self._file.seek(0, os.SEEK_END)
            if end != self._end():
                raise OSError(f"{self.part}: another process writes it; use another cache folder")
            self._file.writelines(rows)
            self._file.flush()
            os.fsync(self._file.fileno())
            append_jsonl(self.log, {"given": list(given)})
        self.given += given
        self.rows += sum(one["rows"] for one in given)

    def finish(self) -> None:
        """Give the file its name."""
        with told(self.path):
            assert self._header(self.rows) == self._start, "NumPy leaves room for rows to come"
            self._file.close()
            sync(self.part)
            os.replace(self.part, self.path)
            self.log.unlink()

    def close(self) -> None:
        """Let go of the file; what holds no round is deleted."""
        self._file.close()
        if not self.given:
            self.part.unlink(missing_ok=True)
            self.log.unlink(missing_ok=True)

    def _end(self, more: int = 0) -> int:
        """Bytes of the file with so many rows more."""
        return self._start + 4 * (self.rows + more) * math.prod(self.shape)

    def _header(self, rows: int) -> int:
        self._file.seek(0)
        form = {"descr": "<f4", "fortran_order": False, "shape": (rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, form)
        return self._file.tell()
