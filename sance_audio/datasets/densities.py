r"""Densities in the plane, known exactly: what a model learns can be drawn beside the truth.

Each has exact samples and an exact normalised log density, x = (x_1, x_2), r = |x|:

    eight_gaussians   mean of N(m_k, s^2 I), m_k on a circle of radius R
    rings             mean of circles of radius R_k blurred by N(0, s^2 I):
                      log p_k = log I_0(r R_k / s^2) - (r^2 + R_k^2) / (2 s^2) - log(2 pi s^2)
    checkerboard      uniform on every other cell of a square: log p is minus infinity off them
    banana            x_1 ~ N(0, a^2),  x_2 | x_1 ~ N(b (x_1^2 - a^2), s^2)

References:
    The Rice distribution: Mathematical analysis of random noise (Rice, 1945)
"""

from __future__ import annotations

__all__ = ["Density", "EightGaussians", "Rings", "Checkerboard", "Banana", "DENSITIES"]

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Density(Protocol):
    """What a density in the plane has."""

    @property
    def extent(self) -> float:
        """Half the side of a square around the origin that holds all its mass, and that of a
        Gaussian with its moments, but for 1e-3 and 2e-3 of it.
        """
        ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact samples `(n, 2)`."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)` in nats, of points `(N, 2)`."""
        ...


@dataclass(frozen=True)
class EightGaussians:
    """Eight Gaussians on a circle."""

    radius: float = 2.8
    """R, of the circle of their means."""
    deviation: float = 0.35
    """s, of each in each direction."""
    extent: float = 8.0

    def means(self) -> Tensor:
        """`(8, 2)`."""
        return self.radius * _unit(torch.arange(8) * (math.pi / 4))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        means = self.means()[torch.randint(8, (n,), generator=generator)]
        return means + self.deviation * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        square = (x[:, None] - self.means().to(x)).square().sum(2) / self.deviation**2
        constant = math.log(8 * 2 * math.pi * self.deviation**2)
        return (-0.5 * square).logsumexp(1) - constant


@dataclass(frozen=True)
class Rings:
    """Concentric circles, blurred by a Gaussian; each holds the same mass."""

    radii: tuple[float, ...] = (1.0, 2.0, 3.0)
    """R_k."""
    deviation: float = 0.15
    """s, of the blur in each direction."""
    extent: float = 6.0

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(self.radii), (n,), generator=generator)
        circle = _unit(2 * math.pi * torch.rand(n, generator=generator))
        blur = self.deviation * torch.randn(n, 2, generator=generator)
        return torch.tensor(self.radii)[which, None] * circle + blur

    def log_prob(self, x: Tensor) -> Tensor:
        r, radii = x.norm(dim=1, keepdim=True), torch.tensor(self.radii).to(x)
        variance = self.deviation**2
        # i0e(z) = exp(-z) I_0(z), so that exp(-(r - R)^2 / (2 s^2)) i0e(r R / s^2) is what remains
        each = torch.special.i0e(r * radii / variance).log() - (r - radii) ** 2 / (2 * variance)
        return each.logsumexp(1) - math.log(len(radii) * 2 * math.pi * variance)


@dataclass(frozen=True)
class Checkerboard:
    """Every other cell of a square board, uniformly."""

    cells: int = 4
    """Cells along a side, an even number."""
    side: float = 2.0
    """Of a cell."""
    extent: float = 8.0

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        column = torch.randint(self.cells, (n,), generator=generator)
        row = 2 * torch.randint(self.cells // 2, (n,), generator=generator) + column % 2
        corner = torch.stack([column, row], 1) - self.cells / 2
        return self.side * (corner + torch.rand(n, 2, generator=generator))

    def log_prob(self, x: Tensor) -> Tensor:
        cell = (x / self.side + self.cells / 2).floor()
        inside = ((cell >= 0) & (cell < self.cells)).all(1) & (cell.sum(1) % 2 == 0)
        level = -math.log(self.side**2 * self.cells**2 / 2)
        return torch.full_like(x[:, 0], level).masked_fill(~inside, -torch.inf)


@dataclass(frozen=True)
class Banana:
    """A Gaussian bent along a parabola."""

    length: float = 1.0
    """a, the deviation of x_1."""
    bend: float = 0.3
    """b."""
    deviation: float = 0.4
    """s, of x_2 about the parabola."""
    extent: float = 6.0

    def _spine(self, x1: Tensor) -> Tensor:
        return self.bend * (x1.square() - self.length**2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, 2, generator=generator)
        x1 = self.length * z[:, 0]
        return torch.stack([x1, self._spine(x1) + self.deviation * z[:, 1]], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        along, across = x[:, 0] / self.length, (x[:, 1] - self._spine(x[:, 0])) / self.deviation
        constant = math.log(2 * math.pi * self.length * self.deviation)
        return -0.5 * (along.square() + across.square()) - constant


DENSITIES: dict[str, Density] = {
    "eight_gaussians": EightGaussians(),
    "rings": Rings(),
    "checkerboard": Checkerboard(),
    "banana": Banana(),
}


def _unit(angle: Tensor) -> Tensor:
    """Points `(N, 2)` of the unit circle."""
    return torch.stack([angle.cos(), angle.sin()], 1)
