"""Files that are either whole or absent: atomic writes, JSON and JSON lines."""

from __future__ import annotations

__all__ = ["atomic", "write_json", "read_json", "append_jsonl", "read_jsonl"]

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, flushed to disk and renamed onto it at the end.

    An exception, or a kill at any moment, leaves `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error


def append_jsonl(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON-lines file; a number that is not finite is written as null."""
    clean = {k: (None if isinstance(v, float) and v - v != 0 else v) for k, v in row.items()}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(clean) + "\n")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """All whole rows of a JSON-lines file, `[]` when there is none; a last line cut by a kill is
    passed over.
    """
    rows = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
