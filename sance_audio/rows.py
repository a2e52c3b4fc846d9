"""Rows that took hours, written as they are finished: what fails later does not lose them."""

from __future__ import annotations

__all__ = ["Rows"]

import csv
import errno
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from sance_audio.files import told


class Rows:
    """A CSV file that grows row by row under another name, `<path>.part`, and takes its own at
    the end.

    Used as a context. A row is on disk when `append` returns. Whatever goes wrong (a full disk, an
    interrupt, a kill), an existing file stays as it was, and finished rows stay in `.part`; of a
    row that was half written nothing stays. Without a row, no file. A `.part` of an earlier run is
    written over.

    Arguments:
        path: Where to; folders are made.
        columns: Keys of a row, in order; one that a row lacks is left empty.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, columns
        self.part = path.with_name(path.name + ".part")
        self.count = 0
        """Finished rows."""
        self._end = 0

    def __enter__(self) -> Rows:
        with told(self.part):
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("wb", buffering=0)
        try:
            self._write(dict(zip(self.columns, self.columns, strict=True)))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows; each is whole on disk or not there at all."""
        for row in rows:
            self._write(row)
            self.count += 1

    def kept(self) -> str:
        """In words, what stays when the work ends early."""
        rows = f"{self.count} finished row{'s' * (self.count != 1)}"
        return f"{rows} kept in {self.part}" if self.count else "no row was finished"

    def discard(self) -> None:
        """Leave nothing behind at the end, not even the finished rows."""
        self.count = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with self._file:
                self._file.truncate(self._end)
                os.fsync(self._file.fileno())
            if error is None and self.count:
                os.replace(self.part, self.path)
        except OSError as failure:
            error = error or failure
        if self.count == 0:
            with suppress(OSError):
                self.part.unlink()
        if isinstance(error, OSError):
            reason = f"{error.strerror or error}; {self.kept()}"
            raise OSError(error.errno or errno.EIO, reason, str(self.path)) from error

    def _write(self, row: Mapping[str, Any]) -> None:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, restval="").writerow(dict(row))
        left = memoryview(text.getvalue().encode("utf-8", "backslashreplace"))
        size = len(left)
        while left:
            left = left[self._file.write(left) :]
        self._end += size
