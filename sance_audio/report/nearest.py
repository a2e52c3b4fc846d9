"""The training clips that generated clips are nearest to, to be heard beside them.

A page holds only these few, never the corpus.
"""

from __future__ import annotations

__all__ = ["blocks", "flat", "nearest"]

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sance_audio import audio, metrics
from sance_audio.model import AudioEBM


def flat(x: Tensor) -> np.ndarray:
    """Log-mels `(N, 1, M, T)` as rows `(N, M T)`."""
    return x.flatten(1).cpu().numpy()


def blocks(x: Any) -> Iterator[np.ndarray]:
    """The same, a thousand rows at a time, of log-mels that may not fit in memory."""
    return (flat(x[i : i + 1000]) for i in range(0, len(x), 1000))


def nearest(
    run: Path, model: AudioEBM, x: Tensor, train: Any, sound: Callable[[int], Tensor]
) -> list[dict[str, Any]]:
    """The training row nearest to each log-mel, its sound written once, below `page/`.

    Arguments:
        run: Run folder.
        model: For energies and the sample rate.
        x: `(B, 1, M, T)`.
        train: Log-mels of the training rows, `(N, 1, M, T)`.
        sound: The waveform of one of them.

    Returns:
        Of each: file, row, distance in log-mels, energy in nats.
    """
    for old in (run / "page").glob("nearest_*.wav"):
        old.unlink()
    distances, where = metrics.nearest(flat(x), blocks(train))
    energies = model.energy_of(train[torch.from_numpy(where)])
    for row in set(where.tolist()):
        audio.write(run / _file(row), sound(row), model.sample_rate)
    return [
        {"file": _file(row), "row": row, "distance": float(d), "energy": float(e)}
        for row, d, e in zip(where.tolist(), distances, energies, strict=True)
    ]


def _file(row: int) -> str:
    return f"page/nearest_{row:06d}.wav"
