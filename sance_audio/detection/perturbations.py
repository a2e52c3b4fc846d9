"""Backgrounds: what normals would be if one thing about them were different.

Each is a function of log-mels `(B, M, T)`, less the normals' mean of each band, and a generator;
it gives log-mels of the same shape. An energy minus that of a background knows the one thing.
"""

from __future__ import annotations

__all__ = ["BACKGROUNDS", "Background", "Gaussian"]

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate, pad

Background = Callable[[Tensor, torch.Generator], Tensor]
BLOCK = 4
"""Frames that stay together when time is shuffled."""
KNOTS = 6
"""Of a random filter."""


def reverse(x: Tensor, g: torch.Generator) -> Tensor:
    """Backwards."""
    return x.flip(2)


def desynchronise(x: Tensor, g: torch.Generator) -> Tensor:
    """Eight groups of bands, each rotated in time by itself."""
    batch, bands, count = x.shape
    shift = torch.randint(0, count, (batch, 8), generator=g).repeat_interleave(bands // 8, 1)
    return x.gather(2, (torch.arange(count) + shift.unsqueeze(2)) % count)


def transpose(x: Tensor, g: torch.Generator) -> Tensor:
    """Three to eight bands up or down."""
    batch, bands, count = x.shape
    sign = 2 * torch.randint(0, 2, (batch, 1), generator=g) - 1
    shift = sign * torch.randint(3, 9, (batch, 1), generator=g)
    band = (torch.arange(bands) + shift).clamp(0, bands - 1)
    return x.gather(1, band.unsqueeze(2).expand(-1, -1, count))


def equalise(x: Tensor, g: torch.Generator) -> Tensor:
    """Through a smooth random filter, 1.5 nats of deviation."""
    gain = 1.5 * torch.randn(len(x), 1, KNOTS, generator=g)
    return x + interpolate(gain, size=x.shape[1], mode="linear", align_corners=True).mT


def shuffle(x: Tensor, g: torch.Generator) -> Tensor:
    """Blocks of `BLOCK` frames in another order."""
    batch, bands, count = x.shape
    blocks = torch.rand(batch, count // BLOCK, generator=g).argsort(1).unsqueeze(2)
    order = (BLOCK * blocks + torch.arange(BLOCK)).flatten(1)
    rest = torch.arange(order.shape[1], count).expand(batch, -1)
    order = torch.cat([order, rest], 1)
    return x.gather(2, order.unsqueeze(1).expand(-1, bands, -1))


def retime(x: Tensor, g: torch.Generator) -> Tensor:
    """At half or 1.8 times the speed, reflected at the end."""
    batch, bands, count = x.shape
    speed = torch.where(torch.rand(batch, 1, generator=g) < 0.5, 0.5, 1.8)
    t = (torch.arange(count) * speed) % (2 * count - 2)
    t = torch.where(t > count - 1, 2 * count - 2 - t, t)
    before = t.floor().long().clamp(0, count - 2)
    weight = (t - before).unsqueeze(1)
    index = before.unsqueeze(1).expand(-1, bands, -1)
    return x.gather(2, index) * (1 - weight) + x.gather(2, index + 1) * weight


def mix(x: Tensor, g: torch.Generator) -> Tensor:
    """Two at once."""
    return torch.logaddexp(x, x[torch.randperm(len(x), generator=g)]) - 0.35


def contrast(x: Tensor, g: torch.Generator) -> Tensor:
    """Dynamics of each band times 0.5 or 1.7."""
    factor = torch.where(torch.rand(len(x), 1, 1, generator=g) < 0.5, 0.5, 1.7)
    mean = x.mean(2, keepdim=True)
    return mean + (x - mean) * factor


def blur(x: Tensor, g: torch.Generator) -> Tensor:
    """Averaged over seven frames."""
    return avg_pool1d(pad(x, (3, 3), mode="replicate"), 7, 1)


class Gaussian:
    """Samples of the Gaussian reference of normals: a mean, `rank` directions, and a remainder of
    one variance, fitted to crops `(n, M, T)`.
    """

    def __init__(self, crops: Tensor, rank: int = 32):
        rows = crops.flatten(1)
        self.mean = rows.mean(0)
        _, s, v = torch.linalg.svd(rows - self.mean, full_matrices=False)
        variance = s.square() / max(len(rows) - 1, 1)
        self.directions = v[:rank] * variance[:rank].sqrt().unsqueeze(1)
        self.remainder = (variance[rank:].sum() / max(rows.shape[1] - rank, 1)).sqrt()

    def __call__(self, x: Tensor, g: torch.Generator) -> Tensor:
        z = torch.randn(len(x), len(self.directions), generator=g)
        rest = torch.randn(len(x), len(self.mean), generator=g)
        return (self.mean + z @ self.directions + self.remainder * rest).view_as(x)


BACKGROUNDS: dict[str, Background] = {
    f.__name__: f
    for f in (
        reverse,
        desynchronise,
        transpose,
        equalise,
        shuffle,
        retime,
        mix,
        contrast,
        blur,
    )
}
