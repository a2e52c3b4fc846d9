r"""The Bregman family of losses, as pairs of functions of the log ratio.

With `h = log p_theta(x) / p_k(x)`, `u = exp(h)` and a convex generator phi, density ratio matching
minimises

    L = E_data[d(h)] + E_noise[n(h)],    d(h) = -phi'(u),    n(h) = u phi'(u) - phi(u)

so every pair obeys `n'(h) = -exp(h) d'(h)` with `d'(h) < 0`. At h = 0 (data and noise model equal,
as right after a refresh of self-adapting noise) every pair has the maximum-likelihood gradient,
scaled by phi''(1).

References:
    Self-adapting noise-contrastive estimation for energy-based models (Xu, 2022), arXiv 2211.02650
    Noise-contrastive estimation (Gutmann & Hyvarinen, 2010)
    Density-ratio matching under the Bregman divergence (Sugiyama et al., 2012)
"""

from __future__ import annotations

__all__ = ["Pair", "PAIRS", "logistic", "effective_sample_size"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """One divergence: `data(h)` on data and `noise(h)` on noise, elementwise; the loss is the sum
    of their means.
    """

    data: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]
    curvature: float
    """phi''(1), the scale of the gradient right after a refresh."""


def logistic(nu: float = 1.0) -> Pair:
    """Noise-contrastive estimation with `nu` noise samples per data sample: `log nu` is the prior
    log odds.

    >>> import torch
    >>> pair, zero = logistic(), torch.zeros(())
    >>> round(float(pair.data(zero) + pair.noise(zero)), 4)  # 2 log 2: undecided
    1.3863
    """
    if not (nu > 0 and math.isfinite(nu)):
        raise ValueError(
            f"nu must be a positive number of noise samples per data sample, found {nu}"
        )
    offset = math.log(nu)
    return Pair(
        data=lambda h: F.softplus(offset - h),
        noise=lambda h: nu * F.softplus(h - offset),
        curvature=nu / (1 + nu),
    )


PAIRS: dict[str, Pair] = {"logistic": logistic()}


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size `(sum w)^2 / sum w^2` over the last dimension of `(..., N)`:
    `(...)`, from 1 to N.

    >>> import torch
    >>> round(float(effective_sample_size(torch.zeros(8))), 4)
    8.0
    """
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()
