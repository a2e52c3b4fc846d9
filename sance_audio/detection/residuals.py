r"""Residuals of log-mels: what a cell has left once its recording, or all about it, is known.

x `(M, T)` are log-mels, u(t) `(M (2 BESIDE + 1),)` a frame and those beside it, P the precision of
normals' u.
"""

from __future__ import annotations

__all__ = ["conditional", "context", "levelled", "settled", "smoothed"]

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

BESIDE = 1
"""Frames of u before and after."""
EVERY = 7
"""One in so many frames decides on the shrinkage."""
EDGE = 2
"""Frames at each end of a clip that see beyond it: half a window, in hops."""
SLIGHTEST = 1e-3
"""Shrinkage at least."""


def settled(x: Tensor) -> Tensor:
    """Log-mels `(M, T)` with the frames that see what stands before and after a clip, two at each
    end, replaced by the ones next to them: that a clip begins and ends is not odd.
    """
    t = torch.arange(x.shape[1])
    return x[:, t.clamp(EDGE, max(EDGE, x.shape[1] - 1 - EDGE))] if len(t) > 2 * EDGE else x


def levelled(x: Tensor) -> Tensor:
    """Log-mels `(M, T)`, less the median of each band."""
    return x - x.median(1, keepdim=True).values


def context(z: Tensor) -> Tensor:
    """u: z `(M, T)` and the frames beside, `(M (2 BESIDE + 1), T)`; reflected at the ends."""
    t = z.shape[1]
    at = torch.arange(-BESIDE, t + BESIDE).abs()
    at = (t - 1 - (t - 1 - at).abs()).clamp_min(0)
    around = z[:, at]
    return torch.cat([around[:, k : k + t] for k in range(2 * BESIDE + 1)])


def conditional(u: Sequence[Tensor]) -> Tensor:
    """(P / sqrt(P_bb)) for the bands of the middle frame, of normals' u, each `(D, T)`."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    some = torch.cat([part[:, ::EVERY] for part in u], 1).T.double().numpy()
    shrinkage = float(ledoit_wolf_shrinkage(some, assume_centered=True))
    shrinkage = min(max(shrinkage, SLIGHTEST), 1.0)
    square = torch.zeros(len(u[0]), len(u[0]), dtype=torch.float64)
    for part in u:
        square += part.double() @ part.double().T
    covariance, eye = square / sum(part.shape[1] for part in u), torch.eye(len(square)).double()
    size = covariance.diagonal().mean().clamp_min(1e-6)
    precision = torch.linalg.inv((1 - shrinkage) * covariance + shrinkage * size * eye)
    bands = len(square) // (2 * BESIDE + 1)
    middle = slice(BESIDE * bands, (BESIDE + 1) * bands)
    return (precision[middle] / precision.diagonal()[middle].sqrt().unsqueeze(1)).float()


def smoothed(
    x: Tensor,
    scale: tuple[float, float],
    given: int = 1,
    wanted: int = 1,
    frames: int | None = None,
) -> Tensor:
    """Maps `(..., M, T / given)` of T = `frames` frames, smoothed: `(..., M, T / wanted)`."""
    count = x.shape[-1] if frames is None else frames
    over_time = _kernel(count, given, wanted, scale[1])
    return _kernel(x.shape[-2], 1, 1, scale[0]) @ x @ over_time.T


@functools.lru_cache(maxsize=64)
def _kernel(count: int, given: int, wanted: int, deviation: float) -> Tensor:
    """Gaussian smoothing of a row of `count` cells, given one in `given`, wanted one in `wanted`:
    weights that sum to one.
    """
    here, there = torch.arange(0, count, wanted), torch.arange(0, count, given)
    distance = (here.unsqueeze(1) - there).double() / deviation
    return torch.softmax(-distance.square() / 2, 1).float()
