"""Settings of a training run: one frozen dataclass, checked when it is made."""

from __future__ import annotations

__all__ = ["TrainConfig"]

from dataclasses import dataclass
from typing import Literal

from sance_audio.divergences import Pair, objective


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the resolved values stand in the run's config.json.

    Under several processes each has a batch, chains and a pool of the sizes given here.
    """

    steps: int = 4000
    """Optimiser steps."""
    interval: int = 1
    """K: optimiser steps between refreshes of the noise, at most."""
    noise: Literal["self", "pcd", "gaussian", "flow"] = "self"
    """self: a snapshot of the model (self-adapting). pcd: the same, a new one every step (persistent
    contrastive divergence). gaussian: the reference, fixed. flow: a normalising flow trained beside
    the model (needs sance_audio[flow])."""
    adaptive: bool = True
    """Refresh earlier than every K steps where the model has run ahead of its noise: by min_ess or
    max_accuracy."""
    temperature: float = 1.0
    """tau: the model is exp(-E / tau) / Z."""
    dlogz: Literal["pool", "learned", "cancelled"] = "pool"
    """log Z_theta / Z_k in the log ratio. pool: in closed form from the pool, per component.
    learned: a parameter per component, started anew at every refresh. cancelled: left out, for
    losses that it cancels in."""
    dlogz_rate: float = 0.05
    """Learning rate of a learned dlogZ."""
    weighted: bool = False
    """Carry log weights along the chains, move them by Metropolis steps, resample at ESS / N below
    a half: an honest log Z, for a forward on all chains at every refresh."""
    flow_transforms: int = 6
    """Coupling layers of the flow."""
    flow_width: int = 256
    """Width of their hidden layers."""
    flow_rate: float = 1e-3
    """Learning rate of the flow."""
    loss: str = "logistic"
    """logistic, kl, least_squares, exponential, alpha, donsker_varadhan or ranking; see
    divergences.py."""
    alpha: float = 0.5
    """Of the loss alpha."""
    nu: int = 1
    """Noise samples per data sample."""
    per_component: int = 1
    """Data clips per component of the reference in a batch."""
    groups: int = 4
    """Groups of persistent chains; a group has per_component chains of each component."""
    pool: int | None = None
    """Groups advanced at a refresh; their ends are the noise until the next. When left out: 1 for
    an interval of 1, else as many as give each component 4 chains."""
    langevin_steps: int = 12
    """Langevin steps of a chain per refresh."""
    step_size: float = 0.2
    """eps of the sampler."""
    cap: float = 1.0
    """Largest eigenvalue of the reference that preconditions the sampler's drift."""
    fresh: float = 0.0
    """Probability that a chain starts again from the reference at a refresh."""
    rate: float = 3e-4
    """Learning rate of Adam; falls linearly to zero from half-way."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.99
    """Decay of Adam's second moment."""
    clip: float = 2.0
    """Largest norm of the gradient."""
    ema: float = 0.99
    """Decay of the averaged weights that the model is exported with."""
    penalty: float = 1e-4
    """Weight of the mean squared network energy."""
    gap_limit: float = 50.0
    """Largest |mean F(noise) - mean F(data)|, averaged over 10 steps, in nats, before the run is
    taken back.
    """
    min_ess: float = 0.5
    """Refresh when ESS / N of the pool falls below."""
    max_accuracy: float = 0.7
    """Refresh when the balanced accuracy of h > 0 rises above, over at least 200 clips."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    sample_every: int = 1000
    """Steps between clips and pictures from fixed chains; 0 for none."""

    def __post_init__(self) -> None:
        positive = "steps interval nu per_component groups langevin_steps checkpoint_every"
        for name in positive.split():
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, found {getattr(self, name)}")
        for name in ["step_size", "cap", "rate", "clip", "gap_limit"]:
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} must be positive, found {getattr(self, name)}")
        objective(self.loss, self.nu, self.alpha)  # an unknown loss is an error
        if not 0 <= self.ema < 1:
            raise ValueError(f"train.ema must lie in [0, 1), found {self.ema}")
        if not 1 <= self.pool_groups <= self.groups:
            raise ValueError(
                f"train.pool={self.pool_groups} must lie between 1 and train.groups={self.groups}"
            )
        if self.interval > 1 and self.pool_groups * self.per_component < 4:
            raise ValueError(
                f"train.interval={self.interval} estimates dlogZ of each component from the pool, "
                f"which needs at least 4 chains of each: raise train.pool or train.per_component "
                f"(now {self.pool_groups} and {self.per_component})"
            )

    @property
    def saturates(self) -> bool:
        """Whether the loss takes exponents, which saturate far out."""
        chosen = objective(self.loss, self.nu, self.alpha)
        return isinstance(chosen, Pair) and any(chosen.exponents)

    @property
    def pool_groups(self) -> int:
        """Groups in the pool, `pool` where it is given."""
        if self.pool is not None:
            return self.pool
        return 1 if self.interval == 1 else -(-4 // self.per_component)
