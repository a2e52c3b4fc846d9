"""Noise for noise-contrastive estimation: the model itself, frozen; the reference; a flow.

A kind of noise has `refresh`, `draw` and `log_ratio` (`interface.Noise`); `make` chooses one by
the settings of a run.
"""

from __future__ import annotations

__all__ = ["Noise", "Draw", "SelfNoise", "GaussianNoise", "FlowNoise", "make", "OWN"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sance_audio.config import TrainConfig
from sance_audio.energy import ReferencedEnergy
from sance_audio.noise.chains import SelfNoise
from sance_audio.noise.interface import OWN, Draw, Noise
from sance_audio.noise.normalised import FlowNoise, GaussianNoise


def make(
    config: TrainConfig,
    energy: ReferencedEnergy,
    shape: tuple[int, int],
    generator: torch.Generator,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Noise:
    """The noise of a run.

    Arguments:
        config: Settings.
        energy: The energy being trained.
        shape: `(M, T)` of a sample.
        generator: Of the chains' starts.
        gather: See `Noise`.
    """
    shared: dict[str, Any] = {
        "per_component": config.per_component,
        "pool": config.pool_groups,
        "dlogz": config.dlogz,
        "dlogz_rate": config.dlogz_rate,
        "gather": gather,
    }
    if config.noise == "gaussian":
        return GaussianNoise(energy, shape, **shared)
    if config.noise == "flow":
        return FlowNoise(
            energy,
            shape,
            transforms=config.flow_transforms,
            width=config.flow_width,
            rate=config.flow_rate,
            **shared,
        )
    return SelfNoise(
        energy,
        shape,
        groups=config.groups,
        steps=config.langevin_steps,
        step_size=config.step_size,
        cap=config.cap,
        fresh=config.fresh,
        weighted=config.weighted,
        generator=generator,
        **shared,
    )
