r"""From mel magnitude to waveform without a vocoder: magnitudes and phases are found together.

Given `m = W |X|^p` (power p, filterbank W), alternate between signals and spectrograms that have
those mels:

    t = STFT(iSTFT(c));   y = t + 0.99 (t - t_prev)
    A = |y| (V(m / (W |y|^p)))^(1/p)     V = W^T, each bin's weights over the bands summing to 1
    c = A y / |y|

The first line is fast Griffin-Lim, the second one Richardson-Lucy step that pulls the magnitudes
towards the given mels.

References:
    A fast Griffin-Lim algorithm (Perraudin, Balazs & Sondergaard, 2013)
    Bayesian-based iterative method of image restoration (Richardson, 1972)
"""

from __future__ import annotations

__all__ = ["GriffinLim"]

import torch
from torch import Tensor, nn

from sance_audio.audio import fit_length
from sance_audio.features import LogMel
from sance_audio.samplers import Generators, randn

TINY = 1e-8
FAINT = 1e-6
"""Of noise that decides phases where nothing else does."""


class GriffinLim(nn.Module):
    """Joint mel-phase inversion with momentum.

    Arguments:
        features: The `LogMel` that the mels come from.
        n_iter: Iterations; 12 is fast, 32 good, 100 best.
        momentum: Of fast Griffin-Lim; 0 gives the plain algorithm.

    Raises:
        ValueError: no iteration; a window and hop from which no signal can be rebuilt.
    """

    def __init__(self, features: LogMel, n_iter: int = 32, momentum: float = 0.99):
        super().__init__()
        if n_iter < 1:
            raise ValueError(f"n_iter must be at least 1, found {n_iter}")
        if features.hop_length > features.n_fft // 2:
            raise ValueError(
                f"hop_length={features.hop_length} leaves gaps between windows of "
                f"n_fft={features.n_fft}: "
                f"overlap-add needs hop_length <= n_fft / 2"
            )
        self.features, self.n_iter, self.momentum = features, n_iter, momentum

    @torch.no_grad()
    def forward(
        self, mel: Tensor, length: int | None = None, generator: Generators | None = None
    ) -> Tensor:
        """Waveforms `(B, N)` whose mels are close to `mel`.

        Arguments:
            mel: Mel magnitudes `(B, M, T)`, T >= 2, finite and not negative, to the power that
                `features` uses.
            length: Samples N; `hop_length * (T - 1)` when None.
            generator: Of the first phases: one, or one per clip. Seed 0 for every clip when None.

        Raises:
            ValueError: another shape; negative or non-finite magnitudes.
        """
        f = self.features
        if mel.ndim != 3 or mel.shape[1] != f.n_mels or mel.shape[2] < 2:
            raise ValueError(f"expected mels (B, {f.n_mels}, T >= 2), found {tuple(mel.shape)}")
        if not bool(torch.isfinite(mel).all()) or bool((mel < 0).any()):
            raise ValueError("mel magnitudes must be finite and not negative")
        if generator is None:
            generator = [torch.Generator().manual_seed(0) for _ in range(len(mel))]
        pull = _Pull(f, mel)
        frames = _Frames(f, mel.shape[2])
        with torch.autocast(mel.device.type, enabled=False):
            c = pull.start(pull.noise(generator))
            previous = None
            for _ in range(self.n_iter):
                t = frames.analyse(frames.synthesise(c))
                y = t if previous is None else t + self.momentum * (t - previous)
                previous = t
                c = pull(y)
            wave = frames.synthesise(c)
        return fit_length(wave, length or f.length(mel.shape[2]), "start")

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
        if generator is None:
            generator = [torch.Generator().manual_seed(0) for _ in range(len(mel))]
        inside = torch.zeros(waveform.shape[1], dtype=torch.bool, device=waveform.device)
        inside[hole[0] : hole[1]] = True
        pull, frames = _Pull(self.features, mel), _Frames(self.features, mel.shape[2])
        hidden = hidden[:, None]
        with torch.autocast(mel.device.type, enabled=False):
            known = waveform.float().masked_fill(inside, 0.0)
            t = frames.analyse(known)
            c = torch.where(hidden, pull.start(t + FAINT * pull.noise(generator)), t)
            previous = None
            for _ in range(self.n_iter):
                t = frames.analyse(torch.where(inside, frames.synthesise(c), known))
                y = t if previous is None else t + self.momentum * (t - previous)
                previous = t
                c = torch.where(hidden, pull(y), t)
            return frames.synthesise(c)

    def extra_repr(self) -> str:
        return f"n_iter={self.n_iter}, momentum={self.momentum}"


