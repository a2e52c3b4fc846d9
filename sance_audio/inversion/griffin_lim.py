r"""From mel magnitude to waveform without a vocoder: magnitudes and phases are found together.

Given `m = W |X|^p` (power p, filterbank W), repeat for k = 1 .. n

    z = x + beta_k (x - x_before)           momentum, in the time domain (the STFT is linear)
    Z = STFT(z)
    g = (V(m / (W |Z|^p)))^(r / p)          V = W^T, each bin's weights over the bands summing to 1
    x = iSTFT(g Z)

The momentum is that of fast Griffin-Lim; the gain is one Richardson-Lucy step that pulls
magnitudes towards the given mels, over-relaxed by r. beta falls from 1 to 0.8, which lets the last
iterations settle (docs/decisions.md). Beyond r = (2 + 2 beta) / (1 + 2 beta), 4/3 at beta = 1, the
iteration diverges. The first Z is that of white noise, its magnitudes spread flat in each band.

Every iterate is a signal, and one that begins can follow closely behind the one before it: long
recordings go through all iterations block by block, in memory that does not grow with them, to
the same end (`inversion.frames`).

References:
    A fast Griffin-Lim algorithm (Perraudin, Balazs & Sondergaard, 2013)
    Bayesian-based iterative method of image restoration (Richardson, 1972)
"""

from __future__ import annotations

