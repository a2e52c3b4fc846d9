r"""Scores of clips that come from one of two domains, nobody says from which: a machine as it was
mostly recorded ("source"), and as it was heard a few times under other conditions ("target").

Normals of the target are few among many, so that all of the target looks odd. A clip is therefore
compared with each domain for itself, and is as odd as the nearer one finds it:

    score = min_d S_d,    S_d as in `scorer`, of terms M_d and K_d

M_d is about the domain's mean, with one covariance, that of all normals about their domain's mean.
K_d is the log of the least distance to a normal of the domain over that normal's own distance to
`NEIGHBOURS` others, so that settings heard less often are not odd for it. Each is standardised by
what the domain's normals have under the fits that did not see them; for the few of the target,
mean and variance are drawn to those of the source, which weigh as `PRIOR` normals.

References:
    First-shot anomaly sound detection for machine condition monitoring: A domain generalization
        baseline (Harada et al., 2023): Mahalanobis distances, the smaller of two
    Keeping the balance: Anomaly score calculation for domain generalization (Wilkinghoff et al.,
        2025): distances over local ones
"""

from __future__ import annotations

__all__ = ["FEWEST", "DomainDetector", "DomainScorer"]

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from sance_audio.detection.detector import EnergyDetector
from sance_audio.detection.rows import Clips, Row, gathered
from sance_audio.detection.scorer import NETWORK_WEIGHT, Network, Scorer, halves_of, views_of
from sance_audio.detection.typicality import (
    FOLDS,
    Fold,
    Typicality,
    folds_of,
    kept_of,
    precision_of,
    scale_of,
)
from sance_audio.weights import below

DOMAINS = ("source", "target")
FEWEST = 3
"""Recordings of each domain that `DomainDetector` needs."""
PRIOR = 2.0
"""Normals that the source counts for where the target is standardised."""
NEIGHBOURS = 5
CLOSEST = 1e-3
"""Least distance to them: normals may be copies."""

Array = np.ndarray


class DomainScorer(Scorer):
    """Scores rows by the domain that finds them less odd.

    Arguments:
        source, target: The scorers of each.
        normal: `(n,)`: scores of the rows it was fitted on, each under what did not see it.
    """

    def __init__(self, source: Scorer, target: Scorer, normal: Array):
        super().__init__({}, [], normal)
        self.source, self.target = source, target

    @classmethod
    def of(
        cls, plain: Scorer, rows: Sequence[Row], groups: Array, target: Array, seed: int
    ) -> DomainScorer:
        """With the networks of a plain one.

        Arguments:
            plain: Fitted on the same rows and groups with the same seed.
            target: `(n,)`, which rows are of the target.
        """
        rng = np.random.default_rng(seed)
        folds = np.empty(len(rows), np.int64)
        for domain in (target, ~target):  # so that each of the few is in another fold
            folds[domain] = folds_of(groups[domain], FOLDS, rng)
        total = np.zeros((len(rows), 2))
        vectors: tuple[dict[str, Typicality], ...] = ({}, {})
        for name, v in sorted(gathered(rows).items()):
            pair, own = fit_pair(v, folds, target)
            total += own
            for d, typicality in enumerate(pair):
                vectors[d][name] = typicality
        networks: tuple[list[Network], ...] = ([], [])
        halves = halves_of(groups, seed)
        for j, (network, _) in zip(np.unique(halves), plain.networks, strict=False):
            mine = np.flatnonzero(halves == j)
            views = views_of(network, [rows[int(i)] for i in mine])
            pair, own = fit_pair(views, folds[mine], target[mine])
            total[mine] += NETWORK_WEIGHT * own / 2
            for d, typicality in enumerate(pair):
                networks[d].append((network, typicality))
        near, far = map(Scorer, vectors, networks, total.T)
        return cls(near, far, total.min(1))

    def __call__(self, rows: Sequence[Row]) -> Array:
        """`(n,)`: higher is odder."""
        return np.minimum(self.source(rows), self.target(rows))

    def tensors(self) -> dict[str, Tensor]:
        out = {f"source.{k}": v for k, v in self.source.tensors().items()}
        other = self.target.tensors()  # with the same networks
        out |= {f"target.{k}": v for k, v in other.items() if not k.startswith("network.")}
        return out | {"normal": from_numpy(self.normal)}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor]) -> DomainScorer:
        of_source, of_target = (below(tensors, f"{name}.") for name in DOMAINS)
        networks = {k: v for k, v in of_source.items() if k.startswith("network.")}
        source, target = Scorer.restore(of_source), Scorer.restore(of_target | networks)
        return cls(source, target, tensors["normal"].numpy())