class _Pull:
    """The step that pulls spectrograms `(B, T, F)` towards given mels `(B, M, T)`."""

    def __init__(self, features: LogMel, mel: Tensor):
        self.power = features.power
        self.m = mel.float().mT.contiguous()  # frames first: (B, T, M)
        self.bank = features.filterbank.float().mT.contiguous()  # (F, M)
        shares = self.bank / self.bank.sum(1, keepdim=True).clamp_min(TINY)
        self.spread = shares.mT.contiguous()  # (M, F)

    def noise(self, generator: Generators) -> Tensor:
        """Complex normal noise `(B, T, F)`, for phases."""
        batch, count, _ = self.m.shape
        shape = batch, count, self.bank.shape[0], 2
        return torch.view_as_complex(randn(self.m.new_empty(shape), generator))

    def start(self, phase: Tensor) -> Tensor:
        """Flat within each band, with the phases of `phase`."""
        flat = self.m / self.bank.sum(0).clamp_min(TINY)
        return (flat @ self.spread).pow(1 / self.power) * phase / phase.abs().clamp_min(TINY)

    def __call__(self, y: Tensor) -> Tensor:
        """`A y / |y|` with `A = |y| (V(m / (W |y|^p)))^(1/p)`."""
        ratio = self.m / (y.abs().pow(self.power) @ self.bank).clamp_min(TINY)
        return y * (ratio @ self.spread).pow(1 / self.power)


class _Frames:
    """STFT and its inverse with frames first, `(B, T, F)`, for signals of `hop_length * (T - 1)`
    samples.

    Where hop divides n_fft, frames are a view of the padded signal and overlap-add is n_fft / hop
    shifted additions; any other geometry takes torch's own transforms.
    """

    def __init__(self, features: LogMel, n_frames: int):
        self.f, self.length = features, features.length(n_frames)
        self.window = features.window.float()
        self.overlap, rest = divmod(features.n_fft, features.hop_length)
        self.lean = rest == 0 and features.n_fft % 2 == 0
        if self.lean:
            squared = self.window.square().expand(1, n_frames, -1)
            self.envelope = self._add(squared).clamp_min(1e-4)

    def analyse(self, waveform: Tensor) -> Tensor:
        """`(B, N)` to complex `(B, T, F)`."""
        if not self.lean:
            return self.f.stft(waveform).mT
        half = self.f.n_fft // 2
        signal = torch.nn.functional.pad(waveform.unsqueeze(1), (half, half), mode=self.f.pad_mode)
        return torch.fft.rfft(
            signal.squeeze(1).unfold(1, self.f.n_fft, self.f.hop_length) * self.window
        )

    def synthesise(self, c: Tensor) -> Tensor:
        """Complex `(B, T, F)` to `(B, N)`: the least-squares signal."""
        f = self.f
        if not self.lean:
            return torch.istft(
                c.mT, f.n_fft, f.hop_length, window=self.window, center=True, length=self.length
            )
        signal = self._add(torch.fft.irfft(c, n=f.n_fft) * self.window) / self.envelope
        return signal[:, f.n_fft // 2 :][:, : self.length]

    def _add(self, frames: Tensor) -> Tensor:
        """Overlap-add `(B, T, n_fft)` to `(B, hop_length * (T - 1) + n_fft)`."""
        batch, count, _ = frames.shape
        hop = self.f.hop_length
        pieces = frames.view(batch, count, self.overlap, hop)
        out = frames.new_zeros(batch, count + self.overlap - 1, hop)
        for shift in range(self.overlap):
            out[:, shift : shift + count] += pieces[:, :, shift]
        return out.view(batch, -1)
