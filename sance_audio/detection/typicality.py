r"""How far a vector is from those of normal clips, cross-fitted.

Of vectors v standardised by normals' means and deviations

    M(v) = 1/2 log (v^T P v)        P from a Ledoit-Wolf covariance: shrunk, so that few normals do
    K(v) = log mean distance to the `NEAREST` nearest normals

Normals are nearer to what was fitted on them than new clips are. So there is a fit to all but each
of `FOLDS` folds; z(v) is the mean term over the fits, less the mean and over the deviation that
normals have under the fit that did not see them.

References:
    A well-conditioned estimator for large-dimensional covariance matrices (Ledoit & Wolf, 2004)
    A simple unified framework for detecting out-of-distribution samples (Lee et al., 2018)
    Deep nearest neighbors for out-of-distribution detection (Sun et al., 2022)
"""

from __future__ import annotations

__all__ = ["Typicality", "folds_of"]

from typing import NamedTuple

import numpy as np

FOLDS = 8
NEAREST = 2
CONSTANT = 1e-4
"""Deviation below which a statistic says nothing: rounding has as much."""
KEPT = 4000
"""Normals that distances are taken to, at most, of each fold."""

Array = np.ndarray


class Fold(NamedTuple):
    """What was fitted on all other folds."""

    mean: Array
    """`(D,)`."""
    scale: Array
    """`(D,)`: 1 / deviation; 0 for a constant statistic."""
    precision: Array
    """`(D, D)`."""
    normals: Array
    """`(<= KEPT, D)`, standardised."""
    radius: Array | None = None
    """`(<= KEPT,)`: of each normal, how far its own neighbours are; K is then the least distance
    to a normal, over its radius.
    """

    def terms(self, v: Array) -> Array:
        """M and K of vectors `(B, D)`: `(B, 2)`."""
        z = (v - self.mean) * self.scale
        square = ((z[:, None] @ self.precision)[:, 0] * z).sum(1)  # row by row, whatever B
        distance = (z**2).sum(1)[:, None] + (self.normals**2).sum(1) - 2 * z @ self.normals.T
        near = self._near(z, distance) if self.radius is None else self._relative(z, distance)
        return np.stack([0.5 * np.log(square + 1e-9), np.log(near + 1e-9)], 1)

    def _near(self, z: Array, square: Array) -> Array:
        k = min(NEAREST, len(self.normals))
        nearest = self.normals[np.argpartition(square, k - 1, 1)[:, :k]]
        return np.sqrt(((z[:, None] - nearest) ** 2).sum(2)).mean(1)  # without cancellation

    def _relative(self, z: Array, square: Array) -> Array:
        assert self.radius is not None
        nearest = (np.maximum(square, 0) / self.radius**2).argmin(1)
        return np.sqrt(((z - self.normals[nearest]) ** 2).sum(1)) / self.radius[nearest]


def fold(v: Array, rng: np.random.Generator) -> Fold:
    """Fit on normals `(n, D)`, n >= 1."""
    mean, scale = v.mean(0), scale_of(v)
    z = (v - mean) * scale
    return Fold(mean, scale, precision_of(z), kept_of(z, rng))


def scale_of(v: Array) -> Array:
    """1 / deviation of normals `(n, D)`, 0 for a constant statistic."""
    spread = v.std(0)
    return np.where(spread > CONSTANT, 1 / np.maximum(spread, CONSTANT), 0.0)


def precision_of(z: Array) -> Array:
    """P `(D, D)` of vectors `(n, D)` about zero."""
    from sklearn.covariance import LedoitWolf

    found = (
        LedoitWolf(assume_centered=True).fit(z).precision_ if len(z) > 1 else np.eye(z.shape[1])
    )
    return np.ascontiguousarray(found)


def kept_of(z: Array, rng: np.random.Generator) -> Array:
    """Those of `(n, D)` that distances are taken to."""
    kept = z if len(z) <= KEPT else z[np.sort(rng.permutation(len(z))[:KEPT])]
    return np.ascontiguousarray(kept)


class Typicality:
    """Of one kind of vector.

    Arguments:
        folds: What was fitted.
        centre, spread: `(2,)`, of M and K of normals under the folds that did not see them.
    """

    def __init__(self, folds: list[Fold], centre: Array, spread: Array):
        self.folds, self.centre, self.spread = folds, centre, spread

    @classmethod
    def fit(cls, v: Array, folds: Array, seed: int = 0) -> tuple[Typicality, Array]:
        """On normals `(n, D)` in the folds `(n,)`; also their own cross-fitted z `(n, 2)`."""
        v, rng = v.astype(np.float64), np.random.default_rng(seed)
        own, found = np.empty((len(v), 2)), []
        for j in np.unique(folds):
            seen = folds != j
            found.append(fold(v[seen] if seen.any() else v, rng))
            own[~seen] = found[-1].terms(v[~seen])
        centre, spread = own.mean(0), own.std(0) + 1e-9
        return cls(found, centre, spread), (own - centre) / spread

    def z(self, v: Array) -> Array:
        """`(B, 2)` of vectors `(B, D)`."""
        v = v.astype(np.float64)
        terms = np.mean([f.terms(v) for f in self.folds], 0)
        return (terms - self.centre) / self.spread

    def arrays(self) -> dict[str, Array]:
        """What `restore` makes it again from."""
        out = {"centre": self.centre, "spread": self.spread}
        for i, f in enumerate(self.folds):
            own = f._asdict().items()
            out |= {f"{i}.{name}": value for name, value in own if value is not None}
        return out

    @classmethod
    def restore(cls, arrays: dict[str, Array]) -> Typicality:
        count = len({name.split(".")[0] for name in arrays if "." in name})
        folds = []
        for i in range(count):
            names = [name for name in Fold._fields if f"{i}.{name}" in arrays]
            folds.append(Fold(**{name: arrays[f"{i}.{name}"] for name in names}))
        return cls(folds, arrays["centre"], arrays["spread"])


def folds_of(groups: Array, count: int, rng: np.random.Generator) -> Array:
    """A fold for each clip `(n,)`, whole groups together, at most `count` of about one size."""
    names, number = np.unique(groups, return_inverse=True)
    of_group = np.empty(len(names), np.int64)
    of_group[rng.permutation(len(names))] = np.arange(len(names)) % count
    return of_group[number]
