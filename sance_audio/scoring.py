"""Scoring files: one row each, whatever the file holds."""

from __future__ import annotations

__all__ = [
    "COLUMNS",
    "NUMBERS",
    "Row",
    "Scored",
    "check_output",
    "identity",
    "keep_all",
    "score_files",
    "scored_groups",
]

import csv
import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sance_audio import __version__, parquet
from sance_audio.audio import AudioError
from sance_audio.detection import EnergyDetector
from sance_audio.streams import Sound
from sance_audio.weights import locate

COLUMNS = (
    "path",
    "energy",
    "anomaly_score",
    "p_value",
    "predicted_class",
    "duration_seconds",
    "notes",
)
NUMBERS = ("energy", "anomaly_score", "p_value", "duration_seconds")
"""Columns of numbers; the others are text."""
GROUP, GROUP_SECONDS = 64, 300.0
"""Files, and seconds of sound, scored together at most; their rows are finished together."""
WEIGHTS = "detector.safetensors"

Row = dict[str, Any]
Listened = tuple[Path, Sound | None, str]
"""A file, what was heard, and why nothing was."""


@dataclass
class Scored:
    """What a scoring run did."""

    files: int = 0
    failed: int = 0
    """Files that could not be read."""
    problem: str = ""
    """The note of the first of them."""
    seconds_of_sound: float = 0.0
    seconds: float = 0.0
    """Time it took, reading included."""

    @property
    def real_time_factor(self) -> float:
        """Computing time per second of sound."""
        return self.seconds / max(self.seconds_of_sound, 1e-9)

    def speed(self) -> str:
        """In words."""
        return (
            f"{self.seconds_of_sound:.1f} s of sound in {self.seconds:.2f} s: real-time factor "
            f"{self.real_time_factor:.4f}"
        )

    def count(self, rows: Iterable[Row]) -> None:
        """Add rows to the figures."""
        for row in rows:
            self.files += 1
            self.seconds_of_sound += row.get("duration_seconds", 0.0)
            if "anomaly_score" not in row:
                self.failed += 1
                self.problem = self.problem or row["notes"]

    def count_in(self, other: Scored) -> None:
        """Add the figures of another run."""
        self.files += other.files
        self.failed += other.failed
        self.problem = self.problem or other.problem
        self.seconds_of_sound += other.seconds_of_sound
        self.seconds += other.seconds


def score_files(
    detector: EnergyDetector, paths: Iterable[Path], keep: Callable[[list[Row]], None]
) -> Scored:
    """Score files with a fitted detector; a file that cannot be read becomes a row that says why.

    Arguments:
        detector: With its model.
        paths: Files; memory does not grow with their number or length.
        keep: Takes finished rows, in the order of the files, group by group, with the keys
            `COLUMNS`; only path and notes where a file could not be read.
    """
    return keep_all(scored_groups(detector, paths), keep)


def scored_groups(
    detector: EnergyDetector, paths: Iterable[Path]
) -> Generator[list[Row], None, None]:
    """The rows that `score_files` keeps, made when asked for."""
    return (_rows(detector, group) for group in _groups(detector, paths))


def keep_all(groups: Iterable[list[Row]], keep: Callable[[list[Row]], None]) -> Scored:
    """Have rows kept as they come, and count them."""
    scored, began = Scored(), time.perf_counter()
    for rows in groups:
        scored.count(rows)
        keep(rows)
        scored.seconds = time.perf_counter() - began
    return scored


def identity(run: str | Path, detector: EnergyDetector) -> dict[str, str | None]:
    """What tells rows of the detector of a run folder from those of any other."""
    content = locate(run, WEIGHTS).read_bytes()
    return {
        "version of sance_audio": __version__,
        "detector": hashlib.sha256(content).hexdigest(),
        "model": detector.model_digest_,
    }


def check_output(path: Path) -> None:
    """Raise ValueError, before any work is done, where rows could not be written, or would take
    the place of what is not ours.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise ValueError(f"--out {path}: expected a name ending in .csv or .parquet")
    if path.is_dir():
        raise ValueError(f"--out {path}: a folder stands there; name a file")
    if kind == ".parquet":
        parquet.require()
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return
    found = parquet.columns_of(path) if kind == ".parquet" else _header(path)
    if found != list(COLUMNS):
        shown = "no such file" if found is None else " ".join(map(ascii, found))[:80]
        raise ValueError(
            f"--out {path}: what stands there was not written by this command (found columns: "
            f"{shown}; expected: {' '.join(COLUMNS)}); move it away, or name another file"
        )


def _header(path: Path) -> list[str] | None:
    """The first row of a CSV; None where it has none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader([file.readline(2**16)]), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return None


def _groups(detector: EnergyDetector, paths: Iterable[Path]) -> Iterator[list[Listened]]:
    """Files, listened to where possible, in groups of `GROUP`; one that is not held in memory
    makes a group of its own.
    """
    group: list[Listened] = []
    seconds = 0.0
    for path in paths:
        try:
            sound = detector.listen(path)
        except AudioError as error:
            group.append((path, None, f"not scored: {error}"))
        else:
            if not sound.held:
                yield from filter(None, (group, [(path, sound, "")]))
                group, seconds = [], 0.0
                continue
            group.append((path, sound, ""))
            seconds += sound.seconds
        if len(group) == GROUP or seconds > GROUP_SECONDS:
            yield group
            group, seconds = [], 0.0
    if group:
        yield group


def _rows(detector: EnergyDetector, group: list[Listened]) -> list[Row]:
    """One row a file."""
    try:
        marks = iter(_assess(detector, [sound for _, sound, _ in group if sound is not None]))
    except AudioError as error:  # a file that is not held, so the only one of its group
        group, marks = [(path, None, f"not scored: {error}") for path, _, _ in group], iter(())
    rows: list[Row] = []
    for path, sound, problem in group:
        row: Row = {"path": str(path), "notes": problem}
        if sound is not None:
            row |= next(marks) | {"duration_seconds": round(sound.seconds, 6)}
            row["notes"] = _notes(detector, sound)
        rows.append(row)
    return rows


def _assess(detector: EnergyDetector, sounds: list[Sound]) -> list[Row]:
    """Energy, score, p-value and class of each recording."""
    if not sounds:
        return []
    labels = detector.model_.labels if detector.model_ is not None else ()
    marks = detector.assess_windows((sound.parts() for sound in sounds), bool(labels))
    classes = marks.pop("class_log_p").argmax(1) if labels else None
    rows: list[Row] = [
        {key: float(value[i]) for key, value in marks.items() if np.isfinite(value[i])}
        for i in range(len(sounds))
    ]
    if classes is not None:
        for row, y in zip(rows, classes, strict=True):
            row["predicted_class"] = labels[int(y)]
    return rows


def _notes(detector: EnergyDetector, sound: Sound) -> str:
    """What was done to a recording before it was scored, and what is odd about it."""
    notes = [sound.partial] if sound.partial else []
    if sound.channels > 1:
        notes.append(f"{sound.channels} channels mixed down")
    if sound.sample_rate != detector.sample_rate_:
        notes.append(f"resampled from {sound.sample_rate} Hz")
    shortest = detector.shortest
    if sound.samples < shortest:
        notes.append(f"padded from {sound.samples} to {shortest} samples")
    windows = detector.count_windows(sound.samples)
    if windows > 1:
        notes.append(f"{windows} windows")
    if sound.silent:
        notes.append("silent")
    if sound.constant:
        notes.append("constant: an offset without sound")
    return "; ".join(notes)
