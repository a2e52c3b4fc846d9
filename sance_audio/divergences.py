r"""The Bregman family of losses, as pairs of functions of the log ratio; two losses of batches.

With `h = log p_theta(x) / p_k(x)`, `u = exp(h)` and a convex generator phi, density ratio matching
minimises

    L = E_data[d(h)] + E_noise[n(h)],    d(h) = -phi'(u),    n(h) = u phi'(u) - phi(u)

so every pair obeys `n'(h) = -exp(h) d'(h)` with `d'(h) < 0`. At h = 0 (data and noise model equal,
as right after a refresh of self-adapting noise) every loss has the maximum-likelihood gradient,
scaled by phi''(1):

    key               d(h)                           n(h)                      phi''(1)
    logistic          softplus(log nu - h)           nu softplus(h - log nu)   nu / (1 + nu)
    kl                -h                             exp(h)                    1
    least_squares     -exp(h)                        exp(2 h) / 2              1
    exponential       exp(-h / 2)                    exp(h / 2)                1 / 2
    alpha             (1 - exp((a - 1) h))/(a - 1)   (exp(a h) - 1) / a        1
    donsker_varadhan  -mean h + log mean exp(h)  per component                 1
    ranking           -log softmax of a data clip among its nu negatives       nu / (1 + nu)

The weight that a noise sample gets, n'(h), is bounded for the logistic loss only. The others take
exponents; where these pass what the number format holds with room for a sum, they are saturated
(the sample then counts for nothing), and `saturated` counts how many.

References:
    Self-adapting noise-contrastive estimation for energy-based models (Xu, 2022), arXiv 2211.02650
    Noise-contrastive estimation (Gutmann & Hyvarinen, 2010)
    Density-ratio matching under the Bregman divergence (Sugiyama et al., 2012)
    Analyzing and improving the optimization landscape of noise-contrastive estimation
        (Liu et al., 2021), the exponential loss
    Asymptotic evaluation of certain Markov process expectations (Donsker & Varadhan, 1975)
    Noise contrastive estimation and negative sampling for conditional models
        (Ma & Collins, 2018), the ranking loss
"""

from __future__ import annotations

__all__ = [
    "Pair",
    "PAIRS",
    "Ranked",
    "RANKED",
    "logistic",
    "alpha",
    "objective",
    "effective_sample_size",
]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = {torch.float64: 690.0}
"""Largest exponents taken; 80 in shorter formats: exp(80) = 6e34 leaves float32 room for a sum."""


def _limit(h: Tensor) -> float:
    return LARGEST.get(h.dtype, 80.0)


def _exp(h: Tensor) -> Tensor:
    """exp(h), saturated."""
    return h.clamp(max=_limit(h)).exp()


def _softplus(h: Tensor) -> Tensor:
    """log(1 + exp(h)); PyTorch's own turns into h at 20, where the slope is 2e-9 off."""
    return F.softplus(h, threshold=40)


@dataclass(frozen=True)
class Pair:
    """One divergence: `data(h)` on data and `noise(h)` on noise, elementwise; the loss is the sum
    of their means.
    """

    data: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]
    curvature: float
    """phi''(1), the scale of the gradient right after a refresh."""
    exponents: tuple[float, float] = (0.0, 0.0)
    """What h is multiplied with in the exponent, on data and on noise; 0 where there is none."""

    def __call__(self, h_data: Tensor, h_noise: Tensor) -> Tensor:
        """The loss, `()`, of log ratios on data and on noise, of any shapes."""
        return self.data(h_data).mean() + self.noise(h_noise).mean()

    def saturated(self, h_data: Tensor, h_noise: Tensor) -> int:
        """How many log ratios lie beyond what the exponent holds."""
        both = zip(self.exponents, (h_data, h_noise), strict=True)
        return sum(int((factor * h > _limit(h)).sum()) for factor, h in both)


def logistic(nu: float = 1.0) -> Pair:
    """Noise-contrastive estimation with `nu` noise samples per data sample: `log nu` is the prior
    log odds.

    >>> pair, zero = logistic(), torch.zeros(())
    >>> round(float(pair(zero, zero)), 4)  # 2 log 2: undecided
    1.3863
    """
    _positive("nu", nu, "of noise samples per data sample")
    offset = math.log(nu)
    return Pair(
        data=lambda h: _softplus(offset - h),
        noise=lambda h: nu * _softplus(h - offset),
        curvature=nu / (1 + nu),
    )


