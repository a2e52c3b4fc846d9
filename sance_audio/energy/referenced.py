r"""The energies of this package: a reference density plus a network.

    E_theta(x | c) = -log p_0(x | c) + F_theta(x | c)

with c the component `(B,)` that a row is conditioned on, and p_0 normalised, so that `F = 0` is
the reference exactly. At a temperature tau the model is `exp(-E / tau) / Z`. Its Gaussian part is
again a Gaussian, of covariance `tau C` (the *base*), so that what everything else needs is

    E_theta / tau = -log base(x | c) + F_theta(x | c) / tau    + a constant that log Z holds

Sampler, log ratio, log Z and denoising all take these two parts from here: none of them can forget
tau.
"""

from __future__ import annotations

__all__ = ["EnergyModel", "ReferencedEnergy", "GivenEnergy", "LogProb"]

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CANDIDATES = 4
"""Components, the likeliest under the reference, that a marginal sums over: they part from the
rest by tens of nats.
"""


class ReferencedEnergy(nn.Module):
    """`E(x | c) = -log p_0(x | c) + F(x | c)` at a temperature tau, with log Z_c of each component
    where it is known.

    Arguments:
        reference: A `GaussianReference`, or what has its methods.
        network: A module `(B, 1, M, T), (B,) -> (B,)`: the part F that is learnt.
        temperature: tau.
    """

    reference: Any
    log_z: Tensor
    """`(C,)`: log of Z_c, relative to the base's, which is normalised."""
    log_z_error: Tensor
    """`(C,)`: its standard error; 0 while F is 0, NaN where it is not known."""

    def __init__(self, reference: nn.Module, network: nn.Module, temperature: float = 1.0):
        super().__init__()
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a positive number, found {temperature}")
        self.reference = reference
        self.network = network
        self.temperature = temperature
        self.register_buffer("log_z", torch.zeros(self.reference.n_components))
        self.register_buffer("log_z_error", torch.zeros(self.reference.n_components))

    @property
    def base(self) -> Any:
        """The reference at the temperature of the model: covariance `tau C`, normalised."""
        return self.reference.tempered(self.temperature)

    def learnt(self, x: Tensor, c: Tensor) -> Tensor:
        """`F(x | c) / tau`, `(B,)` in nats."""
        return self.network(x, c) / self.temperature

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """`-log base(x | c) + F(x | c) / tau`, `(B,)` in nats, of x `(B, 1, M, T)` given the
        components c `(B,)`: minus log p(x | c), up to `log_z`.
        """
        return self.learnt(x, c) - self.base.log_prob(x, c)

    def marginal(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """`-log sum_c w_c exp(-E(x | c)) / Z_c`, `(B,)`: the energy of a mixture, normalised.

        Arguments:
            x: `(B, 1, M, T)`.
            log_weight: `(C,)`, log w_c; minus infinity leaves a component out.
        """
        joint, _ = self.candidates(x, log_weight)
        return -joint.logsumexp(1)

    def candidates(
        self, x: Tensor, log_weight: Tensor, count: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """`log w_c p(x | c)` of the likeliest components, and which they are: `(B, k)` each.
        Arguments as of `marginal`; k is `count`, or `CANDIDATES` at most when None.
        """
        joint = self.base.log_prob_all(x) + log_weight
        if count is None:
            count = min(CANDIDATES, int(log_weight.isfinite().sum()))
        best, c = joint.topk(count, 1)
        learnt = torch.stack([self.learnt(x, c[:, j]) for j in range(count)], 1)
        return best - learnt - self.log_z[c], c

    def log_prob(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """`log sum_c w_c p(x | c)` and its standard error, which is that of log Z: `(B,)` each, in
        nats. Arguments as of `marginal`.
        """
        joint, c = self.candidates(x, log_weight)
        error = joint.softmax(1) * self.log_z_error[c]
        return joint.logsumexp(1), error.square().sum(1).sqrt()

    def reference_marginal(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """The same with F = 0: `-log sum_c w_c p_0(x | c)`, `(B,)`."""
        return -(self.reference.log_prob_all(x) + log_weight).logsumexp(1)

    def posterior(self, x: Tensor) -> Tensor:
        """log p(y | x) of every class y, `(B, classes)`, over all components."""
        joint = self.base.log_prob_all(x) + self.reference.weight.log() - self.log_z
        index = torch.arange(self.reference.n_components, device=x.device)
        joint = joint - torch.stack([self.learnt(x, c.expand(len(x))) for c in index], 1)
        classes = range(self.reference.n_classes)
        joint = torch.stack(
            [joint[:, self.reference.classes == y].logsumexp(1) for y in classes], 1
        )
        return joint.log_softmax(1)

    def given(self, c: Tensor) -> GivenEnergy:
        """The energy of x alone, one component per row."""
        return GivenEnergy(self, c)


class GivenEnergy:
    """`x -> E(x | c) / tau` with c `(B,)` held fixed, row by row; `learnt` is its part F, `scale`
    multiplies that part.

    A scale of 0 is the reference, 1 the model; between them lies the path of annealed importance
    sampling.
    """

    def __init__(self, energy: ReferencedEnergy, c: Tensor, scale: float = 1.0):
        self.energy, self.c, self.scale = energy, c, scale
        self.base = energy.base

    def __call__(self, x: Tensor) -> Tensor:
        return self.learnt(x) - self.base.log_prob(x, self.c)

    def learnt(self, x: Tensor) -> Tensor:
        """The network's part, `scale * F(x | c) / tau`, `(B,)`."""
        return self.scale * self.energy.learnt(x, self.c)

    def rows(self, part: Any) -> GivenEnergy:
        return GivenEnergy(self.energy, self.c[part], self.scale)


class LogProb(NamedTuple):
    """Log densities of clips, `(B,)` each."""

    nats: Tensor
    standard_error: Tensor
    """In nats."""
    bits_per_dimension: Tensor
    """Minus the log density, in bits, over the number of cells of the log-mel."""


class EnergyModel(nn.Module, ABC):
    """What `train` asks of a model: a density over `(1, M, T)` and how its data is dequantised.

    Arguments:
        density: Reference plus network.
        sigma: Standard deviation of the Gaussian noise that is added to data.
    """

    def __init__(self, density: ReferencedEnergy, sigma: float):
        super().__init__()
        self.density, self.sigma = density, sigma

    @property
    def reference(self) -> Any:
        return self.density.reference

    @property
    def device(self) -> torch.device:
        return self.density.log_z.device

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """`(M, T)` of a sample."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything but tensors."""
