r"""An energy network for every level of noise.

    F(x | c, sigma) = s(sigma) <z, U(z | c, log sigma)>,     z = c_in x,  c_in = (1 + sigma^2)^-1/2
    s(sigma) = r(sigma) / (sigma^2 c_in)

U is a small U-Net over patches. By Tweedie's formula, `sigma^2 grad F` is what is missing in the
reference's own estimate of clean x; r, the root mean square error of that estimate, is its size.
So U works with numbers near 1 whatever sigma is, and one step size serves all levels.

    r^2(sigma) = mean over components and directions of  l sigma^2 / (l + sigma^2)

with l the reference's variances without noise. The last layer starts at zero, so that F = 0 at
first and the model is its reference at every level. Initialisation is variance-preserving, as in
`plain.py`.

References:
    Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
    Should EBMs model the energy or the score? (Salimans & Ho, 2021), energies of this form
    FiLM: visual reasoning with a general conditioning layer (Perez et al., 2018)
"""

from __future__ import annotations

__all__ = ["NoiseConditionalEnergy", "LEVEL_SIZES"]

import math
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sance_audio.networks.plain import SILU_GAIN, conv

LEVEL_SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"widths": (8, 16)},
    "cpu": {"widths": (32, 64, 128)},
    "gpu": {"widths": (64, 128, 256), "depth": 2},
}
"""Arguments of `NoiseConditionalEnergy` by the name of its size."""

FREQUENCIES = (0.3, 8.0, 16)
"""Lowest and highest frequency of the features of log sigma, in radians, and their number."""
EMBEDDING = 64


