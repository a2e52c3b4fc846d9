"""Rows of many files that go on where an earlier run stopped.

`OUT.part` is a log of finished rows, a CSV whose paths are exact to the byte; `OUT.part.json` says
what they are of. Rows are known by path: the k-th row of a path is that of its k-th mention. So
files may be added to the list between two runs, or go; the file that is made at the end stands in
the order of the list, and is the one that a single run would have made. What a file held when its
row was finished counts; whether it has changed since is not looked at.
"""

from __future__ import annotations

__all__ = ["ResumedRows"]

import io
import os
import stat
from array import array
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from sance_audio import parquet
from sance_audio.files import atomic, read_json, sync, write_json
from sance_audio.locks import hold
from sance_audio.rows import Rows, parse_record, read_record

KIND = "rows of sance-audio score"
ESCAPE = "surrogateescape" if os.name == "posix" else "surrogatepass"


class ResumedRows(Rows):
    """As `Rows`, one row a file; rows of an earlier run that ended early are kept. Where the name
    ends in .parquet, that is made of them at the end.

    Arguments:
        path: Where to; folders are made.
        columns: Keys of a row; "path" among them.
        numbers: Those that hold numbers.
        about: What rows must be of, to stand in one file: texts.
        files: In order. `append` wants the rows of those that `left` gives, in that order.

    Entering it raises ValueError where another process writes the same file, or where what stands
    in `.part` is of something else; that is left as it is.
    """

    errors = ESCAPE

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        numbers: Sequence[str],
        about: Mapping[str, str | None],
        files: Sequence[Path],
    ):
        super().__init__(path, columns)
        self.numbers, self.files = numbers, files
        self.about = {"kind": KIND, **about, "columns": list(columns)}
        self.said = self.part.with_name(self.part.name + ".json")
        self.earlier, self.gone, self.cut = 0, 0, 0
        """Rows found, rows of files that are not asked for, bytes behind the last whole row."""
        self._places = array("q", [-1]) * len(files)
        """Of each file, where its row begins in `.part`; -1 without."""
        self._open_places: Iterator[int] = iter(())
        self._ours, self._as_it_is = False, True

    def __enter__(self) -> ResumedRows:
        super().__enter__()
        return self

    def left(self) -> Iterator[Path]:
        """The files that have no row yet."""
        return (file for file, at in zip(self.files, self._places, strict=True) if at < 0)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            place, record, begin = next(self._open_places), self._encoded(row), self._end
            assert row["path"] == str(self.files[place])
            self._write(record)
            self._note(place, begin, record)

    def read(self) -> Iterator[dict[str, Any]]:
        """The finished rows in the order of the files; keys are left out where there is nothing,
        but for `notes`.
        """
        for record in self._records():
            row = parse_record(record, self.columns, self.numbers, self.errors)
            assert row is not None
            yield {"notes": "", **row}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ours:
            super().__exit__(kind, error, traceback)
            return
        with self._file:
            if os.fstat(self._file.fileno()).st_size == 0:
                self._let_go()
                self.part.unlink()

    def _open(self) -> io.FileIO:
        if self.part.exists() and not (self.part.is_file() or self.part.is_dir()):
            raise ValueError(f"--out {self.path}: {self.part} is no file; name another --out")
        file = hold(self.part)
        if file is None:
            raise ValueError(
                f"--out {self.path}: another process is writing it ({self.part} is in use); wait "
                f"for it, or name another --out"
            )
        return file

    def _begin(self) -> None:
        header = self._header()
        self._file.seek(0)
        found = self._file.read(len(header))
        if found:
            self._check(header.startswith(found))
        else:
            self._claim()
        if len(found) == len(header):
            self._recall(len(header))
            self._ours = True
        else:
            self._ours = True
            self._file.truncate(0)
            write_json(self.said, self.about)
            self._write(header)
        self._open_places = (i for i, at in enumerate(self._places) if at < 0)

    def _claim(self) -> None:
        """Raise ValueError where what is no word on rows stands in the way of one."""
        if os.path.lexists(self.said) and _said(self.said) is None:
            raise ValueError(
                f"--out {self.path}: {self.said} stands in the way and is none of ours; move it "
                f"away, or name another --out"
            )

    def _check(self, begun: bool) -> None:
        """Raise ValueError where the rows in `.part` are none, or of something else."""
        remedy = f"delete it to begin anew, or name another --out than {self.path}"
        said = _said(self.said)
        if said is None or not begun:
            why = f"{self.said} does not say of what" if begun else "its columns are others"
            raise ValueError(f"{self.part} was not begun by this command ({why}): {remedy}")
        other = [key for key in self.about if said.get(key) != self.about[key]]
        if other:
            found, expected = (str(some.get(other[0]))[-24:] for some in (said, self.about))
            raise ValueError(
                f"{self.part} holds rows of another {other[0]} (found {found}, expected "
                f"{expected}): {remedy}"
            )

    def _recall(self, begin: int) -> None:
        """Find the rows of an earlier run, and cut off what is behind the last whole one."""
        known, self._end = _Known(self.files), begin
        with self.part.open("rb") as file:
            file.seek(begin)
            while record := read_record(file):
                row = parse_record(record, self.columns, self.numbers, self.errors)
                if row is None or "path" not in row:
                    break
                place = known.place(row["path"])
                if place is None:
                    self.gone += 1
                else:
                    self._note(place, self._end, record)
                self._end += len(record)
                self.earlier += 1
        if self.gone and not self.count:
            raise ValueError(
                f"{self.part} holds {self.gone} rows, and none is of a file asked for: delete it "
                f"to begin anew, or name another --out than {self.path}"
            )
        self._as_it_is = self._as_it_is and not self.gone
        self.cut = os.fstat(self._file.fileno()).st_size - self._end
        self._file.truncate(self._end)

    def _note(self, place: int, begin: int, record: bytes) -> None:
        """A file has its row."""
        before = self._places[place - 1] if place else 0
        self._as_it_is = self._as_it_is and 0 <= before < begin and _plain(record)
        self._places[place] = begin
        self.count += 1

    def _records(self) -> Iterator[bytes]:
        with self.part.open("rb") as file:
            for begin in self._places:
                if begin >= 0:
                    file.seek(begin)
                    yield read_record(file)

    def _finish(self) -> None:
        assert self.count == len(self.files)
        if self.path.suffix.lower() == ".parquet":
            parquet.write(self.path, self.columns, self.numbers, self.read())
            self._remove()
        elif self._as_it_is:
            super()._finish()
            self.said.unlink(missing_ok=True)
        else:
            with atomic(self.path) as temporary, temporary.open("wb") as file:
                file.write(self._header())
                for record in self._records():
                    text = record.decode("utf-8", self.errors)
                    file.write(text.encode("utf-8", Rows.errors))
            self._remove()
        sync(self.path.parent)

    def _remove(self) -> None:
        super()._remove()
        with suppress(OSError):
            self.said.unlink()


class _Known:
    """Where in a list of files a row belongs, rows coming one after the other."""

    def __init__(self, files: Sequence[Path]):
        self.files, self.next = files, 0
        self.later: dict[str, deque[int]] | None = None

    def place(self, path: str) -> int | None:
        """The first mention of a path that has no row yet; None where there is none."""
        if self.later is None:
            if self.next < len(self.files) and str(self.files[self.next]) == path:
                self.next += 1
                return self.next - 1
            self.later = defaultdict(deque)  # from here on the list is another than it was
            for i in range(self.next, len(self.files)):
                self.later[str(self.files[i])].append(i)
        waiting = self.later.get(path)
        return waiting.popleft() if waiting else None


def _said(path: Path) -> dict[str, Any] | None:
    """What a file says rows are of; None where it says nothing of the kind."""
    try:
        said = read_json(path) if stat.S_ISREG(os.stat(path).st_mode) else None
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and said.get("kind") == KIND else None


def _plain(record: bytes) -> bool:
    try:
        record.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
