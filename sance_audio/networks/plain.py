r"""Convolutional and fully connected networks.

    F(x | c) = sum over positions of w . silu(h(x | c))

The sum runs over the positions of the last feature map, so the energy has a map of where it sits,
and a longer x has more of it. Variance-preserving initialisation: weights of unit gain, 1.7 after
a SiLU; a residual sum doubles the variance, the pooling after it halves it. The last layer starts
at zero, so that `F = 0` at first and the model is its reference.
"""

from __future__ import annotations

__all__ = ["ResidualEnergy", "DenseEnergy", "SIZES", "SILU_GAIN", "conv", "spread"]

import math
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"channels": (16, 32), "depth": (1,)},
    "cpu": {"channels": (32, 64, 128), "depth": (1, 1)},
    "gpu": {"channels": (64, 128, 256), "depth": (2, 2)},
}
"""Widths after the stem and after each further stage, and blocks per stage; "cpu" suits two cores.
"""


SILU_GAIN = 1.7
"""Restores the variance of a standard normal after a SiLU."""


class Block(nn.Module):
    """`conv(silu(conv(silu(x)) + e_c)) + skip(x)`, with a bias e_c per component."""

    def __init__(self, width_in: int, width: int, n_components: int):
        super().__init__()
        self.first = conv(width_in, width, 3, gain=SILU_GAIN, padding=1)
        self.second = conv(width, width, 3, gain=SILU_GAIN, padding=1)
        self.skip = conv(width_in, width, 1) if width_in != width else nn.Identity()
        self.condition = nn.Embedding(n_components, width)
        nn.init.zeros_(self.condition.weight)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.first(F.silu(x)) + self.condition(c)[:, :, None, None]
        return self.second(F.silu(h)) + self.skip(x)


class ResidualEnergy(nn.Module):
    """A stride-4 stem, then residual stages, each followed by average pooling.

    Arguments:
        n_components: Components that the energy is conditioned on (1 for an unconditional one).
        channels: Widths: of the first stage, and after each pooling.
        depth: Blocks per stage after the first.
        positions: Positions of the last feature map for the model's own window; the sum over
            positions is divided by it once and for all, so that the learning rate means the same
            for every window.
    """

    def __init__(
        self,
        n_components: int = 1,
        channels: tuple[int, ...] = (32, 64, 128),
        depth: tuple[int, ...] = (1, 1),
        positions: int = 4,
    ):
        super().__init__()
        if len(depth) != len(channels) - 1:
            raise ValueError(f"depth {depth} needs one entry fewer than channels {channels}")
        self.settings = {
            "n_components": n_components,
            "channels": list(channels),
            "depth": list(depth),
            "positions": positions,
        }
        self.stem = conv(1, channels[0], 6, stride=4, padding=1)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Block(width if i else before, width, n_components) for i in range(blocks)
            )
            for before, width, blocks in zip(
                (channels[0], *channels), channels, (1, *depth), strict=False
            )
        )
        self.head = nn.Linear(channels[-1], 1, bias=False)  # a constant would belong to log Z
        nn.init.zeros_(self.head.weight)
        self.scale = 1 / positions
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # channels last: a fifth faster on a CPU
                weight = module.weight.data
                module.weight.data = weight.contiguous(memory_format=torch.channels_last)

    def map(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The energy of each position, `(B, M', T')`; sums to `forward`.

        Arguments:
            x: `(B, 1, M, T)`, M and T at least 16.
            c: Components `(B,)`; zeros when None.
        """
        if c is None:
            c = torch.zeros(len(x), dtype=torch.long, device=x.device)
        h = self.stem(x)
        for stage in self.stages:
            for k, block in enumerate(cast(nn.ModuleList, stage)):
                h = block(h / math.sqrt(2) if k else h, c)
            h = F.avg_pool2d(h, 2, ceil_mode=True)  # halves the variance that the sum doubled
        return self.scale * self.head(F.silu(h).movedim(1, -1)).squeeze(-1)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """`(B, 1, M, T)` and components `(B,)` to energies `(B,)`, in nats."""
        return self.map(x, c).sum((1, 2))


class DenseEnergy(nn.Module):
    r"""A fully connected network of all cells at once: `F(x | c) = w . silu(h(x | c))`.

        h = W_1 [x, sqrt 2 sin(B x), sqrt 2 cos(B x)] + e_c,  then  h = W_k silu(h)  for k = 2 ...

    The rows of B, frequencies drawn from N(0, bandwidth^2 I) once and for all, let it follow edges
    that are sharp against the spread of x.

    Arguments:
        n_components: Components that the energy is conditioned on.
        dimensions: D, cells of x.
        width: Hidden units of a layer.
        depth: Hidden layers.
        frequencies: Rows of B; 0 for none.
        bandwidth: Deviation of their entries, in radians per unit of x.

    References:
        Fourier features let networks learn high frequency functions in low dimensional domains
            (Tancik et al., 2020)
    """

    fourier: Tensor

    def __init__(
        self,
        n_components: int = 1,
        dimensions: int = 2,
        width: int = 128,
        depth: int = 3,
        frequencies: int = 64,
        bandwidth: float = 1.0,
    ):
        super().__init__()
        self.settings = {
            "n_components": n_components,
            "dimensions": dimensions,
            "width": width,
            "depth": depth,
            "frequencies": frequencies,
            "bandwidth": bandwidth,
        }
        drawn = torch.randn(dimensions, frequencies, generator=torch.Generator().manual_seed(0))
        self.register_buffer("fourier", bandwidth * drawn, persistent=False)
        widths = [dimensions + 2 * frequencies, *[width] * depth]
        self.layers = nn.ModuleList(
            _linear(a, b, gain=SILU_GAIN if k else 1.0)
            for k, (a, b) in enumerate(pairwise(widths))
        )
        self.condition = nn.Embedding(n_components, width)
        nn.init.zeros_(self.condition.weight)
        self.head = nn.Linear(width, 1, bias=False)  # a constant would belong to log Z
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """`(B, ...)` of D cells and components `(B,)`, zeros when None, to energies `(B,)`."""
        x = x.flatten(1)
        if self.fourier.shape[1]:
            phase = x @ self.fourier
            x = torch.cat([x, math.sqrt(2) * phase.sin(), math.sqrt(2) * phase.cos()], 1)
        e = self.condition.weight[:1] if c is None else self.condition(c)
        h = self.layers[0](x) + e
        for layer in self.layers[1:]:
            h = layer(F.silu(h))
        return self.head(F.silu(h)).squeeze(1)


def spread(coarse: Tensor, shape: tuple[int, int]) -> Tensor:
    """A map `(B, M', T')` over the cells `(M, T)` that its positions stand for, sums unchanged."""
    rows = torch.arange(shape[0], device=coarse.device) * coarse.shape[1] // shape[0]
    columns = torch.arange(shape[1], device=coarse.device) * coarse.shape[2] // shape[1]
    cells = rows.bincount()[:, None] * columns.bincount()[None, :]
    return (coarse / cells)[:, rows][:, :, columns]


def conv(width_in: int, width: int, kernel: int, gain: float = 1.0, **kwargs: Any) -> nn.Conv2d:
    """A convolution that keeps the variance of its input times `gain` squared."""
    layer = nn.Conv2d(width_in, width, kernel, **kwargs)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(width_in * kernel**2))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _linear(width_in: int, width: int, gain: float) -> nn.Linear:
    """The same for a linear layer."""
    layer = nn.Linear(width_in, width)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(width_in))
    nn.init.zeros_(layer.bias)
    return layer
