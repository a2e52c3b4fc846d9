r"""The Gaussian reference: the part of the energy that is known exactly.

    p_0(x | c) = N(x; mu_c, C_c),   C_c = U_c diag(lambda_c) U_c^T + s_c (I - U_c U_c^T)

one component c or several, each belonging to a class y; `D = M T` dimensions, rank r, `U_c` with
orthonormal columns. Fitted to dequantised data (noise of standard deviation sigma is added to
every cell), so `lambda, s >= sigma^2`. Where a component has fewer than r directions, the missing
columns of U are zero and their lambda equals s: every formula below stays valid.
"""

from __future__ import annotations

__all__ = ["GaussianReference", "ComponentGaussian"]

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sance_audio.gaussian import ComponentGaussian, log_density, quadratic_parts


class GaussianReference(nn.Module):
    """Low-rank-plus-isotropic Gaussians, one per component.

    Arguments:
        mean: `(C, D)`.
        basis: `(C, D, r)`, orthonormal or zero columns.
        eigenvalues: `(C, r)`, variances along the columns.
        remainder: `(C,)`, variance in every other direction.
        weight: `(C,)`, share of each component in the data; sums to 1.
        classes: `(C,)`, the class that each component belongs to.
    """

    mean: Tensor
    basis: Tensor
    eigenvalues: Tensor
    remainder: Tensor
    weight: Tensor
    classes: Tensor

    def __init__(
        self,
        mean: Tensor,
        basis: Tensor,
        eigenvalues: Tensor,
        remainder: Tensor,
        weight: Tensor | None = None,
        classes: Tensor | None = None,
    ):
        super().__init__()
        count = mean.shape[0]
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("remainder", remainder)
        self.register_buffer(
            "weight", torch.full((count,), 1 / count) if weight is None else weight
        )
        self.register_buffer("classes", torch.arange(count) if classes is None else classes)

    @property
    def n_components(self) -> int:
        return self.mean.shape[0]

    @property
    def n_classes(self) -> int:
        return int(self.classes.max()) + 1

    @staticmethod
    def fit(
        x: Any,
        classes: Tensor | None = None,
        *,
        components: int = 1,
        rank: int = 24,
        sigma: float = 0.2,
        floor: float = 0.01,
        seed: int = 0,
        most: int = 4000,
    ) -> tuple[GaussianReference, Tensor]:
        """Fit to data: k-means on 40 principal components within each class, an exact SVD per
        component.

        Arguments:
            x: Clean data: a tensor `(N, ...)`, flattened to `(N, D)`, or any object with a length
                whose `x[indices]` is one.
            classes: Class of each row `(N,)`, integers from 0; one class for all when None.
            components: Components per class; fewer where a class has under 8 clips a component.
            rank: Largest rank r; a component of n clips has rank at most n - 2.
            sigma: Standard deviation of the dequantisation noise, added to the covariance.
            floor: Smallest remainder variance, before sigma^2 is added.
            seed: Of k-means, and of the choice of rows.
            most: Rows of a class that are fitted; where it has more, a random choice is, and every
                other row belongs to its likeliest component.

        Returns:
            The reference, and the component of each row `(N,)`.

        Raises:
            ValueError: a class without at least three clips, with features that are not finite, or
            whose clips are all the same.
        """
        n = len(x)
        classes = torch.zeros(n, dtype=torch.long) if classes is None else classes.long().cpu()
        fitted: list[tuple[Tensor, ...]] = []
        owner: list[int] = []
        assignment = torch.full((n,), -1)
        g = torch.Generator().manual_seed(seed)
        for y in range(int(classes.max()) + 1):
            members = (classes == y).nonzero().flatten()
            if len(members) < 3:
                raise ValueError(
                    f"class {y} has {len(members)} clips; a Gaussian needs at least 3: add clips "
                    f"of it, or leave the class out"
                )
            if len(members) > most:
                members = members[torch.randperm(len(members), generator=g)[:most].sort()[0]]
            flat = x[members].detach().reshape(len(members), -1).float()
            _check(flat, f"class {y}")
            groups = _split(flat, min(components, max(1, len(members) // 8)), seed)
            for group in groups:
                assignment[members[group]] = len(fitted)
                fitted.append(_gaussian(flat[group], rank, sigma, floor))
                owner.append(y)
        mean, basis, eigenvalues, remainder = (
            torch.stack(parts) for parts in zip(*fitted, strict=True)
        )
        reference = GaussianReference(
            mean, basis, eigenvalues, remainder, classes=torch.tensor(owner)
        )
        left = (assignment < 0).nonzero().flatten()
        for rows in left.split(256) if len(left) else ():
            likely = reference.log_prob_all(x[rows])
            likely = likely.masked_fill(reference.classes != classes[rows, None], -torch.inf)
            assignment[rows] = likely.argmax(1)
        counts = torch.bincount(assignment, minlength=len(fitted)).float()
        reference.weight.copy_(counts / counts.sum())
        return reference, assignment

    def given(self, c: Tensor) -> ComponentGaussian:
        """One Gaussian per row: component `c[i]` for row i."""
        return ComponentGaussian(
            self.mean[c], self.basis[c], self.eigenvalues[c], self.remainder[c]
        )

    def each(self) -> ComponentGaussian:
        """One Gaussian per component, in order."""
        return ComponentGaussian(self.mean, self.basis, self.eigenvalues, self.remainder)

    def tempered(self, temperature: float) -> GaussianReference:
        """`p_0^(1 / tau)`, normalised: covariances `tau C_c`; itself at temperature 1."""
        if temperature == 1:
            return self
        return GaussianReference(
            self.mean,
            self.basis,
            temperature * self.eigenvalues,
            temperature * self.remainder,
            self.weight,
            self.classes,
        )

    def noised(self, variance: float) -> GaussianReference:
        """Of x with further independent noise of this variance in every cell: covariances
        `C_c + v I`, exact.
        """
        return GaussianReference(
            self.mean,
            self.basis,
            self.eigenvalues + variance,
            self.remainder + variance,
            self.weight,
            self.classes,
        )

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor:
        """log p_0(x | c), `(B,)` in nats, of x `(B, ...)`; c `(B,)`."""
        return self.given(c).log_prob(x)

    def log_prob_all(self, x: Tensor) -> Tensor:
        """log p_0(x | c) of every row under every component, `(B, C)`."""
        u = x.flatten(1).unsqueeze(0) - self.mean.unsqueeze(1)  # (C, B, D)
        modelled, outside = quadratic_parts(u, self.basis, self.eigenvalues, self.remainder)
        return log_density(modelled, outside, self.basis, self.eigenvalues, self.remainder).T

    def sample(self, c: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws `(B, D)`, one per entry of c `(B,)`."""
        noise = torch.randn(
            len(c), self.mean.shape[1], generator=generator, device=self.mean.device
        )
        return self.given(c).colour(noise)

    def class_log_weight(self) -> Tensor:
        """log p(y), `(classes,)`."""
        zeros = torch.zeros(self.n_classes, device=self.weight.device)
        return zeros.index_add(0, self.classes, self.weight).log()

    def log_weight(self, label: int | None = None) -> Tensor:
        """log p(c) `(C,)`; or log p(c | y), minus infinity outside the class, given a label y.

        Raises:
            ValueError: no such class.
        """
        if label is None:
            return self.weight.log()
        if not 0 <= label < self.n_classes:
            raise ValueError(f"label {label} is none of the {self.n_classes} classes")
        inside = self.weight.log() - self.class_log_weight()[label]
        return inside.masked_fill(self.classes != label, -torch.inf)


def _check(x: Tensor, name: str) -> None:
    """Raise ValueError unless rows `(N, D)` are finite and differ."""
    bad = int((~x.isfinite().all(1)).sum())
    if bad:
        raise ValueError(
            f"{name}: {bad} of {len(x)} clips have NaN or infinite features: leave them out, or "
            f"mend their recordings"
        )
    if bool((x == x[0]).all()):
        raise ValueError(
            f"{name}: its {len(x)} clips are all the same (variance 0), so that their covariance "
            f"is singular: are they silent, or one file copied? leave the class out"
        )


def _split(x: Tensor, k: int, seed: int) -> list[Tensor]:
    """Row indices of k groups of `(N, D)` by k-means on its principal components; no group under 3
    rows.
    """
    if k == 1:
        return [torch.arange(len(x))]
    from sklearn.cluster import KMeans

    u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    scores = (u * s)[:, :40].double().numpy()
    labels = KMeans(k, n_init=10, random_state=seed).fit_predict(scores)
    groups = [torch.from_numpy(np.flatnonzero(labels == j)) for j in range(k)]
    return groups if min(map(len, groups)) >= 3 else _split(x, k - 1, seed)


def _gaussian(
    x: Tensor, rank: int, sigma: float, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, basis, eigenvalues and remainder of one component, dequantised; padded to `rank`
    columns.
    """
    n, dimensions = x.shape
    mean = x.mean(0)
    _, s, vt = torch.linalg.svd(x - mean, full_matrices=False)
    variances = s.square() / (n - 1)
    r = max(1, min(rank, n - 2, dimensions - 1))
    remainder = (variances[r:].sum() / (dimensions - r)).clamp_min(floor) + sigma**2
    basis = torch.zeros(dimensions, rank)
    basis[:, :r] = vt[:r].T
    eigenvalues = remainder.repeat(rank)
    eigenvalues[:r] = variances[:r] + sigma**2
    return mean, basis, eigenvalues, remainder
