"""Scoring files: one row each, whatever the file holds."""

from __future__ import annotations

__all__ = ["COLUMNS", "Scored", "check_output", "score_files", "write_rows"]

import csv
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sance_audio import audio
from sance_audio.detection import EnergyDetector
from sance_audio.files import atomic

COLUMNS = (
    "path",
    "energy",
    "anomaly_score",
    "p_value",
    "predicted_class",
    "duration_seconds",
    "notes",
)
BATCH, BATCH_SECONDS = 64, 300.0
"""Clips, and seconds of sound, scored together at most."""
SILENCE_DBFS = -80.0


@dataclass(frozen=True)
class Scored:
    """What a scoring run did."""

    rows: list[dict[str, Any]]
    """One per file, in order, with the keys `COLUMNS`; only path and notes where a file could not
    be read.
    """
    failed: int
    """Files that could not be read."""
    seconds_of_sound: float
    seconds: float
    """Time it took, reading included."""

    @property
    def real_time_factor(self) -> float:
        """Computing time per second of sound."""
        return self.seconds / max(self.seconds_of_sound, 1e-9)


def score_files(detector: EnergyDetector, paths: Iterable[Path]) -> Scored:
    """Score files with a fitted detector; a file that cannot be read becomes a row that says
    why.
    """
    began, rows, failed, sound = time.perf_counter(), [], 0, 0.0
    for group in _groups(paths):
        good = [item for item in group if item[1] is not None]
        marks = _assess(detector, [recording for _, recording, _ in good if recording is not None])
        for path, recording, problem in group:
            if recording is None:
                failed += 1
                rows.append({"path": str(path), "notes": problem})
                continue
            duration = len(recording.waveform) / recording.sample_rate
            sound += duration
            rows.append(
                {"path": str(path), **next(marks), "duration_seconds": round(duration, 6)}
                | {"notes": _notes(detector, recording)}
            )
    return Scored(rows, failed, sound, time.perf_counter() - began)


def check_output(path: Path) -> None:
    """Raise ValueError, before any work is done, where rows could not be written."""
    if path.suffix.lower() != ".csv":
        raise ValueError(f"--out {path}: expected a name ending in .csv")
    if path.is_dir():
        raise ValueError(f"--out {path}: a folder stands there; name a file")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically."""
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _groups(paths: Iterable[Path]) -> Iterator[list[tuple[Path, audio.Recording | None, str]]]:
    """Files, decoded where possible, in groups of `BATCH`."""
    group: list[tuple[Path, audio.Recording | None, str]] = []
    for path in paths:
        try:
            group.append((path, audio.load(path), ""))
        except audio.AudioError as error:
            group.append((path, None, f"not scored: {error}"))
        sound = sum(len(r.waveform) / r.sample_rate for _, r, _ in group if r is not None)
        if len(group) == BATCH or sound > BATCH_SECONDS:
            yield group
            group = []
    if group:
        yield group


def _assess(
    detector: EnergyDetector, recordings: list[audio.Recording]
) -> Iterator[dict[str, Any]]:
    """Energy, score, p-value and class of each recording."""
    model = detector.model
    if not recordings or model is None:
        return
    x, counts = detector.windows([(r.waveform.numpy(), r.sample_rate) for r in recordings])
    marks = detector.assess_windows(x, counts)
    classes = [part.sum(0).argmax() for part in model.classify(x).split(counts)]
    for i, y in enumerate(classes):
        row: dict[str, Any] = {key: float(value[i]) for key, value in marks.items()}
        yield row | ({"predicted_class": model.labels[int(y)]} if model.labels else {})


def _notes(detector: EnergyDetector, recording: audio.Recording) -> str:
    """What was done to a recording before it was scored."""
    model, notes = detector.model, []
    assert model is not None
    wave, rate = recording.waveform, recording.sample_rate
    if recording.channels > 1:
        notes.append(f"{recording.channels} channels mixed down")
    if rate != model.sample_rate:
        notes.append(f"resampled from {rate} Hz")
    length = round(len(wave) * model.sample_rate / rate)
    if length < model.window:
        notes.append(f"padded from {length} to {model.window} samples")
    elif length > model.window:
        notes.append(f"{len(model.windows(torch.zeros(length)))} windows")
    level = 20 * float(wave.square().mean().sqrt().clamp_min(1e-12).log10())
    if level < SILENCE_DBFS:
        notes.append("silent")
    return "; ".join(notes)
