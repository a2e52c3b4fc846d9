r"""One Gaussian per row, of low rank plus isotropic, and everything about it that is exact.

    N(x; mu, C),   C = U diag(lambda) U^T + s (I - U U^T)

D dimensions, rank r, columns of U orthonormal (or zero, with lambda = s): density, draws, any
function of C, the density of some of the cells, and the rest given those. Nothing costs more than
`O(D r^2)`.
"""

from __future__ import annotations

__all__ = ["ComponentGaussian", "quadratic_parts", "log_density"]

import math

import torch
from torch import Tensor


class ComponentGaussian:
    """One low-rank-plus-isotropic Gaussian per row, gathered once and used many times.

    Arguments:
        mean: `(B, D)` (or 1 in place of B, for the same Gaussian in every row).
        basis: `(B, D, r)`.
        eigenvalues: `(B, r)`.
        remainder: `(B,)`.
    """

    def __init__(self, mean: Tensor, basis: Tensor, eigenvalues: Tensor, remainder: Tensor):
        self.mean, self.basis, self.eigenvalues, self.remainder = (
            mean,
            basis,
            eigenvalues,
            remainder,
        )

    def rows(self, part: slice) -> ComponentGaussian:
        if self.mean.shape[0] == 1:
            return self
        return ComponentGaussian(
            self.mean[part], self.basis[part], self.eigenvalues[part], self.remainder[part]
        )

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of `(x - mu)^T C^-1 (x - mu)`: modelled directions, remainder; `(B,)`
        each.
        """
        u = (x.reshape(x.shape[0], -1) - self.mean).unsqueeze(1)
        basis = self.basis.expand(u.shape[0], -1, -1)
        modelled, outside = quadratic_parts(u, basis, self.eigenvalues, self.remainder)
        return modelled.squeeze(1), outside.squeeze(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mu, C), `(B,)`, in nats."""
        modelled, outside = (part.unsqueeze(1) for part in self.parts(x))
        density = log_density(modelled, outside, self.basis, self.eigenvalues, self.remainder)
        return density.squeeze(1)

    def spectral(self, vectors: Tensor, along: Tensor, elsewhere: Tensor) -> Tensor:
        """Sum over k of `f_k(C)` applied to `vectors[:, k]`, f_k a function of C's eigenvalues.

        Arguments:
            vectors: `(B, k, D)`.
            along: `(B, k, r)`, the factor of each direction of the basis.
            elsewhere: `(B, k)`, the factor of every other direction.

        Returns:
            `(B, D)`. One pass over the basis down and one up, whatever k.
        """
        basis, elsewhere = self.basis.expand(len(vectors), -1, -1), elsewhere.unsqueeze(2)
        coefficients = ((along - elsewhere) * (vectors @ basis)).sum(1, keepdim=True)
        return torch.baddbmm(elsewhere.mT @ vectors, coefficients, basis.mT).squeeze(1)

    def colour(self, noise: Tensor) -> Tensor:
        """`mu + C^(1/2) noise`, `(B, D)`: an exact draw for standard normal noise `(B, D)`."""
        along, elsewhere = self.eigenvalues.sqrt(), self.remainder.sqrt()
        root = self.spectral(noise.unsqueeze(1), along.unsqueeze(1), elsewhere.unsqueeze(1))
        return self.mean + root

    def noised(self, variance: Tensor) -> ComponentGaussian:
        """`N(mu, C + v I)`: of x with independent noise of variance v `(B,)` in every cell. A
        negative v takes noise away that C has.
        """
        return ComponentGaussian(
            self.mean,
            self.basis,
            self.eigenvalues + variance[:, None],
            self.remainder + variance,
        )

    def denoised(self, y: Tensor, variance: Tensor) -> ComponentGaussian:
        """`N(x | y)` of x given `y = x + sqrt(v) n`, exact: by eigenvalues lambda of C,

            mean  mu + lambda / (lambda + v) (y - mu),   variance  lambda v / (lambda + v)

        Arguments:
            y: `(B, ...)` of D cells.
            variance: v `(B,)`.
        """
        v = variance[:, None]
        along = self.eigenvalues / (self.eigenvalues + v)
        elsewhere = self.remainder / (self.remainder + variance)
        u = (y.reshape(len(y), -1) - self.mean).unsqueeze(1)
        mean = self.mean + self.spectral(u, along.unsqueeze(1), elsewhere.unsqueeze(1))
        return ComponentGaussian(mean, self.basis, v * along, variance * elsewhere)

    def conditional(self, x: Tensor, known: Tensor, noise: float = 0.0) -> ComponentGaussian:
        """`N(x_u | x_o)`: the cells u that are not known, given those that are, o, which have
        further noise of a given variance. Exact.

            N(mu_u + U_u a,  s I + U_u A U_u^T),   a = A U_o^T (x_o - mu_o) / t,   t = s + noise
            A = (D^-1 + U_o^T U_o / t)^-1 = (I + D U_o^T U_o / t)^-1 D,   D = diag(lambda - s)

        is low-rank plus isotropic again; its eigenvectors come from an `r x r` problem.

        Arguments:
            x: `(B, ...)` of D cells, or 1 in place of B; those that are not known do not matter.
            known: `(D,)`, boolean.
            noise: Variance of the noise on the known cells.
        """
        hidden = self.basis[:, ~known]
        gain, _ = self._gain(self.basis[:, known], noise)
        q, triangle = torch.linalg.qr(hidden)
        values, vectors = torch.linalg.eigh(triangle @ gain @ triangle.mT)
        eigenvalues = self.remainder[:, None] + values
        mean = self.fitted(x, known, noise)[:, ~known]
        return ComponentGaussian(mean, q @ vectors, eigenvalues, self.remainder)

    def fitted(self, x: Tensor, known: Tensor, noise: float = 0.0) -> Tensor:
        """`mu + U a`, `(B, D)`: what the known cells say of the modelled directions, everywhere:
        in the other cells their mean, in the known ones what the directions explain of them.
        Arguments as of `conditional`.
        """
        seen = self.basis[:, known]
        gain, _ = self._gain(seen, noise)
        u = x.reshape(len(x), -1)[:, known] - self.mean[:, known]
        a = gain @ (u.unsqueeze(1) @ seen).mT / (self.remainder + noise)[:, None, None]
        return self.mean + (self.basis @ a).squeeze(2)

    def log_marginal(self, x: Tensor, known: Tensor, noise: float = 0.0) -> Tensor:
        """log density of the known cells alone, under further noise, `(B,)` in nats, by the same
        A. Arguments as of `conditional`.
        """
        seen, t = self.basis[:, known], self.remainder + noise
        gain, log_det = self._gain(seen, noise)
        u = (x.reshape(len(x), -1)[:, known] - self.mean[:, known]).unsqueeze(1)
        a = u @ seen
        explained = (a @ gain @ a.mT).flatten() / t
        quadratic = (u.square().sum((1, 2)) - explained) / t
        return -0.5 * (quadratic + log_det + seen.shape[1] * (2 * math.pi * t).log())

    def _gain(self, seen: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """A `(B, r, r)` of the known rows of the basis `(B, D_o, r)`, and
        `log det(I + D U_o^T U_o / t)` `(B,)`.
        """
        d = (self.eigenvalues - self.remainder[:, None]).unsqueeze(2)
        matrix = d * (seen.mT @ seen) / (self.remainder + noise)[:, None, None]
        matrix = matrix + torch.eye(d.shape[1], dtype=d.dtype, device=d.device)
        gain = torch.linalg.solve(matrix, torch.diag_embed(d.squeeze(2)))
        return (gain + gain.mT) / 2, torch.linalg.slogdet(matrix)[1]


def quadratic_parts(
    u: Tensor, basis: Tensor, eigenvalues: Tensor, remainder: Tensor
) -> tuple[Tensor, Tensor]:
    """`u^T C^-1 u` along the basis and outside it, `(G, n)` each, of u `(G, n, D)`."""
    a = (u @ basis).square()
    outside = (u.square().sum(2) - a.sum(2)).clamp_min(0)
    return (a / eigenvalues.unsqueeze(1)).sum(2), outside / remainder.unsqueeze(1)


def log_density(
    modelled: Tensor, outside: Tensor, basis: Tensor, eigenvalues: Tensor, remainder: Tensor
) -> Tensor:
    """log N from the two parts `(G, n)`."""
    dimensions, rank = basis.shape[1:]
    log_det = eigenvalues.log().sum(1) + (dimensions - rank) * remainder.log()
    constant = log_det + dimensions * math.log(2 * math.pi)
    return -0.5 * (modelled + outside + constant.unsqueeze(1))