__all__ = ["GriffinLim", "Inversion", "griffin_lim", "mel_residual", "spectral_convergence"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sance_audio.features import LogMel
from sance_audio.inversion.frames import Frames, Gain, Iteration, check_overlap
from sance_audio.inversion.inverter import Inverter, check_magnitudes, generators_of
from sance_audio.inversion.pulls import Bands, MelPull
from sance_audio.samplers import Generators, randn

MOMENTUM = 1.0, 0.8
"""beta of the first and the last iteration."""
RELAXATION = 1.25
"""r."""
FAINT = 1e-6
"""Of noise that decides phases where nothing else does."""


class Inversion(NamedTuple):
    """A waveform, and how far its mels are from those given."""

    waveform: Tensor
    """`(B, N)`."""
    residual: Tensor
    """`(B,)`: mean absolute log-mel error in dB (`mel_residual`)."""


class GriffinLim(Inverter):
    """Joint mel-phase inversion with momentum.

    A clip's waveform depends on its own mels and generator only, to the bit on a CPU, and is in
    proportion to them.

    Arguments:
        features: The `LogMel` that the mels come from.
        n_iter: Iterations; 32 when neither this nor `quality` is given.
        quality: "fast", "default" or "best": 12, 32, 100 iterations.
        momentum: beta of the first and of the last iteration; (0, 0) gives the plain algorithm.
        relaxation: r.

    Raises:
        ValueError: no iteration; an unknown quality; a window and hop from which no signal can be
            rebuilt.
    """

    def __init__(
        self,
        features: LogMel,
        n_iter: int | None = None,
        *,
        quality: str | None = None,
        momentum: tuple[float, float] = MOMENTUM,
        relaxation: float = RELAXATION,
    ):
        super().__init__(n_iter, quality, momentum, relaxation)
        check_overlap(features.window, features.hop_length)
        self.features = features

    @torch.no_grad()
    def forward(
        self, mel: Tensor, length: int | None = None, generator: Generators | None = None
    ) -> Tensor:
        """Waveforms `(B, N)` whose mels are close to `mel`.

        Arguments:
            mel: Mel magnitudes `(B, M, T)`, T >= 2, finite and not negative, to the power that
                `features` uses.
            length: Samples N, `hop_length * (T - 1)` when None. A waveform of up to
                `hop_length - 1` more has as many frames; whatever is longer ends in silence.
            generator: Of the first phases: one, or one per clip. Seed 0 for every clip when None.

        Raises:
            ValueError: another shape; negative or non-finite magnitudes.
        """
        f = self.features
        check_magnitudes(mel, f.n_mels, "mels")
        frames, bands = self.frames(mel.shape[2], length), Bands(f.filterbank)

        def pull(m: Tensor) -> MelPull:
            return MelPull(bands, m, f.power, self.relaxation)

        return self.invert(frames, mel, pull, length, generator)

    def frames(self, count: int, length: int | None = None) -> Frames:
        """T frames of the geometry of the features, for that many samples."""
        f = self.features
        return Frames(f.window, f.hop_length, count, f.pad_mode, length)

    @torch.no_grad()
    def with_residual(
        self, mel: Tensor, length: int | None = None, generator: Generators | None = None
    ) -> Inversion:
        """As a call, and what is left of the mels."""
        wave = self(mel, length, generator)
        return Inversion(wave, mel_residual(self.features, mel, wave))

    @torch.no_grad()
    def fill(
        self,
        mel: Tensor,
        waveform: Tensor,
        hole: tuple[int, int],
        hidden: Tensor,
        generator: Generators | None = None,
    ) -> Tensor:
        """The same for a hole: waveforms `(B, N)` that have the given mels in the hidden frames
        and, between iterations, the given samples outside of the hole.

        In every iteration the known samples are put back and the known frames are theirs; phases
        begin as those of what is known of a frame, so that they join at the edges. The result is
        what the last spectrogram gives: it is close to the known samples, not equal to them.

        Arguments:
            mel: `(B, M, T)`; the frames that are not hidden do not matter.
            waveform: `(B, N)`, N = `hop_length * (T - 1)`.
            hole: First sample, and the sample after the last; what stands there does not matter.
            hidden: `(T,)`, boolean: frames that see the hole.
            generator: As of a call.
        """
        f, frames = self.features, self.frames(mel.shape[2])
        inside = torch.zeros(waveform.shape[1], dtype=torch.bool, device=waveform.device)
        inside[hole[0] : hole[1]] = True
        with torch.autocast(mel.device.type, enabled=False):
            mel = torch.where(hidden, mel, 0.0)
            pull = MelPull(Bands(f.filterbank), mel, f.power, self.relaxation)
            known = (waveform.float() / pull.level).masked_fill(inside, 0.0)

            def masked(gain: Gain) -> Gain:
                return lambda Z, t: torch.where(hidden[:, None], gain(Z, t), 1.0)

            def step(x: Tensor, before: Tensor, gain: Gain, beta: float) -> Tensor:
                x, _ = Iteration(frames, masked(gain), beta).push(
                    frames.hops_of(x), frames.hops_of(before), True
                )
                return frames.signal_of(x)

            noise = randn(known, generators_of(generator, len(mel)))
            noisy = known + FAINT * noise
            wave = step(noisy, noisy, pull.start, 0.0)
            before = x = torch.where(inside, wave, known)
            for beta in self.betas():
                wave = step(x, before, pull, beta)
                before, x = x, torch.where(inside, wave, known)
            return wave * pull.level


def griffin_lim(
    mel: Tensor,
    features: LogMel,
    n_iter: int | None = None,
    *,
    quality: str | None = None,
    length: int | None = None,
    generator: Generators | None = None,
) -> Tensor:
    """Functional twin of `GriffinLim`."""
    return GriffinLim(features, n_iter, quality=quality)(mel, length, generator)


@torch.no_grad()
def mel_residual(features: LogMel, mel: Tensor, waveform: Tensor) -> Tensor:
    """Mean absolute error of log-mel magnitudes `(B,)`, in dB, over cells within 60 dB of each
    clip's loudest; 0 for silence. Frames that the waveform does not reach do not count.

    Arguments:
        mel: `(B, M, T)`.
        waveform: `(B, N)`.
    """
    f = features
    scale = 20 / (math.log(10) * f.power)
    level = mel.amax((1, 2), keepdim=True).clamp_min(1e-30)
    faint = 1e-3**f.power * level
    total, cells = mel.new_zeros(2, len(mel), dtype=torch.double)
    for part, again in f.mel_blocks(waveform):
        given = mel[:, :, part].float()
        again = again[:, :, : given.shape[2]].clamp_min(1e-4 * faint)
        heard = given > faint
        error = (again.log() - given.clamp_min(1e-4 * faint).log()).abs()
        total += (error * heard).sum((1, 2)).double()
        cells += heard.sum((1, 2))
    return (scale * total / cells.clamp_min(1)).to(mel.dtype)


@torch.no_grad()
def spectral_convergence(features: LogMel, waveform: Tensor, again: Tensor) -> Tensor:
    """`|S' - S| / |S|` of linear magnitudes `(B,)`, over whole clips; 0 where both are silent.

    Arguments:
        waveform, again: `(B, N)`, as recorded (S) and as resynthesised (S').

    Raises:
        ValueError: different shapes.
    """
    if waveform.shape != again.shape:
        found = f"{tuple(waveform.shape)} and {tuple(again.shape)}"
        raise ValueError(f"expected two waveforms of one shape, found {found}")
    total = waveform.new_zeros(2, len(waveform), dtype=torch.double)
    pairs = zip(features.parts(waveform), features.parts(again), strict=True)
    for (part, whole, _), (part_again, _, _) in pairs:
        s, s_again = (features.stft(p)[:, :, whole].abs() for p in (part, part_again))
        total += torch.stack([(s_again - s).square().sum((1, 2)), s.square().sum((1, 2))])
    return (total[0] / total[1].clamp_min(1e-30)).sqrt().to(waveform.dtype)
