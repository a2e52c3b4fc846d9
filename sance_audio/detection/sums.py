"""Scores of windows, gathered to scores of clips."""

from __future__ import annotations

__all__ = ["Sums"]

from typing import Any

import numpy as np

from sance_audio.detection.rows import Row

Array = np.ndarray


class Sums:
    """What is kept of the rows of each clip."""

    def __init__(self, aggregate: str):
        self.largest = aggregate == "max"
        self.score: dict[int, float] = {}
        self.rows: dict[int, int] = {}
        self.energy: dict[int, float] = {}
        self.windows: dict[int, int] = {}
        self.log_p: dict[int, Any] = {}

    def add(self, rows: list[Row], scores: Array) -> None:
        for row, score in zip(rows, scores.tolist(), strict=True):
            i = row.clip
            if self.largest:
                self.score[i] = max(self.score.get(i, -np.inf), score)
            else:
                self.score[i] = self.score.get(i, 0.0) + score
            self.rows[i] = self.rows.get(i, 0) + 1
            self.energy[i] = self.energy.get(i, 0.0) + row.energy * row.windows
            self.windows[i] = self.windows.get(i, 0) + row.windows
            if row.log_p is not None:
                self.log_p[i] = self.log_p.get(i, 0) + row.log_p

    def marks(self) -> dict[str, Array]:
        if not self.rows:
            raise ValueError("no clips were given: 0 samples, at least 1 is required")
        score = np.array(list(self.score.values()))
        rows, windows = (np.array(list(d.values())) for d in (self.rows, self.windows))
        energy = np.array(list(self.energy.values())) / np.where(windows > 0, windows, np.nan)
        return {
            "energy": energy,
            "anomaly_score": score if self.largest else score / rows,
            "class_log_p": np.array(list(self.log_p.values())),
        }