def fit_pair(v: Array, folds: Array, target: Array) -> tuple[list[Typicality], Array]:
    """Typicality relative to each domain, of normals `(n, D)` in the folds `(n,)`; also their own
    cross-fitted sums of z, `(n, 2)`.

    Without three of each domain to compare with each other, both are relative to all normals.
    """
    if min(len(np.unique(folds[domain])) for domain in (target, ~target)) < FEWEST:
        typicality, own = Typicality.fit(v, folds)
        return [typicality, typicality], np.repeat(own.sum(1)[:, None], 2, 1)
    v, rng = v.astype(np.float64), np.random.default_rng(0)
    own = np.empty((len(v), 2, 2))
    found: tuple[list[Fold], ...] = ([], [])
    for j in np.unique(folds):
        seen = folds != j
        for d, one in enumerate(_folds(v[seen], target[seen], rng)):
            found[d].append(one)
            own[~seen, d] = one.terms(v[~seen])
    few = own[target, 1]
    many, weight = own[~target, 0], len(few) / (len(few) + PRIOR)
    mean = weight * few.mean(0) + (1 - weight) * many.mean(0)
    variance = weight * few.var(0) + (1 - weight) * many.var(0)
    centre, spread = np.stack([many.mean(0), mean]), np.sqrt([many.var(0), variance]) + 1e-9
    pair = [Typicality(*parts) for parts in zip(found, centre, spread, strict=True)]
    return pair, ((own - centre) / spread).sum(2)


def _folds(v: Array, target: Array, rng: np.random.Generator) -> list[Fold]:
    """Fits to each domain of normals `(n, D)`, with one scale and one covariance."""
    scale, domains = scale_of(v), (~target, target)
    means = [v[domain].mean(0) for domain in domains]
    z = (v - np.where(target[:, None], means[1], means[0])) * scale
    precision = precision_of(z)
    kept = [kept_of(z[domain], rng) for domain in domains]
    return [
        Fold(mean, scale, precision, normals, radius_of(normals))
        for mean, normals in zip(means, kept, strict=True)
    ]


def radius_of(normals: Array) -> Array:
    """Mean distance `(n,)` of each normal of `(n, D)`, n >= 2, to its nearest others."""
    squares = (normals**2).sum(1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * normals @ normals.T, 0))
    np.fill_diagonal(distance, np.inf)
    k = min(NEIGHBOURS, len(normals) - 1)
    return np.maximum(np.partition(distance, k - 1, 1)[:, :k].mean(1), CLOSEST)


class DomainDetector(EnergyDetector):
    """An `EnergyDetector` of recordings of two domains; only normals say which is theirs.

    What it saves is an `EnergyDetector`'s, with the same scores.
    """

    def fit(
        self, X: Clips, y: Any = None, *, groups: Any = None, domains: Sequence[str] | None = None
    ) -> DomainDetector:
        """Fit on normal clips.

        Arguments:
            X, y, groups: As of `EnergyDetector`.
            domains: `(B,)`: "source" or "target", of each clip; a plain detector when None.

        Raises:
            ValueError, AudioError: as `EnergyDetector`; other domains, or too few recordings of
                one.
        """
        if domains is not None and self.score != "typicality":
            raise ValueError(f"score={self.score!r} knows no domains; leave it at 'typicality'")
        self._target = None if domains is None else target_of(domains)
        try:
            super().fit(X, groups=groups)
        finally:
            del self._target
        return self

    def _calibrate(self, rows: list[Row], inside: list[Row], groups: Array, held: Array) -> None:
        if self._target is not None:
            if len(self._target) != len(groups):
                raise ValueError(
                    f"expected a domain for each of {len(groups)} clips, found {len(self._target)}"
                )
            number = [row.clip for row in inside]
            own, target = groups[number], self._target[number]
            for name, domain in zip(DOMAINS, (~target, target), strict=True):
                if len(np.unique(own[domain])) < FEWEST:
                    raise ValueError(
                        f"{len(np.unique(own[domain]))} recordings of the {name} domain are too "
                        f"few to fit, expected {FEWEST}: pass more, a smaller share that "
                        f"calibrates, or no domains"
                    )
            self._scorer = DomainScorer.of(self._scorer, inside, own, target, self.seed)
        super()._calibrate(rows, inside, groups, held)


def target_of(domains: Sequence[str]) -> Array:
    """Which clips are of the target, `(B,)`.

    Raises:
        ValueError: what is no domain.
    """
    strange = sorted(set(domains) - set(DOMAINS))
    if strange:
        raise ValueError(f"domains are source and target, found {', '.join(map(repr, strange))}")
    return np.asarray(domains) == "target"
