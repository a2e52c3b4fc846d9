"""Files that are either whole or absent: atomic writes, JSON and JSON lines.

A write that the system refuses, a full disk above all, is one OSError that names the file; what
stood there before is as it was, and no temporary file is left behind.
"""

from __future__ import annotations

__all__ = [
    "atomic",
    "told",
    "sync",
    "write_whole",
    "write_json",
    "read_json",
    "append_jsonl",
    "write_jsonl",
    "read_jsonl",
]

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
FAILED = (*FULL, errno.EFBIG, errno.EIO)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@contextmanager
def atomic(path: str | Path, prefix: str = ".") -> Iterator[Path]:
    """A temporary path beside `path`, flushed to disk and renamed onto it at the end; its name
    begins with `prefix`.

    An exception, or a kill at any moment, leaves `path` as it was.

    Raises:
        OSError: the disk is full, or the system refuses the write for another reason.
    """
    path = Path(path)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            sync(temporary)
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def told(path: str | Path) -> Iterator[None]:
    """A refused write as one OSError that names `path`, never a temporary name, says why and keeps
    the system's number; other errors as they are.
    """
    try:
        yield
    except Exception as error:
        number = _refusal(error)
        if number is None:
            raise
        why = "the disk is full" if number in FULL else "the system refused it"
        told = OSError(f"{path} cannot be written: {why} ({os.strerror(number)})")
        told.errno = number
        raise told from error


def _refusal(error: BaseException | None) -> int | None:
    """The system's reason not to write, if that is what lies behind an error. Libraries that write
    for themselves raise errors of their own, known by the system's words in them.
    """
    if getattr(error, "errno", None) in REFUSED:
        return error.errno  # type: ignore[union-attr]
    while error is not None:
        for number in FAILED:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return number
        error = error.__context__
    return None


def sync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name != "posix" and Path(path).is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file, atomically.

    Raises:
        OSError: as `atomic`, or fewer bytes arrived than were given.
    """
    with atomic(path) as temporary:
        temporary.write_bytes(content)
        size = temporary.stat().st_size
        if size != len(content):
            raise OSError(f"{path}: only {size} of {len(content)} bytes arrived")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are errors: JSON has no word
    for them.
    """
    text = json.dumps(value, indent=2, allow_nan=False, default=str)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises ValueError, naming the file, when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # brackets a thousand deep
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error


def append_jsonl(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON-lines file; a number that is not finite is written as null.

    Raises:
        OSError: the disk is full; nothing of the row is left in the file.
    """
    path, line = Path(path), memoryview(_line(row))
    with told(path), path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(before)
            raise


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows as a JSON-lines file of their own, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(b"".join(map(_line, rows)))


def _line(row: Mapping[str, Any]) -> bytes:
    clean = {k: (None if isinstance(v, float) and v - v != 0 else v) for k, v in row.items()}
    return json.dumps(clean).encode() + b"\n"


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """All whole rows of a JSON-lines file, `[]` when there is none; a last line cut by a kill is
    passed over.
    """
    rows = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
