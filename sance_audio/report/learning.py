"""How a run learnt: the same seeds at each checkpoint, and curves of its metrics."""

from __future__ import annotations

__all__ = ["CURVES", "curves", "progress"]

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sance_audio import pictures

CURVES = {
    "gap": "network gap (nats)",
    "loss": "loss",
    "denoising": "error of denoising / the reference's",
    "norm": "norm of the gradient",
    "accuracy": "data told from noise",
    "pool_ess": "ESS / N of the pool",
    "displacement": "chains' steps / the reference's",
    "log_z": "log Z ledger (nats)",
}
"""Columns of `metrics.jsonl` that are drawn, and their titles."""
CHECKPOINTS = 8
"""Checkpoints that are shown, at most: the first, the last, and some between."""
POINTS = 160
"""Points of a curve, at most."""


def progress(run: Path) -> list[dict[str, Any]]:
    """Clips that fixed chains gave during training: of each seed, its frames from the first
    checkpoint to the last, with the pictures that were drawn then.
    """
    every = sorted((run / "samples").glob("step_*.png"))
    chosen = np.linspace(0, len(every) - 1, min(CHECKPOINTS, len(every))).round().astype(int)
    seeds: dict[int, dict[str, Any]] = {}
    for sheet in [every[i] for i in chosen]:
        step = int(sheet.stem.split("_")[1])
        found = (re.match(r"step_\d+_(\d+)_?(.*)", p.stem) for p in _wavs(sheet))
        clips = sorted((int(m[1]), m[2], m.string) for m in found if m)
        tiles = _tiles(sheet, len(clips))
        for (seed, label, stem), tile in zip(clips, tiles, strict=True):
            about = {"file": f"samples/{stem}.wav", "step": step, "picture": tile, "index": seed}
            row = seeds.setdefault(seed, {"label": label or f"seed {seed}", "frames": []})
            row["frames"].append(about | {"label": row["label"]})
    return [seeds[seed] for seed in sorted(seeds)]


def _wavs(sheet: Path) -> list[Path]:
    return sorted(sheet.parent.glob(f"{sheet.stem}_*.wav"))


def _tiles(sheet: Path, count: int, columns: int = 6) -> list[str]:
    """The first pictures on a sheet as `pictures.sheet` makes them, as `data:` addresses."""
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(sheet.read_bytes()), format="png")[..., :3]
    lines = max(1, -(-count // columns))
    height, width = pixels.shape[0] // lines, pixels.shape[1] // columns
    tiles = []
    for i in range(count):
        top, left = height * (i // columns), width * (i % columns)
        tile = pixels[top : top + height, left : left + width]
        tiles.append(pictures.data_uri(pictures.png(tile[2:-2:2, 2:-2:2])))  # less its frame
    return tiles


def curves(rows: Sequence[dict[str, Any]], smooth: int = 25) -> list[dict[str, Any]]:
    """Of each column that has values, what an SVG of 100 x 40 draws: the band in which they lie,
    and their running mean.

    Arguments:
        rows: Of `metrics.jsonl`.
        smooth: Steps of the running mean.
    """
    panels = []
    for name, title in CURVES.items():
        found = [(r["step"], r[name]) for r in rows if isinstance(r.get(name), (int, float))]
        points = np.array([p for p in found if np.isfinite(p).all()], dtype=float)
        if len(points) > 1:
            panels.append({"title": title} | _panel(points[:, 0], points[:, 1], smooth))
    return panels


def _panel(steps: np.ndarray, values: np.ndarray, smooth: int) -> dict[str, Any]:
    smooth = min(smooth, len(values))
    mean = np.convolve(values, np.ones(smooth) / smooth, "valid")
    bottom, top = np.quantile(values, [0.005, 0.995])  # a lone spike does not flatten the rest
    x = (steps - steps[0]) / max(steps[-1] - steps[0], 1e-9) * 100
    y = 38 - 36 * ((values - bottom) / max(top - bottom, 1e-12)).clip(0, 1)
    parts = np.array_split(np.arange(len(values)), min(POINTS, len(values)))
    upper = [(x[part].mean(), y[part].min()) for part in parts]
    lower = [(x[part].mean(), y[part].max()) for part in reversed(parts)]
    ends = sorted({max(int(part[-1]), smooth - 1) for part in parts})
    smoothed = 38 - 36 * ((mean - bottom) / max(top - bottom, 1e-12)).clip(0, 1)
    return {
        "band": _path([*upper, *lower]),
        "line": _path([(x[i], smoothed[i - smooth + 1]) for i in ends]),
        "low": f"{bottom:.3g}",
        "high": f"{top:.3g}",
        "last": f"{mean[-1]:.3g}",
        "first_step": int(steps[0]),
        "last_step": int(steps[-1]),
    }


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
