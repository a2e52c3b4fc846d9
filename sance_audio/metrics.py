r"""Distances between sets of clips, in any features: closed formulas in NumPy.

With phi the features of n clips, m and S their mean and covariance, p(y | x) a classifier,

    inception score   exp mean_x KL(p(y | x) || p(y)),  p(y) the mean of p(y | x) over the clips
    FID               |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))
    KID               mean k(x, x')_{x != x'} + mean k(y, y')_{y != y'} - 2 mean k(x, y),
                      k(x, y) = (x . y / d + 1)^3;  unbiased, so the one to read when clips are few
    precision         share of generated clips within the k-th neighbour's distance of a real one
    recall            share of real clips within that distance of a generated one
    density           mean number of real neighbourhoods that a generated clip lies in, over k
    coverage          share of real clips whose neighbourhood holds a generated clip

References:
    Improved techniques for training GANs (Salimans et al., 2016)
    GANs trained by a two time-scale update rule converge to a local Nash equilibrium
        (Heusel et al., 2017)
    Demystifying MMD GANs (Binkowski et al., 2018)
    Improved precision and recall metric for assessing generative models
        (Kynkaanniemi et al., 2019)
    Reliable fidelity and diversity metrics for generative models (Naeem et al., 2020)
"""

from __future__ import annotations

__all__ = [
    "Array",
    "frechet_distance",
    "inception_score",
    "kernel_distances",
    "manifold",
    "nearest",
    "paired_interval",
    "percentiles",
]

from collections.abc import Callable, Iterable

import numpy as np

Array = np.ndarray
RESAMPLES = 400


def frechet_distance(a: Array, b: Array) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, `(N, d)` and `(N', d)`.

    >>> a = np.random.default_rng(0).normal(size=(100, 4))
    >>> abs(frechet_distance(a, a)) < 1e-6, round(frechet_distance(a, a + 1), 6)
    (True, 4.0)
    """
    s, r = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(s)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ r @ root), 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(r) - 2 * cross)


def inception_score(probabilities: Array) -> float:
    """Of `(N, classes)`: 1 when all clips look alike, the number of classes when all are clear and
    balanced.

    >>> round(inception_score(np.eye(5)), 6), round(inception_score(np.eye(5)[[0, 0, 0]]), 6)
    (5.0, 1.0)
    """
    p = np.clip(probabilities, 1e-12, 1)
    marginal = p.mean(0, keepdims=True)
    return float(np.exp((p * (np.log(p) - np.log(marginal))).sum(1).mean()))


def kernel_distances(
    a: Array,
    b: Array,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    fixed: bool = False,
    groups: tuple[Array | None, Array | None] = (None, None),
) -> Array:
    """KID of two sets of features `(N, d)` and `(N', d)`: its value, then bootstrap replicates.

    A replicate draws clips of both sets (of the first alone, with b `fixed`) with replacement. A
    clip drawn twice is no pair with itself, which would bias the replicates upwards. The same seed
    and sizes draw the same rows, so that replicates of two models can be subtracted.

    Arguments:
        a, b: Features.
        resamples: Replicates.
        seed: Of the resampling.
        fixed: b is what it is.
        groups: Of each set, the recording `(N,)` that a row is a window of, where rows share one.
            Whole recordings are drawn then, and two rows of one are no pair.

    Returns:
        `(1 + resamples,)`.

    Raises:
        ValueError: fewer than two clips, or recordings, of a kind.
    """
    owner = [_numbered(z, g) for z, g in zip((a, b), groups, strict=True)]
    counts = [int(o.max(initial=-1)) + 1 for o in owner]
    if min(counts) < 2:
        raise ValueError(f"KID needs at least two clips of each kind, found {counts}")
    rng = np.random.default_rng(seed)
    draw = [rng.multinomial(k, np.full(k, 1 / k), size=resamples) for k in counts]
    w, v = (np.vstack([np.ones(k), d])[:, o] for k, d, o in zip(counts, draw, owner, strict=True))
    if fixed:
        v = np.ones((1, len(b)))
    between = ((w @ _kernel(a, b)) * v).sum(1) / (w.sum(1) * v.sum(1))
    return _within(a, w, owner[0]) + _within(b, v, owner[1]) - 2 * between


def _numbered(z: Array, groups: Array | None) -> Array:
    """The recording of each row, counted from 0; each row its own where nothing is said."""
    return np.arange(len(z)) if groups is None else np.unique(groups, return_inverse=True)[1]


def _kernel(a: Array, b: Array) -> Array:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _within(a: Array, w: Array, owner: Array) -> Array:
    """Weighted mean of the kernel over pairs of rows of different recordings; w `(R, N)`."""
    kernel = _kernel(a, a)
    kernel[owner[:, None] == owner[None]] = 0
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(owner.max() + 1))
    each = np.add.reduceat(w[:, order], starts, axis=1)
    pairs = w.sum(1) ** 2 - (each**2).sum(1)
    pairs = np.where(pairs > 0, pairs, np.nan)  # one clip, drawn n times: no pair at all
    return ((w @ kernel) * w).sum(1) / pairs


def manifold(
    real: Array, fake: Array, k: int = 5, groups: Array | None = None
) -> dict[str, float]:
    """Precision, recall, density and coverage of features `(N', d)` against real ones `(N, d)`.

    Arguments:
        real, fake: Features, at least k + 1 clips each.
        k: Neighbour that decides the size of a neighbourhood.
        groups: `(N,)`, the recording that a real row is a window of: others of the same are no
            neighbours.
    """
    from sklearn.metrics import pairwise_distances

    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k={k} needs more than {k} clips, found {len(real)} and {len(fake)}")
    apart = pairwise_distances(real)
    owner = _numbered(real, groups)
    apart[(owner[:, None] == owner[None]) & ~np.eye(len(real), dtype=bool)] = np.inf
    radius, reach = np.sort(apart, 1)[:, k], np.sort(pairwise_distances(fake), 1)[:, k]
    between = pairwise_distances(real, fake)  # (N, N')
    inside = between <= radius[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((between <= reach).any(1).mean()),
        "density": float(inside.sum(0).mean() / k),
        "coverage": float((between.min(1) <= radius).mean()),
    }


def nearest(x: Array, others: Iterable[Array]) -> tuple[Array, Array]:
    """Distance from each row of x `(N, d)` to its nearest among `others`, given in blocks of rows.

    Returns:
        Distances `(N,)`, and positions of the nearest `(N,)` counted over all blocks.
    """
    best, where, seen = np.full(len(x), np.inf), np.zeros(len(x), dtype=int), 0
    for block in others:
        rough = (block**2).sum(1) - 2 * (x @ block.T)  # ranks; the distance is taken exactly
        j = rough.argmin(1)
        distance = np.sqrt(((x - block[j]).astype(np.float64) ** 2).sum(1))
        closer = distance < best
        best[closer], where[closer] = distance[closer], seen + j[closer]
        seen += len(block)
    return best, where


def percentiles(values: Array) -> dict[str, float]:
    """The first value, and the 2.5 and 97.5 % quantiles of the others, which resample it."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def paired_interval(
    difference: Callable[[Array], float], n: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Percentile bootstrap of a statistic of paired clips.

    Arguments:
        difference: Of row indices `(n,)`, drawn with replacement; gives (ours - reference).
        n: Number of pairs.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        `value` of all pairs, and `low`, `high`: the 2.5 and 97.5 % quantiles of its bootstrap
        distribution.
    """
    rng = np.random.default_rng(seed)
    draws = [difference(rng.integers(0, n, n)) for _ in range(resamples)]
    return percentiles(np.array([difference(np.arange(n)), *draws]))
