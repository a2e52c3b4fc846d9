"""Rows that took hours, written as they are finished: what fails later does not lose them."""

from __future__ import annotations

__all__ = ["Rows", "parse_record", "read_record"]

import csv
import errno
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from sance_audio.files import told

LONGEST = 2**20
"""Bytes of a row, at most: what is longer is damaged."""


class Rows:
    """A CSV file that grows row by row under another name, `<path>.part`, and takes its own at
    the end.

    Used as a context. A row is on disk when `append` returns. Whatever goes wrong (a full disk, an
    interrupt, a kill), an existing file stays as it was, and finished rows stay in `.part`; of a
    row that was half written nothing stays. Without a row, no file. A `.part` of an earlier run is
    written over (`resumed.ResumedRows` goes on with it).

    Arguments:
        path: Where to; folders are made.
        columns: Keys of a row, in order; one that a row lacks is left empty.
    """

    errors = "backslashreplace"
    """What becomes of characters that UTF-8 cannot hold: bytes of file names that are no text."""

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, columns
        self.part = path.with_name(path.name + ".part")
        self.count = 0
        """Finished rows."""
        self._end = 0

    def __enter__(self) -> Rows:
        with told(self.part):
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows; each is whole on disk or not there at all."""
        for row in rows:
            self._write(self._encoded(row))
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
                try:
                    self._file.truncate(self._end)
                    os.fsync(self._file.fileno())
                    if error is None and self.count:
                        self._finish()
                finally:
                    if self.count == 0:
                        self._remove()
        except OSError as failure:
            error = error or failure
        if isinstance(error, OSError):
            reason = f"{error.strerror or error}; {self.kept()}"
            raise OSError(error.errno or errno.EIO, reason, str(self.path)) from error

    def _open(self) -> io.FileIO:
        return self.part.open("wb", buffering=0)

    def _begin(self) -> None:
        self._write(self._header())

    def _finish(self) -> None:
        """`.part`, all of it on disk, takes its name."""
        self._let_go()
        os.replace(self.part, self.path)

    def _remove(self) -> None:
        self._let_go()
        with suppress(OSError):
            self.part.unlink()

    def _let_go(self) -> None:
        if os.name != "posix":  # an open file can be neither renamed nor removed there
            self._file.close()

    def _header(self) -> bytes:
        return self._encoded(dict(zip(self.columns, self.columns, strict=True)))

    def _encoded(self, row: Mapping[str, Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, restval="").writerow(dict(row))
        return text.getvalue().encode("utf-8", self.errors)

    def _write(self, record: bytes) -> None:
        left = memoryview(record)
        while left:
            left = left[self._file.write(left) :]
        self._end += len(record)


def read_record(file: BinaryIO) -> bytes:
    r"""The next row that `Rows` wrote, as it stands in the file; empty where no whole one follows.

    >>> file = io.BytesIO(b'"two\r\nlines",1\r\n"half\r\n')
    >>> read_record(file), read_record(file)
    (b'"two\r\nlines",1\r\n', b'')
    """
    record = file.readline(LONGEST)
    while not record.endswith(b"\r\n") or record.count(b'"') % 2:
        more = file.readline(LONGEST)
        if not more or len(record) > LONGEST:
            return b""
        record += more
    return record


def parse_record(
    record: bytes, columns: Sequence[str], numbers: Sequence[str], errors: str
) -> dict[str, Any] | None:
    """A row from what `Rows` wrote: floats under `numbers`, keys left out where a cell is empty;
    None where it is no such row.
    """
    if b"\0" in record:  # a disk's block that was never written
        return None
    try:
        (cells,) = csv.reader(io.StringIO(record.decode("utf-8", errors), newline=""))
        row: dict[str, Any] = {k: v for k, v in zip(columns, cells, strict=True) if v}
        return row | {k: float(row[k]) for k in numbers if k in row}
    except (ValueError, csv.Error):
        return None
