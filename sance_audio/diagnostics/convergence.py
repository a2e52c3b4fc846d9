r"""Have the chains converged, and how many independent draws are theirs worth?

`draws` is `(chains, draws, ...)` throughout, and a result `(...)`: each cell of a draw is judged
by itself, all cells in one pass. Every chain is split into its two halves (an odd draw in the
middle is left out), which makes m chains of n draws; W is the mean of their variances, and

    var+  = (n - 1) / n  W + var(chain means)
    rho_t = 1 - (W - mean of the chains' autocovariances at lag t) / var+
    tau   = -1 + 2 (rho_0 + rho_1 + ...), cut off by Geyer's rule
    ESS   = m n / tau
    R-hat = sqrt(var+ / W)

*Rank-normalised* means that the draws of all chains are replaced by normal quantiles of their
ranks first, so that heavy tails do no harm; *folded*, that their distances from the median are.
Computed on the host in float64. Values agree with ArviZ, also where they are conventions: a cell
that never changes has an ESS of m n and an R-hat of NaN, and NaN is the R-hat of one chain, which
has no other to be compared with.

References:
    Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of
        MCMC (Vehtari, Gelman, Simpson, Carpenter & Bürkner, 2021)
    Practical Markov chain Monte Carlo (Geyer, 1992)
    Statistical estimates and transformed beta-variables (Blom, 1958)
"""

from __future__ import annotations

__all__ = ["bulk_ess", "tail_ess", "mean_ess", "r_hat", "mcse_mean", "autocorrelation"]

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

BLOCK = 2**24
"""Numbers worked on at once; more cells are taken in blocks, to bound the memory."""


def bulk_ess(draws: Tensor) -> Tensor:
    """Effective sample size of the rank-normalised draws `(chains, draws, ...)`: `(...)`.

    It tells how well the location is known, whatever the tails. Below 100 a chain, R-hat and the
    ESS itself are not to be trusted.
    """
    return _each_cell(draws, lambda x: _ess(_normal_scores(_split(x))))


def tail_ess(draws: Tensor) -> Tensor:
    """Effective sample size for the tails of draws `(chains, draws, ...)`: `(...)`, the smaller of
    those of the indicators `x <= 5 % quantile` and `x <= 95 % quantile`.
    """

    def of(x: Array) -> Array:
        low, high = (_ess(_split((x <= _quantile(x, q)).astype(float))) for q in (0.05, 0.95))
        return np.where(high < low, high, low)

    return _each_cell(draws, of)


def mean_ess(draws: Tensor) -> Tensor:
    """Effective sample size for the mean of draws `(chains, draws, ...)`: `(...)`. It needs a
    finite variance, where `bulk_ess` does not.
    """
    return _each_cell(draws, lambda x: _ess(_split(x)))


def mcse_mean(draws: Tensor) -> Tensor:
    """Monte Carlo standard error of the mean of draws `(chains, draws, ...)`: `(...)`, their
    standard deviation over `sqrt(mean_ess)`.
    """

    def of(x: Array) -> Array:
        return x.std(axis=(-2, -1), ddof=1) / np.sqrt(_ess(_split(x)))

    return _each_cell(draws, of)


def r_hat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat of draws `(chains, draws, ...)`: `(...)`, the larger of that of
    the draws, which tells of chains at different places, and that of the folded ones, which tells
    of chains of different spreads. Below 1.01 nothing speaks against convergence.
    """

    def of(x: Array) -> Array:
        if x.shape[-2] == 1:
            return np.full(x.shape[:-2], np.nan)
        halves = _split(x)
        folded = np.abs(halves - np.median(halves, axis=(-2, -1), keepdims=True))
        bulk, tail = _r_hat(_normal_scores(halves)), _r_hat(_normal_scores(folded))
        return np.where(tail > bulk, tail, bulk)

    return _each_cell(draws, of)


def autocorrelation(draws: Tensor, lags: int | None = None) -> Tensor:
    """Autocorrelation of each chain of draws `(chains, draws, ...)` at lags 0 to `lags` (all, when
    None): `(chains, lags + 1, ...)`; NaN for a chain that never changes.
    """
    n = _checked(draws).shape[1]
    lags = n - 1 if lags is None else lags
    if not 0 <= lags < n:
        raise ValueError(f"lags must lie between 0 and draws - 1 = {n - 1}, found {lags}")

    def of(x: Array) -> Array:
        covariance = _autocovariance(x)
        still = x.max(axis=-1, keepdims=True) == x.min(axis=-1, keepdims=True)
        variance = np.where(still, np.nan, covariance[..., :1])
        return covariance[..., : lags + 1] / variance

    return _each_cell(draws, of).movedim((-2, -1), (0, 1))


# -- Cells ---------------------------------------------------------------------------------------


def _checked(draws: Tensor) -> Tensor:
    if draws.ndim < 2 or 0 in draws.shape:
        raise ValueError(
            f"draws must be (chains, draws, ...) and not empty, found {tuple(draws.shape)}: add a "
            f"dimension of one chain with draws[None]"
        )
    if draws.shape[1] < 4:
        raise ValueError(
            f"draws must hold at least 4 draws a chain, found {tuple(draws.shape)}: the order is "
            f"(chains, draws, ...)"
        )
    if draws.is_complex() or not bool(draws.isfinite().all()):
        found = "complex numbers" if draws.is_complex() else f"{int((~draws.isfinite()).sum())}"
        raise ValueError(
            f"draws must be finite real numbers, found {found} that are not: look for the step at "
            f"which the chains diverged"
        )
    return draws


def _each_cell(draws: Tensor, statistic: Callable[[Array], Array]) -> Tensor:
    """`statistic`, `(cells, chains, draws) -> (cells, ...)`, of each cell of draws
    `(chains, draws, *shape)`: `(*shape, ...)` in float64, where the draws are.
    """
    chains, n, *shape = _checked(draws).shape
    cells = draws.detach().reshape(chains, n, -1)
    size = max(1, BLOCK // (chains * n))
    blocks = [
        torch.from_numpy(statistic(block.double().cpu().permute(2, 0, 1).contiguous().numpy()))
        for block in cells.split(size, dim=2)
    ]
    result = torch.cat(blocks)
    return result.reshape([*shape, *result.shape[1:]]).to(draws.device)


# -- Of arrays (cells, chains, draws) ------------------------------------------------------------


def _split(x: Array) -> Array:
    """The two halves of every chain as chains of their own: `(cells, 2 chains, draws // 2)`."""
    half = x.shape[-1] // 2
    return np.concatenate([x[..., :half], x[..., -half:]], axis=-2)


def _normal_scores(x: Array) -> Array:
    """Normal quantiles of the ranks within a cell, `Phi^-1((rank - 3/8) / (S + 1/4))` with S draws
    (Blom), ties sharing their mean rank: as x.
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    flat = x.reshape(len(x), -1)
    rank = rankdata(flat, axis=-1)
    return ndtri((rank - 3 / 8) / (flat.shape[-1] + 1 / 4)).reshape(x.shape)


