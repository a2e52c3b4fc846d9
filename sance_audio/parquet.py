"""Rows as a Parquet file: numbers as doubles, the rest as text, null where there is nothing."""

from __future__ import annotations

__all__ = ["columns_of", "require", "write"]

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sance_audio.files import atomic

GROUP = 10_000
"""Rows of a row group; as many are in memory."""


def require() -> None:
    """Raise ValueError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"Parquet needs pyarrow ({error}): pip install 'sance-audio[parquet]', or name a .csv"
        ) from error


def columns_of(path: Path) -> list[str] | None:
    """The columns of a Parquet file; None where it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.read_schema(path).names)
    except (pyarrow.ArrowException, OSError):
        return None


def write(
    path: Path,
    columns: Sequence[str],
    numbers: Collection[str],
    rows: Iterable[Mapping[str, Any]],
) -> None:
    """Write rows, atomically, one row group after the other.

    Arguments:
        path: Where to; folders are made.
        columns: In order.
        numbers: Those that hold numbers.
        rows: Keys are columns. What no Unicode text can hold of a file name is written as in the
            CSV, `\\udce9`.
    """
    import pyarrow
    from pyarrow import parquet

    kinds = {c: pyarrow.float64() if c in numbers else pyarrow.string() for c in columns}
    schema = pyarrow.schema(list(kinds.items()))
    left = iter(rows)
    with atomic(path) as temporary, parquet.ParquetWriter(temporary, schema) as file:
        while some := list(islice(left, GROUP)):
            arrays = [
                pyarrow.array([_cell(row.get(c)) for row in some], kind)
                for c, kind in kinds.items()
            ]
            file.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8") or None
    return value