def alpha(a: float = 0.5) -> Pair:
    """The alpha family: a -> 1 is `kl`, a = 2 `least_squares` but for a constant.

    >>> h = torch.tensor(0.3)
    >>> round(float(alpha(2.0).noise(h) - PAIRS["least_squares"].noise(h)), 4)
    -0.5
    """
    _positive("alpha", a)
    if a == 1:
        raise ValueError("alpha=1 is the loss named 'kl'; give another value, or that name")
    return Pair(
        data=lambda h: (1 - _exp((a - 1) * h)) / (a - 1),
        noise=lambda h: (_exp(a * h) - 1) / a,
        curvature=1.0,
        exponents=(a - 1, a),
    )


def _positive(name: str, value: float, what: str = "") -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a positive number {what}".rstrip() + f", found {value}")


PAIRS: dict[str, Pair] = {
    "logistic": logistic(),
    "kl": Pair(lambda h: -h, _exp, 1.0, (0.0, 1.0)),
    "least_squares": Pair(lambda h: -_exp(h), lambda h: 0.5 * _exp(2 * h), 1.0, (1.0, 2.0)),
    "exponential": Pair(lambda h: _exp(-0.5 * h), lambda h: _exp(0.5 * h), 0.5, (-0.5, 0.5)),
    "alpha": alpha(),
}


@dataclass(frozen=True)
class Ranked:
    """A loss that compares samples of one component within a batch: whatever offset `h` has per
    component, `dlogZ` above all, cancels.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    curvature: Callable[[float], float]
    """The scale of the gradient right after a refresh, of nu."""

    def __call__(self, h_data: Tensor, h_noise: Tensor) -> Tensor:
        """The loss, `()`, of log ratios `(n, C)` on data and `(nu n, C)` on noise, one column a
        component.

        Raises:
            ValueError: shapes that do not go together.
        """
        fits = h_data.ndim == h_noise.ndim == 2 and h_data.shape[1] == h_noise.shape[1]
        if not fits or h_noise.shape[0] % h_data.shape[0]:
            raise ValueError(
                f"expected log ratios (n, C) on data and (nu n, C) on noise, found "
                f"{tuple(h_data.shape)} and {tuple(h_noise.shape)}"
            )
        return self.loss(h_data, h_noise)

    def saturated(self, h_data: Tensor, h_noise: Tensor) -> int:
        """None ever is."""
        return 0


def _donsker_varadhan(h_data: Tensor, h_noise: Tensor) -> Tensor:
    return (h_noise.logsumexp(0) - math.log(len(h_noise)) - h_data.mean(0)).mean()


def _ranking(h_data: Tensor, h_noise: Tensor) -> Tensor:
    negatives = h_noise.view(-1, *h_data.shape)
    return (torch.cat([h_data.unsqueeze(0), negatives]).logsumexp(0) - h_data).mean()


RANKED: dict[str, Ranked] = {
    "donsker_varadhan": Ranked(_donsker_varadhan, lambda nu: 1.0),
    "ranking": Ranked(_ranking, lambda nu: nu / (1 + nu)),
}


def objective(name: str, nu: int = 1, a: float = 0.5) -> Pair | Ranked:
    """A loss by name, for `nu` noise samples per data sample; `a` is that of `alpha`.

    Raises:
        ValueError: no such loss; an impossible nu or a.
    """
    if name == "logistic":
        return logistic(nu)
    if name == "alpha":
        return alpha(a)
    if name not in PAIRS and name not in RANKED:
        raise ValueError(f"no loss named {name!r}; there are {', '.join([*PAIRS, *RANKED])}")
    return PAIRS.get(name) or RANKED[name]


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size `(sum w)^2 / sum w^2` over the last dimension of `(..., N)`:
    `(...)`, from 1 to N.

    >>> round(float(effective_sample_size(torch.zeros(8))), 4)
    8.0
    """
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()