class NoiseConditionalEnergy(nn.Module):
    """F of any level; level 0, the model's own, when none is given.

    Arguments:
        n_components: Components that the energy is conditioned on.
        sigma: sigma_0, the model's dequantisation noise.
        sigma_max: The highest level.
        levels: Their number L, in geometric progression; 2 or more.
        rank: Directions of the reference that have variances of their own.
        dimensions: D, cells of the model's window.
        widths: Channels of each scale, from patches down.
        depth: Blocks a scale, each way.
        patch: Cells along a side of a patch.
    """

    levels: Tensor
    """`(L,)`, from `sigma` up."""
    variances: Tensor
    """`(C, rank + 1)`, the reference's without noise, those of its remainder last."""

    def __init__(
        self,
        n_components: int = 1,
        sigma: float = 0.2,
        sigma_max: float = 4.0,
        levels: int = 8,
        rank: int = 1,
        dimensions: int = 4096,
        widths: tuple[int, ...] = (32, 64, 128),
        depth: int = 1,
        patch: int = 4,
    ):
        super().__init__()
        if not (levels >= 2 and 0 < sigma < sigma_max):
            raise ValueError(
                f"levels of noise rise from sigma={sigma} to sigma_max={sigma_max} in "
                f"levels={levels}: give 2 levels or more, and 0 < sigma < sigma_max"
            )
        self.settings = {
            "n_components": n_components,
            "sigma": sigma,
            "sigma_max": sigma_max,
            "levels": levels,
            "rank": rank,
            "dimensions": dimensions,
            "widths": list(widths),
            "depth": depth,
            "patch": patch,
        }
        self.sigma, self.dimensions = sigma, dimensions
        ladder = torch.linspace(math.log(sigma), math.log(sigma_max), levels).exp()
        self.register_buffer("levels", ladder, persistent=False)
        self.register_buffer("variances", torch.ones(n_components, rank + 1))
        self.inner = _UNet(n_components, tuple(widths), depth, patch)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # channels last: a third faster on a CPU
                weight = module.weight.data
                module.weight.data = weight.contiguous(memory_format=torch.channels_last)

    @property
    def head(self) -> nn.Conv2d:
        """The last layer."""
        return self.inner.head

    @classmethod
    def of(
        cls, reference: Any, *, sigma: float, sigma_max: float, levels: int, **size: Any
    ) -> NoiseConditionalEnergy:
        """The network of a `GaussianReference`: of its components, and of the scale that it
        leaves.
        """
        count, dimensions, rank = reference.basis.shape
        network = cls(count, sigma, sigma_max, levels, rank=rank, dimensions=dimensions, **size)
        every = torch.cat([reference.eigenvalues, reference.remainder[:, None]], 1)
        network.variances.copy_((every - sigma**2).clamp_min(1e-4))
        return network

    def error(self, sigma: Tensor) -> Tensor:
        """r `(B,)`: root mean square error, per cell, of the reference's estimate of clean x from
        x at levels sigma `(B,)`.
        """
        v = sigma.square()[:, None, None]
        each = (self.variances * v / (self.variances + v)).mean(1)
        rank = each.shape[1] - 1
        total = each[:, :rank].sum(1) + (self.dimensions - rank) * each[:, rank]
        return (total / self.dimensions).sqrt()

    def map(self, x: Tensor, c: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        """The energy of each patch, `(B, M', T')`; sums to `forward`.

        Arguments:
            x: `(B, 1, M, T)`; padded with zeros to whole patches at every scale.
            c: Components `(B,)`; zeros when None.
            sigma: Levels `(B,)`; level 0 when None.
        """
        if c is None:
            c = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if sigma is None:
            sigma = x.new_full(x.shape[:1], self.sigma)
        scale_in = (1 + sigma**2).rsqrt()
        z = scale_in[:, None, None, None] * self.inner.whole(x)
        scale = self.error(sigma) / (sigma**2 * scale_in)
        patches = F.pixel_unshuffle(z, self.inner.patch)
        return scale[:, None, None] * (patches * self.inner(patches, sigma.log(), c)).sum(1)

    def covered(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The cells that the positions of `map` cover, of a window `(M, T)` and what pads it."""
        unit = self.inner.unit
        return -(-shape[0] // unit) * unit, -(-shape[1] // unit) * unit

    def forward(self, x: Tensor, c: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        """`(B, 1, M, T)`, components `(B,)` and levels `(B,)` to energies `(B,)`, in nats."""
        return self.map(x, c, sigma).sum((1, 2))


class _Block(nn.Module):
    """`(conv(silu(g h + b)) + skip(x)) / sqrt 2`, `h = conv(silu(x))`; g, b of the condition."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.first = conv(width_in, width, 3, gain=SILU_GAIN, padding=1)
        self.second = conv(width, width, 3, gain=SILU_GAIN, padding=1)
        self.skip = conv(width_in, width, 1) if width_in != width else nn.Identity()
        self.condition = nn.Linear(EMBEDDING, 2 * width)
        nn.init.normal_(self.condition.weight, std=0.3 / math.sqrt(EMBEDDING))
        nn.init.zeros_(self.condition.bias)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        gain, bias = self.condition(e)[:, :, None, None].chunk(2, 1)
        h = self.first(F.silu(x)) * (1 + gain) + bias
        return (self.second(F.silu(h)) + self.skip(x)) / math.sqrt(2)


class _UNet(nn.Module):
    """Patches `(B, P, M', T')` and what they are conditioned on, to the same shape."""

    frequencies: Tensor

    def __init__(self, n_components: int, widths: tuple[int, ...], depth: int, patch: int):
        super().__init__()
        self.patch, self.unit = patch, patch * 2 ** (len(widths) - 1)
        low, high, count = FREQUENCIES
        ladder = torch.linspace(math.log(low), math.log(high), count).exp()
        self.register_buffer("frequencies", ladder, persistent=False)
        self.component = nn.Embedding(n_components, EMBEDDING)
        self.noise, self.mix = nn.Linear(2 * count, EMBEDDING), nn.Linear(EMBEDDING, EMBEDDING)
        self.stem = conv(patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            _blocks(before, width, depth)
            for before, width in zip((widths[0], *widths), widths, strict=False)
        )
        self.middle = _Block(widths[-1], widths[-1])
        upwards = widths[::-1]
        self.narrow = nn.ModuleList(conv(below, width, 1) for below, width in pairwise(upwards))
        self.up = nn.ModuleList(_blocks(width, width, depth) for width in upwards[1:])
        self.head = conv(widths[0], patch**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)

    def whole(self, x: Tensor) -> Tensor:
        """x with zeros at the far ends, so that every scale divides it."""
        below, right = -x.shape[2] % self.unit, -x.shape[3] % self.unit
        return F.pad(x, (0, right, 0, below)) if below or right else x

    def forward(self, x: Tensor, log_sigma: Tensor, c: Tensor) -> Tensor:
        phase = log_sigma[:, None] * self.frequencies
        features = math.sqrt(2) * torch.cat([phase.sin(), phase.cos()], 1)
        e = F.silu(self.noise(features) + self.component(c))
        e = F.silu(self.mix(e))
        h, kept = self.stem(x), []
        for i, blocks in enumerate(self.down):
            h = math.sqrt(2) * F.avg_pool2d(h, 2) if i else h
            for block in cast(nn.ModuleList, blocks):
                h = block(h, e)
            kept.append(h)
        h = self.middle(kept.pop(), e)
        for narrow, blocks in zip(self.narrow, self.up, strict=True):
            h = F.interpolate(narrow(h), scale_factor=2.0, mode="nearest")
            h = (h + kept.pop()) / math.sqrt(2)
            for block in cast(nn.ModuleList, blocks):
                h = block(h, e)
        return self.head(F.silu(h))


def _blocks(width_in: int, width: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(width if i else width_in, width) for i in range(depth))
