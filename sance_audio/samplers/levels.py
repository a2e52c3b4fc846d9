r"""Down the levels of noise: from the reference at the highest one to the model at level 0.

    x_{L-1}  exact, from the reference of the highest level
    x_t      of p(x_t | x_{t+1}): an exact draw of its Gaussian part, moved by
             -delta grad F(x_{t+1} | sigma_{t+1}), then by `ReferenceLangevin` steps

The shift is Tweedie's formula: with the true F at level t + 1 it gives x_t the mean that it has
given x_{t+1}, so that the steps have little left to do. At the highest level F is left out.

References:
    Learning energy-based models by diffusion recovery likelihood (Gao et al., 2021)
    Denoising diffusion probabilistic models (Ho et al., 2020), ancestral sampling
"""

from __future__ import annotations

__all__ = ["descend", "recover"]

from typing import Any

import torch
from torch import Tensor

from sance_audio.energy import RecoveryEnergy, level, value_and_grad
from sance_audio.samplers.engine import sample
from sance_audio.samplers.interface import Generators, per_row, randn
from sance_audio.samplers.langevin import ReferenceLangevin


def recover(
    energy: Any,
    y: Tensor,
    c: Tensor,
    sigma: Tensor,
    above: Tensor,
    steps: int,
    *,
    step_size: float,
    cap: float = 1.0,
    generator: Generators,
    **how: Any,
) -> Tensor:
    """One draw of x `(B, ...)` at levels sigma given y, the same at higher levels.

    Arguments:
        energy: A `ReferencedEnergy` whose network is conditioned on the level.
        y: `(B, 1, M, T)`.
        c: Components `(B,)`.
        sigma: Levels `(B,)` of what is drawn.
        above: Levels `(B,)` of y.
        steps: Langevin steps; 0 leaves x where the shift put it.
        step_size, cap: Of `ReferenceLangevin`.
        generator: One, or one per row.
        how: Further arguments of `sample`.
    """
    below = RecoveryEnergy.below(energy, y, c, sigma, above)
    x = below.gaussian.colour(randn(y, generator).flatten(1)).view_as(y)
    known = above < energy.network.levels[-1]
    if bool(known.any()):
        delta = torch.where(known, above**2 - sigma**2, 0.0)
        shift = value_and_grad(lambda rows: energy.network(rows, c, above), y)[1]
        x = x - per_row(delta, y) * shift
    if steps < 1:
        return x
    sampler = ReferenceLangevin(below.gaussian, step_size, cap)
    return sample(below, sampler, x, steps, generator=generator, **how)


def descend(
    energy: Any,
    noise: Tensor,
    c: Tensor,
    shape: tuple[int, int],
    steps: int,
    *,
    generator: Generators,
    **how: Any,
) -> Tensor:
    """Samples `(B, 1, M, T)` of the model, at level 0.

    Arguments:
        energy: As of `recover`.
        noise: Standard normal `(B, M T)`, of the draw at the highest level.
        c: Components `(B,)`.
        shape: `(M, T)`.
        steps: Langevin steps in all, the same number at each level; what is left over goes to the
            lowest ones.
        generator: As of `recover`.
        how: Further arguments of `recover`.
    """
    levels = energy.network.levels
    each = levels.unsqueeze(1).expand(-1, len(c))
    x = level(energy, c, each[-1]).colour(noise).view(-1, 1, *shape)
    below = len(levels) - 1
    for t in reversed(range(below)):
        own = steps // below + (t < steps % below)
        x = recover(energy, x, c, each[t], each[t + 1], own, generator=generator, **how)
    return x
