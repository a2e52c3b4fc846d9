r"""The log-partition ledger: log Z of the model, summed over the refreshes of its noise.

    log Z_theta / Z_k = log E_k[exp(E_k - E_theta)]

estimated on the samples of p_k just before each refresh and summed from the reference, whose log Z
is 0. With n samples of effective size ESS a refresh adds a variance of `(n / ESS - 1) / n`, and,
since the logarithm of an unbiased estimate is too small, a bias of minus half of that. Chains that
lag behind their snapshot add an error of one sign at every refresh, which neither shows.

Weighted chains have no such error (Jarzynski): a chain carries the log weight

    a <- a + E_k(x) - E_theta(x)    at every refresh,

moves by steps that leave the model invariant, and is resampled where the effective size of the
weights falls below a half. The ledger then adds `log sum exp(a + E_k - E_theta) - log sum exp(a)`.
Copies of a chain are no two chains: the variance is taken over founders, the chains that those of
now descend from, each with the share s of its descendants in the weights,

    sum over founders of s^2 - 1 / n

which without resampling is the formula above. When fewer than sqrt(n) founders have descendants
left, that variance is closed, and every chain founds anew: chains are taken to have forgotten by
then where they came from. All this holds for chains that the network does not learn from.

References:
    Nonequilibrium equality for free energy differences (Jarzynski, 1997)
    Sequential Monte Carlo samplers (Del Moral, Doucet & Jasra, 2006)
    Efficient training of energy-based models using Jarzynski equality (Carbone et al., 2023)
    Variance estimation in the particle filter (Lee & Whiteley, 2018)
"""

from __future__ import annotations

__all__ = ["Ledger", "relative_ess", "log_mean_exp", "RESAMPLE_BELOW"]

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sance_audio.divergences import effective_sample_size

TOO_FEW = 3.0
"""Effective samples, up to which an estimate of log Z has no known error."""
RESAMPLE_BELOW = 0.5
"""ESS / n of the weights of a component, below which its chains are resampled."""


@dataclass
class Ledger:
    """Running estimate of log Z_theta - log Z_0 of each component, with its variance."""

    log_z: list[float] = field(default_factory=list)
    """In nats, one a component."""
    closed: list[float] = field(default_factory=list)
    """Variance up to where every chain founded anew last (without weights: the last refresh)."""
    open: list[float] = field(default_factory=list)
    """Variance since then."""
    refreshes: int = 0
    ess: float = 1.0
    """ESS / n of the last interval's ratios."""

    def enter(
        self,
        log_ratio: Tensor,
        log_weight: Tensor | None = None,
        founder: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Close an interval.

        Arguments:
            log_ratio: `E_k - E_theta` at the chains, `(n, C)`: n of each component.
            log_weight: The chains' log weights before it, `(n, C)`; None for plain chains.
            founder: Which chain of its component each descends from, `(n, C)`, from 0 to n - 1;
                with the weights.

        Returns:
            `(C,)` twice: which components are to be resampled, and in which every chain founds
            anew; none, for plain chains.
        """
        h = log_ratio.double()
        n, count = h.shape
        if not self.log_z:
            self.log_z, self.closed, self.open = ([0.0] * count for _ in range(3))
        self.ess = relative_ess(h)
        self.refreshes += 1
        if log_weight is None:
            self._add(log_mean_exp(h))
            taken = n if n > 1 else count  # one sample each: all components together
            grown = _variance(self.ess * taken, taken) * taken / n
            self.closed = [v + grown for v in self.closed]
            none = torch.zeros(count, dtype=torch.bool)
            return none, none
        assert founder is not None
        before = log_weight.double()
        after = before + h
        self._add(log_mean_exp(after) - log_mean_exp(before))
        resample = (effective_sample_size(after.T) / n < RESAMPLE_BELOW).cpu()
        share = torch.zeros_like(after).scatter_add_(0, founder, after.softmax(0))
        self.open = [_variance(1 / s, n) for s in share.square().sum(0).tolist()]
        anew = ((share > 0).sum(0) < math.sqrt(n)).cpu()
        for c in anew.nonzero().flatten().tolist():
            self.closed[c] += self.open[c]
            self.open[c] = 0.0
        return resample, anew

    def close(self) -> None:
        """Take the open variance as final: the next entry is of other chains."""
        self.closed, self.open = self.variance, [0.0] * len(self.open)

    @classmethod
    def known(cls, log_z: Tensor, error: Tensor) -> Ledger:
        """A ledger that begins at a known log Z `(C,)` with its standard errors `(C,)`; one that
        is not finite is not known.
        """
        variance = [e * e if math.isfinite(e) else math.inf for e in error.tolist()]
        return cls(log_z.tolist(), variance, [0.0] * len(variance))

    def restart(self, log_ratio: Tensor) -> None:
        """Begin anew from noise that is normalised: log Z_theta is one estimate, not a sum."""
        refreshes = self.refreshes
        self.log_z, self.closed, self.open = [], [], []
        self.enter(log_ratio)
        self.refreshes = refreshes + 1

    def _add(self, increments: Tensor) -> None:
        self.log_z = [a + b for a, b in zip(self.log_z, increments.tolist(), strict=True)]

    @property
    def variance(self) -> list[float]:
        """Of each component's `log_z`."""
        return [a + b for a, b in zip(self.closed, self.open, strict=True)]

    @property
    def bias(self) -> list[float]:
        """Of each component's `log_z`, to second order: minus half the variance."""
        return [-v / 2 for v in self.variance]

    @property
    def corrected(self) -> list[float]:
        """`log_z` with the bias taken off, where that is known."""
        pairs = zip(self.log_z, self.bias, strict=True)
        return [z - b if math.isfinite(b) else z for z, b in pairs]

    @property
    def mean(self) -> float:
        """`log_z`, the mean over components; 0 before the first entry."""
        return sum(self.log_z) / max(1, len(self.log_z))

    @property
    def standard_error(self) -> float:
        """Of `mean`; infinite where the samples are too few to tell. Without weights it holds for
        independent samples of p_k only.
        """
        return math.sqrt(sum(self.variance)) / max(1, len(self.variance))


def _variance(ess: float, n: int) -> float:
    """Of the log of a mean over n samples whose weights are worth `ess`: `1 / ess - 1 / n`, and
    infinite where these are too few. (It cannot pass 1, whatever the weights: a few samples that
    hold all the weight do not show how much lies where no sample is.)
    """
    if n == 1 or ess <= min(TOO_FEW, 0.375 * n):
        return math.inf
    return max(1 / ess - 1 / n, 0.0)


def log_mean_exp(h: Tensor) -> Tensor:
    """`log mean exp` over the first dimension of `(n, C)`: `(C,)`."""
    return h.logsumexp(0) - math.log(len(h))


def relative_ess(log_ratio: Tensor) -> float:
    """ESS / n of weights `exp(h)`, h `(n, C)`, each component's own mean weight taken off.

    With one sample a component (n = 1) there is no mean to tell from the sample: the components
    are then taken together, which is pessimistic by the spread of their offsets.
    """
    n, h = len(log_ratio), log_ratio.double()
    h = h if n == 1 else h - h.logsumexp(0)
    return min(1.0, float(effective_sample_size(h.flatten())) / h.numel())
