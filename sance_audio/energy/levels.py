r"""Energies of data under noise of several levels, and of what lies one level below.

    sigma = sigma_0 < sigma_1 < ... < sigma_{L-1},      x_t = x + sigma_t n
    E_t(x | c) = -log N(x; mu_c, C_c + (sigma_t^2 - sigma^2) I) + F(x | c, sigma_t)

The reference C has noise of level 0 in it, so that its part is exact at every level, and level 0
is the model itself. With `x_{t+1} = x_t + sqrt(delta) n`, `delta = sigma_{t+1}^2 - sigma_t^2`,

    p(x_t | x_{t+1}, c)  ~  exp(-E_t(x_t | c) - |x_{t+1} - x_t|^2 / (2 delta))

is again a Gaussian plus a network: its Gaussian part is `ComponentGaussian.denoised`. Far narrower
than p(x_t), it has next to one mode, and a few steps reach it (recovery likelihood).

References:
    Learning energy-based models by diffusion recovery likelihood (Gao et al., 2021)
"""

from __future__ import annotations

__all__ = ["RecoveryEnergy", "level"]

from typing import Any

from torch import Tensor

from sance_audio.energy.referenced import ReferencedEnergy


def level(energy: ReferencedEnergy, c: Tensor, sigma: Tensor) -> Any:
    """The reference of components c `(B,)` at levels sigma `(B,)`, one Gaussian per row, at the
    temperature of the energy.
    """
    network: Any = energy.network
    return energy.base.given(c).noised(energy.temperature * (sigma**2 - network.sigma**2))


class RecoveryEnergy:
    """`x_t -> -log p(x_t | x_{t+1}, c)` up to a constant, row by row: a Gaussian plus
    `F(x_t | c, sigma_t) / tau`, which alone is `learnt`.

    Arguments:
        network: F, of x, components and levels.
        gaussian: The Gaussian part, one per row.
        c: Components `(B,)`.
        sigma: Levels sigma_t `(B,)`.
        temperature: tau.
    """

    def __init__(
        self, network: Any, gaussian: Any, c: Tensor, sigma: Tensor, temperature: float = 1.0
    ):
        self.network, self.gaussian = network, gaussian
        self.c, self.sigma, self.temperature = c, sigma, temperature

    @classmethod
    def below(
        cls, energy: ReferencedEnergy, y: Tensor, c: Tensor, sigma: Tensor, above: Tensor
    ) -> RecoveryEnergy:
        """Of x at levels sigma `(B,)`, given y `(B, ...)`: the same x at higher levels, `above`
        `(B,)`.
        """
        delta = energy.temperature * (above**2 - sigma**2)
        gaussian = level(energy, c, sigma).denoised(y, delta)
        return cls(energy.network, gaussian, c, sigma, energy.temperature)

    def __call__(self, x: Tensor) -> Tensor:
        return self.learnt(x) - self.gaussian.log_prob(x)

    def learnt(self, x: Tensor) -> Tensor:
        """`F(x | c, sigma_t) / tau`, `(B,)`."""
        return self.network(x, self.c, self.sigma) / self.temperature

    def rows(self, part: Any) -> RecoveryEnergy:
        return RecoveryEnergy(
            self.network,
            self.gaussian.rows(part),
            self.c[part],
            self.sigma[part],
            self.temperature,
        )
