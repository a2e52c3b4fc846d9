"""Pictures: spectrograms as PNG."""

from __future__ import annotations

__all__ = ["data_uri", "png", "sheet", "spectrogram"]

import base64
import io

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

    unit = ((x - low) / (high - low)).clamp(0, 1).flip(0)
    cells = unit.repeat_interleave(scale, 0).repeat_interleave(scale, 1).cpu().numpy()
    return png(colormaps["magma"](cells)[..., :3])


def png(colours: np.ndarray) -> bytes:
    """Colours `(H, W, 3)` from 0 to 1 as a PNG."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.rint(colours * 255).astype(np.uint8), format="png")
    return buffer.getvalue()


def sheet(x: Tensor, columns: int = 6) -> bytes:
    """Several log-mels `(B, 1, M, T)` on one sheet, as a PNG."""
    rows = []
    for row in x.squeeze(1).split(columns):
        blank = row.new_full((columns - len(row), *row.shape[1:]), -9.0)
        tiles = torch.nn.functional.pad(torch.cat([row, blank]), (1, 1, 1, 1), value=9.0)
        rows.append(torch.cat(list(tiles), 1))
    return spectrogram(torch.cat(rows[::-1]), scale=2)  # the first row at the top


def data_uri(png: bytes) -> str:
    """A PNG as a `data:` address, to stand inside a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
