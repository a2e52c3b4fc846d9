"""Settings of a training run: one frozen dataclass, checked when it is made."""

from __future__ import annotations

__all__ = ["TrainConfig"]

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from sance_audio.divergences import RANKED, Pair, objective

NOISES = ("self", "pcd", "gaussian", "flow")
DLOGZ = ("pool", "learned", "cancelled")


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
    """self: a snapshot of the model (self-adapting). pcd: the same, a new one every step
    (persistent contrastive divergence). gaussian: the reference, fixed. flow: a normalising flow
    trained beside the model (needs sance_audio[flow])."""
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
    a half; a quarter of the groups are never drawn as noise, and keep an honest ledger of log Z
    (with 64 chains of each component or more; of few its error is unknown)."""
    flow_transforms: int = 6
    """Coupling layers of the flow."""
    flow_width: int = 64
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
    """Groups advanced at a refresh; their ends are the noise until the next. When left out: nu,
    for an interval above 1 as many as give each component 4 chains; all of them where they have
    weights."""
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
    batch: int = 32
    """Data clips in a batch of a noise-conditional model, whose components and levels are drawn
    with them; a plain model has per_component instead."""
    warm: float = 0.75
    """Share of the steps, the first ones, in which a noise-conditional model learns to denoise,
    without sampling; the rest is noise-contrastive."""
    warm_rate: float = 1e-3
    """Learning rate there; falls linearly to zero from half-way of that part."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    sample_every: int = 1000
    """Steps between clips and pictures from fixed chains; 0 for none."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            self._check_type(name)
        positive = "steps interval nu per_component groups langevin_steps batch checkpoint_every"
        for name in positive.split():
            if getattr(self, name) < 1:
                raise ValueError(
                    f"train.{name} must be at least 1, found {getattr(self, name)}; give 1 or more"
                )
        above = "step_size cap rate clip gap_limit temperature dlogz_rate flow_transforms"
        for name in [*above.split(), "flow_width", "flow_rate", "warm_rate"]:
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(
                    f"train.{name} must be positive, found {value}; the default is "
                    f"{type(self).__dataclass_fields__[name].default}"
                )
        objective(self.loss, self.nu, self.alpha)  # an unknown loss is an error
        shares = {"fresh": self.fresh <= 1, "ema": self.ema < 1, "penalty": True}
        shares |= {"warm": self.warm <= 1}
        shares |= {"beta1": self.beta1 < 1, "beta2": self.beta2 < 1}
        for name, low in shares.items():
            if not (low and 0 <= getattr(self, name) < math.inf):
                most = "" if name == "penalty" else " and less than 1"
                raise ValueError(
                    f"train.{name} must be at least 0{most}, found {getattr(self, name)}"
                )
        self._check_pool()

    def _check_type(self, name: str) -> None:
        """Raise ValueError where a field is not of its kind: a whole number, or a choice."""
        value, default = getattr(self, name), self.__dataclass_fields__[name].default
        whole = (isinstance(default, int) and not isinstance(default, bool)) or name == "pool"
        if whole and value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"train.{name} must be a whole number, found {value}")
        choices = {"noise": NOISES, "dlogz": DLOGZ}.get(name)
        if choices and value not in choices:
            raise ValueError(f"train.{name}={value}: there are {', '.join(choices)}")
        if name == "noise" and value == "flow" and find_spec("zuko") is None:
            raise ValueError(
                "train.noise=flow needs zuko: pip install 'sance-audio[flow]', or take "
                "train.noise=self"
            )

    def _check_pool(self) -> None:
        """Raise ValueError where the noise cannot do what the other settings ask of it."""
        pool, each = self.pool_groups, self.pool_groups * self.per_component
        if self.noise != "self" and self.interval != 1:
            raise ValueError(
                f"train.noise={self.noise} is new at every step, found "
                f"train.interval={self.interval}: leave it at 1, or take train.noise=self"
            )
        if self.pool is not None and self.pool < 1:
            raise ValueError(f"train.pool must be at least 1, found {self.pool}")
        if self.chains and pool > self.groups:
            raise ValueError(
                f"train.pool={pool} must lie between 1 and train.groups={self.groups}: lower "
                f"the one or raise the other"
            )
        if pool < self.nu:
            raise ValueError(
                f"train.pool={pool} groups are smaller than a batch of noise, train.nu={self.nu} "
                f"groups: raise train.pool to {self.nu} or lower train.nu"
            )
        ratio = self.interval > 1 or not self.chains
        if ratio and self.dlogz == "pool" and each < 4:
            raise ValueError(
                f"train.dlogz=pool takes dlogZ of each component from the pool, "
                f"which needs at least 4 samples of each: raise train.pool or train.per_component "
                f"(now {pool} and {self.per_component})"
            )
        if self.dlogz == "cancelled" and self.loss not in RANKED:
            raise ValueError(
                f"train.dlogz=cancelled: dlogZ does not cancel in train.loss={self.loss}; take "
                f"train.dlogz=pool, or one of {', '.join(RANKED)}"
            )
        if self.weighted and not (self.chains and pool == self.groups and self.fresh == 0):
            raise ValueError(
                f"train.weighted needs chains that are all advanced and never start again: give "
                f"train.pool={self.groups} and train.fresh=0 with train.noise=self or pcd, found "
                f"{pool}, {self.fresh} and {self.noise}"
            )
        watching = max(1, self.groups // 4)
        few = watching * self.per_component < 4 or self.groups - watching < self.nu
        if self.weighted and few:
            raise ValueError(
                f"train.weighted leaves a quarter of the groups, at least one, to watch log Z: it "
                f"needs 4 chains of each component there and train.nu groups besides; found "
                f"train.groups={self.groups}, train.per_component={self.per_component}, "
                f"train.nu={self.nu}: raise train.groups or train.per_component"
            )
        if not (0 <= self.min_ess <= 1 and 0 <= self.max_accuracy <= 1):
            raise ValueError(
                f"train.min_ess and train.max_accuracy are shares from 0 to 1, found "
                f"{self.min_ess} and {self.max_accuracy}"
            )

    @classmethod
    def persistent_contrastive_divergence(cls, **settings: Any) -> TrainConfig:
        """K = 1 with a pool that is new at every step: `noise="pcd"`.

        >>> TrainConfig.persistent_contrastive_divergence(steps=10).interval
        1
        """
        return cls(**{"noise": "pcd", "interval": 1, **settings})

    @property
    def chains(self) -> bool:
        """Whether the noise is chains on a snapshot of the model."""
        return self.noise in ("self", "pcd")

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
        if self.weighted:
            return self.groups
        ratio = self.interval > 1 or not self.chains
        return max(self.nu, -(-4 // self.per_component) if ratio else 1)