def _quantile(x: Array, q: float) -> Array:
    """Quantile within a cell, linear between order statistics (type 7): `(cells, 1, 1)`.

    Written as `(1 - a) low + a high`: what rounding does to tied draws decides on which side of
    their own quantile they lie, and should be what it is elsewhere.
    """
    ordered = np.sort(x.reshape(len(x), -1), axis=-1)
    place = ordered.shape[-1] * q + (1 - q)
    k = math.floor(min(max(place, 1), ordered.shape[-1] - 1))
    a = min(max(place - k, 0.0), 1.0)
    return ((1 - a) * ordered[:, k - 1] + a * ordered[:, k])[:, None, None]


def _autocovariance(x: Array) -> Array:
    """Of each chain at lags 0 to draws - 1, each sum divided by the number of draws: as x."""
    from scipy.fft import next_fast_len

    n = x.shape[-1]
    length = next_fast_len(2 * n)  # zeros enough that the ends do not meet
    spectrum = np.fft.rfft(x - x.mean(axis=-1, keepdims=True), n=length)
    return np.fft.irfft(spectrum * spectrum.conj(), n=length)[..., :n] / n


def _r_hat(x: Array) -> Array:
    """`sqrt(var+ / W)`, `(cells,)`; infinite for chains that each stay at another place."""
    n = x.shape[-1]
    still = x.max(axis=-1) == x.min(axis=-1)
    within = np.where(still, 0, x.var(axis=-1, ddof=1)).mean(-1)
    between = n * x.mean(-1).var(axis=-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((between / within + n - 1) / n)


def _ess(x: Array) -> Array:
    """`m n / tau` of chains that are split already, `(cells,)`; m n where nothing ever changes.

    tau is not taken below `1 / log10(m n)`: chains whose draws alternate would otherwise be worth
    any number.
    """
    _, m, n = x.shape
    covariance = _autocovariance(x).mean(-2)
    within = covariance[:, :1] * n / (n - 1)
    var_plus = covariance[:, :1] + x.mean(-1).var(axis=-1, ddof=1)[:, None]
    still = x.max(axis=(-2, -1)) == x.min(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within - covariance) / var_plus
    rho[:, 0] = 1
    tau = np.maximum(_autocorrelation_time(rho), 1 / math.log10(m * n))
    return np.where(still, m * n, m * n / tau)


def _autocorrelation_time(rho: Array) -> Array:
    """`-1 + 2 sum_t rho_t` by Geyer's initial monotone sequence, `(cells,)`.

    The sums of pairs P_k = rho_2k + rho_2k+1 of a reversible chain are positive and fall with k.
    Pairs are taken up to the first K at which P_K <= 0 (the last whole pair but one, at the
    latest), none larger than those before it, and of pair K half of what its even lag adds, where
    that is positive.
    """
    n = rho.shape[1]
    even, odd = rho[:, 0 : n - 1 : 2], rho[:, 1::2]
    pairs = even + odd
    last = max(0, math.ceil((n - 4) / 2))
    ended = pairs[:, : last + 1] <= 0
    ended[:, last] = True
    end = ended.argmax(1)[:, None]
    monotone = np.minimum.accumulate(pairs, axis=1)
    taken = np.where(np.arange(pairs.shape[1]) < end, monotone, 0).sum(1)
    edge, edge_pair = (np.take_along_axis(a, end, axis=1)[:, 0] for a in (even, pairs))
    return -1 + 2 * taken + np.where((edge > 0) | (edge_pair >= 0), edge, 0)
