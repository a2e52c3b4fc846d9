"""Pictures: spectrograms and learning curves, as PNG."""

from __future__ import annotations

__all__ = ["spectrogram", "sheet", "curves", "data_uri"]

import base64
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor


def spectrogram(x: Tensor, low: float = -2.0, high: float = 3.0, scale: int = 3) -> bytes:
    """A log-mel `(M, T)` as a PNG, low frequencies at the bottom, `scale` pixels a cell.

    Arguments:
        x: Standardised log-mel.
        low: Value shown darkest.
        high: Value shown brightest.
        scale: Pixels a cell.
    """
    from matplotlib import colormaps
    from matplotlib.image import imsave

    unit = ((x - low) / (high - low)).clamp(0, 1).flip(0)
    cells = unit.repeat_interleave(scale, 0).repeat_interleave(scale, 1).cpu().numpy()
    colours = (colormaps["magma"](cells)[..., :3] * 255).astype(np.uint8)
    buffer = io.BytesIO()
    imsave(buffer, colours, format="png")
    return buffer.getvalue()


def sheet(x: Tensor, columns: int = 6) -> bytes:
    """Several log-mels `(B, 1, M, T)` on one sheet, as a PNG."""
    rows = []
    for row in x.squeeze(1).split(columns):
        blank = row.new_full((columns - len(row), *row.shape[1:]), -9.0)
        tiles = torch.nn.functional.pad(torch.cat([row, blank]), (1, 1, 1, 1), value=9.0)
        rows.append(torch.cat(list(tiles), 1))
    return spectrogram(torch.cat(rows[::-1]), scale=2)  # the first row at the top


def curves(rows: list[dict[str, Any]], names: dict[str, str], smooth: int = 25) -> bytes:
    """Columns of the training metrics over steps, one panel each, three in
    a row, with a running mean; as a PNG.

    Arguments:
        rows: Of `metrics.jsonl`.
        names: Column to title.
        smooth: Steps of the running mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis, (name, title) in zip(axes, names.items(), strict=False):
        points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        if points:
            steps, values = np.array(points, dtype=float).T
            axis.plot(steps, values, lw=0.5, color="0.7")
            width = min(smooth, len(values))
            mean = np.convolve(values, np.ones(width) / width, "valid")
            axis.plot(steps[width - 1 :], mean, color="tab:blue")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG as a `data:` address, to stand inside a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
