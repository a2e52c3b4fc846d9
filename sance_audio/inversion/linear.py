"""From linear magnitude to waveform: fast Griffin-Lim, as torchaudio's, in lean blocks.

Reference:
    A fast Griffin-Lim algorithm (Perraudin, Balazs & Sondergaard, 2013)
"""

from __future__ import annotations

__all__ = ["LinearGriffinLim", "linear_griffin_lim"]

import torch
from torch import Tensor

from sance_audio.inversion.frames import Frames, check_overlap
from sance_audio.inversion.inverter import Inverter, check_magnitudes
from sance_audio.inversion.pulls import MagnitudePull
from sance_audio.samplers import Generators

MOMENTUM = 0.99, 0.99
"""beta of the first and the last iteration."""


class LinearGriffinLim(Inverter):
    """Fast Griffin-Lim from a linear magnitude, as torchaudio's `GriffinLim`, with the same blocks
    and phases as `GriffinLim`.

    Arguments:
        n_fft: Window and transform length, in samples.
        hop_length: Samples from one frame to the next; n_fft / 4 when None.
        window: `(n_fft,)`; a periodic Hann window when None.
        power: Of the magnitudes.
        n_iter, quality, momentum, relaxation: As of `GriffinLim`.

    Raises:
        ValueError: as `GriffinLim`.
    """

    window: Tensor

    def __init__(
        self,
        n_fft: int = 1024,
        hop_length: int | None = None,
        *,
        window: Tensor | None = None,
        power: float = 1.0,
        n_iter: int | None = None,
        quality: str | None = None,
        momentum: tuple[float, float] = MOMENTUM,
        relaxation: float = 1.0,
    ):
        super().__init__(n_iter, quality, momentum, relaxation)
        window = torch.hann_window(n_fft) if window is None else window
        self.hop_length = n_fft // 4 if hop_length is None else hop_length
        if n_fft < 2 or window.shape != (n_fft,) or self.hop_length < 1 or not power > 0:
            raise ValueError(
                f"expected n_fft >= 2, a window (n_fft,), hop_length >= 1 and power > 0, found "
                f"{n_fft=}, a window {tuple(window.shape)}, hop_length={self.hop_length}, {power=}"
            )
        check_overlap(window, self.hop_length)
        self.n_fft, self.power = n_fft, power
        self.register_buffer("window", window, persistent=False)

    @torch.no_grad()
    def forward(
        self, magnitude: Tensor, length: int | None = None, generator: Generators | None = None
    ) -> Tensor:
        """Waveforms `(B, N)` whose spectrograms have the magnitudes `(B, n_fft / 2 + 1, T)`,
        T >= 2; the rest as `GriffinLim.forward`.
        """
        check_magnitudes(magnitude, self.n_fft // 2 + 1, "magnitudes")
        count = magnitude.shape[2]
        frames = Frames(self.window, self.hop_length, count, length=length)

        def pull(m: Tensor) -> MagnitudePull:
            return MagnitudePull(m, self.power, self.relaxation)

        return self.invert(frames, magnitude, pull, length, generator)


def linear_griffin_lim(
    magnitude: Tensor,
    hop_length: int | None = None,
    *,
    power: float = 1.0,
    n_iter: int | None = None,
    quality: str | None = None,
    length: int | None = None,
    generator: Generators | None = None,
) -> Tensor:
    """Functional twin of `LinearGriffinLim`, with a Hann window; n_fft follows from the
    magnitudes `(B, n_fft / 2 + 1, T)`.
    """
    invert = LinearGriffinLim(
        2 * (magnitude.shape[1] - 1), hop_length, power=power, n_iter=n_iter, quality=quality
    )
    return invert.to(magnitude.device)(magnitude, length, generator)
