r"""Models of points in the plane, whose log Z and distance to the truth a grid gives.

    log Z = log sum over cells of exp(-E(x)) dx^2,   total variation = 1/2 sum |p - q| dx^2

by the midpoint rule, on a square that holds all the mass.
"""

from __future__ import annotations

__all__ = ["PointModel", "grid", "log_density_on_grid", "total_variation", "picture"]

import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sance_audio.energy import EnergyModel, ReferencedEnergy
from sance_audio.samplers import ReferenceLangevin, sample

COLUMNS = ("truth", "model", "reference alone", "samples")
ROWS = 16384
"""Points that an energy is evaluated on at once."""


class PointModel(EnergyModel):
    """An energy-based model of points x `(B, 1, 1, 2)`. They are continuous: nothing is added to
    them.

    Arguments:
        density: Reference of two dimensions, and a network such as `DenseEnergy`.
    """

    def __init__(self, density: ReferencedEnergy):
        super().__init__(density, sigma=0.0)

    @property
    def shape(self) -> tuple[int, int]:
        return 1, 2

    @property
    def settings(self) -> dict[str, Any]:
        network: Any = self.density.network
        return {"network": network.settings, "temperature": self.density.temperature}

    @torch.no_grad()
    def draw(
        self, n: int, generator: torch.Generator, *, steps: int = 300, step_size: float = 0.02
    ) -> Tensor:
        """Samples `(n, 2)`: from exact ones of the reference by `steps` Metropolis-adjusted
        Langevin steps.
        """
        base, c = self.density.base, torch.zeros(n, dtype=torch.long, device=self.device)
        x = base.sample(c, generator).view(-1, 1, *self.shape)
        sampler = ReferenceLangevin(base.given(c), step_size, adjusted=True)
        energy = self.density.given(c)
        return sample(energy, sampler, x, steps, generator=generator).flatten(1)


def grid(extent: float, n: int) -> Tensor:
    """Centres `(n * n, 2)` of the cells of the square `[-extent, extent]^2`, row by row from
    below: the second coordinate rises slowest.
    """
    centres = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * extent / n) - extent
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([columns, rows], 2).view(-1, 2)


def log_density_on_grid(
    log_prob: Callable[[Tensor], Tensor] | PointModel, extent: float, n: int = 256
) -> tuple[Tensor, float]:
    """Log density at the centres of a grid, normalised there, and the log of what it was divided
    by.

    Arguments:
        log_prob: Log of an unnormalised density: points `(N, 2)` to `(N,)`; or a model, of one
            component, relative to its reference.
        extent: Half the side of the square.
        n: Cells along a side.

    Returns:
        `(n, n)`, rows from below, and log Z in nats: for a model, exact up to the mass outside the
        square.

    Raises:
        ValueError: a model of several components.
    """
    function = _of_model(log_prob) if isinstance(log_prob, PointModel) else log_prob
    with torch.no_grad():
        values = torch.cat([function(rows.float()) for rows in grid(extent, n).split(ROWS)])
    values = values.double()
    log_z = float(values.logsumexp(0)) + 2 * math.log(2 * extent / n)
    return (values - log_z).view(n, n), log_z


def _of_model(model: PointModel) -> Callable[[Tensor], Tensor]:
    if model.reference.n_components != 1:
        raise ValueError(
            f"the model has {model.reference.n_components} components: a grid takes one of one"
        )

    def log_prob(x: Tensor) -> Tensor:
        x = x.to(model.device).view(-1, 1, *model.shape)
        return -model.density(x, torch.zeros(len(x), dtype=torch.long, device=x.device)).cpu()

    return log_prob


def total_variation(p: Tensor, q: Tensor, extent: float) -> float:
    """Total variation distance of two log densities on one grid, `(n, n)` each: from 0 to 1, the
    largest difference that they give to the probability of any event.
    """
    area = (2 * extent / p.shape[0]) ** 2
    return 0.5 * area * float((p.exp() - q.exp()).abs().sum())


def picture(rows: dict[str, tuple[float, Tensor, Tensor, Tensor, Tensor]]) -> bytes:
    """Truth, model, reference alone and samples side by side, a density to a row; as a PNG.

    Arguments:
        rows: By name: the half side of the square; log densities `(n, n)` of truth, model and
            reference; samples `(N, 2)`. A row is cut to where the truth is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2 * len(rows) + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for line, (name, (extent, *logs, points)) in zip(axes, rows.items(), strict=True):
        densities = [log.exp().numpy() for log in logs]
        top = densities[0].max()
        n = len(densities[0])
        there = (torch.from_numpy(densities[0]) > 1e-3 * top).nonzero()
        low, high = (there.min(0)[0], there.max(0)[0] + 1)
        middle = (low + high) / n * extent - extent
        half = 0.55 * float((high - low).max()) / n * 2 * extent
        y, x = middle.tolist()
        for axis, density in zip(line, densities, strict=False):
            square = (-extent, extent, -extent, extent)
            axis.imshow(density, origin="lower", extent=square, vmin=0, vmax=top, cmap="magma")
        line[3].scatter(*points.T.numpy(), s=0.4, color="black", linewidths=0)
        for axis, title in zip(line, COLUMNS, strict=True):
            axis.set(xlim=(x - half, x + half), ylim=(y - half, y + half), xticks=[], yticks=[])
            axis.set_aspect("equal")
            axis.set_title(title if line[0] is axes[0, 0] else "", fontsize=9)
        line[0].set_ylabel(name.replace("_", " "), fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
