r"""Gains that pull spectra Z towards given magnitudes, in one step.

    mels m = W |Z|^p:           g = V((m / (W |Z|^p))^r)^(1/p)
    magnitudes m = |Z|^p:       g = (m^(1/p) / |Z|)^r

W is the filterbank, V = W^T with each bin's weights over the bands summing to 1, and r the
relaxation: r = 1 is one Richardson-Lucy step, and for magnitudes the exact projection.

Bands are narrow, so W and V are multiplied by parts of the frequency axis, each with the bands
that it has a share in: for 64 bands and 257 bins a quarter of the work.

Reference:
    Bayesian-based iterative method of image restoration (Richardson, 1972)
"""

from __future__ import annotations

__all__ = ["Bands", "MelPull", "MagnitudePull"]

import torch
from torch import Tensor

PARTS = 4
TINY = 1e-8
"""Of magnitudes whose largest is 1."""


class Bands:
    """W and V by parts of the frequency axis.

    Arguments:
        filterbank: W `(M, F)`.
    """

    def __init__(self, filterbank: Tensor):
        bank = filterbank.float().mT
        self.n_bins, self.n_mels = bank.shape
        self.heights = bank.sum(0).clamp_min(TINY)
        shares = bank / bank.sum(1, keepdim=True).clamp_min(TINY)
        edges = [round(k * self.n_bins / PARTS) for k in range(PARTS + 1)]
        self.parts: list[tuple[slice, slice, Tensor, Tensor]] = []
        for bins in map(slice, edges[:-1], edges[1:]):
            heard = (bank[bins] > 0).any(0).nonzero().flatten().tolist()
            if heard:
                bands = slice(heard[0], heard[-1] + 1)
                spread = shares[bins, bands].mT.contiguous()
                self.parts.append((bins, bands, bank[bins, bands].contiguous(), spread))

    def gather(self, magnitude: Tensor) -> Tensor:
        """W: `(B, n, F)` to `(B, n, M)`."""
        rows = magnitude.reshape(-1, self.n_bins)
        out = rows.new_zeros(len(rows), self.n_mels)
        for bins, bands, bank, _ in self.parts:
            out[:, bands].addmm_(rows[:, bins], bank)
        return out.view(*magnitude.shape[:2], self.n_mels)

    def spread(self, mel: Tensor) -> Tensor:
        """V: `(B, n, M)` to `(B, n, F)`."""
        rows = mel.reshape(-1, self.n_mels)
        out = rows.new_zeros(len(rows), self.n_bins)
        for bins, bands, _, spread in self.parts:
            torch.mm(rows[:, bands], spread, out=out[:, bins])
        return out.view(*mel.shape[:2], self.n_bins)


class Given:
    """Magnitudes `(B, ., T)` to the power `power`, read in frames and scaled to a largest of 1
    (silence stays silence).
    """

    def __init__(self, given: Tensor, power: float):
        top = given.amax((1, 2), keepdim=True).float()
        top = torch.where(top > 0, top, 1.0)
        self.rows, self.scale, self.level = given.mT, 1 / top, root(top, power).squeeze(2)

    def __call__(self, first: int, n: int) -> Tensor:
        """`(B, n, .)`, float32."""
        return self.rows[:, first : first + n].float() * self.scale


class MelPull:
    """Towards mels `(B, M, T)` that `bands` gathers from |Z|^power, up to the factor `level`."""

    def __init__(self, bands: Bands, mel: Tensor, power: float, relaxation: float):
        self.bands, self.given = bands, Given(mel, power)
        self.power, self.relaxation, self.level = power, relaxation, self.given.level

    def start(self, spectra: Tensor, first: int) -> Tensor:
        """The gain to magnitudes that are flat within each band."""
        mel = self.given(first, spectra.shape[1])
        flat = self.bands.spread(mel / self.bands.heights)
        return root(flat, self.power) / magnitude(spectra).clamp_min_(TINY)

    def __call__(self, spectra: Tensor, first: int) -> Tensor:
        found = self.bands.gather(magnitude(spectra, self.power)).clamp_min_(TINY)
        ratio = self.given(first, spectra.shape[1]).div_(found)
        return root(self.bands.spread(ratio.pow_(self.relaxation)), self.power)


class MagnitudePull:
    """Towards magnitudes `(B, F, T)` to the power `power`, up to the factor `level`."""

    def __init__(self, given: Tensor, power: float, relaxation: float):
        self.given, self.power, self.relaxation = Given(given, power), power, relaxation
        self.level = self.given.level

    def start(self, spectra: Tensor, first: int) -> Tensor:
        """The gain to the magnitudes themselves."""
        given = root(self.given(first, spectra.shape[1]), self.power)
        return given / magnitude(spectra).clamp_min_(TINY)

    def __call__(self, spectra: Tensor, first: int) -> Tensor:
        gain = self.start(spectra, first)
        return gain if self.relaxation == 1 else gain.pow_(self.relaxation)


def magnitude(spectra: Tensor, power: float = 1.0) -> Tensor:
    """|Z|^power of complex Z: squares of parts are several times faster than torch's `abs`."""
    squared = spectra.real.square() + spectra.imag.square()
    if power == 2:
        return squared
    return squared.sqrt_() if power == 1 else squared.pow_(power / 2)


def root(x: Tensor, power: float) -> Tensor:
    """x^(1 / power), x >= 0."""
    if power == 1:
        return x
    return x.sqrt() if power == 2 else x.pow(1 / power)
