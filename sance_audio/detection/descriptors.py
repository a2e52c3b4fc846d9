r"""What is known of a clip: four vectors of statistics, from one short-time Fourier transform.

S `(F, T)` are the magnitudes of a clip, L `(M, T)` its log-mels.

| vector | of | size |
|---|---|---|
| timbre | cepstra of L: mean, log deviation, log deviation of differences; nine descriptors of frames (centroid, width, three roll-offs, flatness, RMS, zero crossings, flux): mean and deviation; octave contrast: mean and deviation | 90 |
| rhythm | modulation spectrum of eight groups of bands, by octaves; quantiles of the envelope below its 95 % one, its shape, log T; its autocorrelation | 64 |
| bands | mean and deviation of each band | 128 |
| loud | cepstra weighted by the power of frames: mean and log deviation | 40 |

Clips come scaled to one peak, so that level is no evidence: another gain of the recording is no
fault. Dynamics within a clip are evidence.

References:
    Music type classification by spectral contrast feature (Jiang et al., 2002)
    On the relative importance of modulation frequencies for speech (Kanedera et al., 1999)
"""  # noqa: E501

from __future__ import annotations

__all__ = ["FLOOR", "VECTORS", "Descriptors", "deviation"]

import itertools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sance_audio.features import LogMel

VECTORS = ("timbre", "rhythm", "bands", "loud")
SECONDS = 0.064
"""Of the window; a power of two in samples is taken."""
N_MELS = 64
N_CEPSTRA = 20
LOWEST = 20.0
"""Hz."""
FLOOR = 1e-4
"""Of mels, before the logarithm."""
TOGETHER = 160
"""Frames that are described together."""
GROUPS = 8
"""Of bands, for the modulation spectrum."""
LONGEST = 64
"""Frames of its window."""
LAGS = (1, 2, 4, 8, 16, 32, 64)
"""Of the envelope's autocorrelation, frames."""
OCTAVES = (1, 2, 3, 5, 9, 17, 33)
"""Edges of its octaves, bins of a transform of `LONGEST`."""


class Descriptors:
    """The statistics of clips at one rate.

    Arguments:
        sample_rate: In Hz.

    Raises:
        ValueError: a rate too low for `N_MELS` bands.
    """

    def __init__(self, sample_rate: int):
        n_fft = 2 ** max(4, round(math.log2(SECONDS * sample_rate)))
        self.features = LogMel(sample_rate, n_fft, n_fft // 4, N_MELS, f_min=LOWEST, floor=FLOOR)
        self.sample_rate, self.n_fft, self.hop = sample_rate, n_fft, n_fft // 4
        self.bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1)
        self.shares = torch.tensor([0.5, 0.85, 0.95])
        i = torch.arange(N_MELS) + 0.5
        basis = torch.cos(math.pi * torch.arange(N_CEPSTRA).unsqueeze(1) * i / N_MELS)
        self.cosines = basis * math.sqrt(2 / N_MELS)
        self.cosines[0] /= math.sqrt(2)
        edges = [0, 200, 400, 800, 1600, 3200, sample_rate / 2 + 1]
        places = torch.bucketize(torch.tensor(edges, dtype=torch.float), self.bins).tolist()
        self.octaves = [slice(a, b) for a, b in itertools.pairwise(places) if b > a]

    @property
    def seconds_per_frame(self) -> float:
        return self.hop / self.sample_rate

    @property
    def hertz(self) -> np.ndarray:
        """Centres of the bands `(M,)`, Hz."""
        from librosa import mel_frequencies

        return mel_frequencies(N_MELS + 2, fmin=LOWEST, fmax=self.sample_rate / 2)[1:-1]

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> tuple[dict[str, np.ndarray], Tensor]:
        """The vectors of a clip `(N,)`, and its log-mels L `(M, T)`. Clips shorter than a window
        are followed by silence.
        """
        x = pad(clip.float(), (0, max(0, self.n_fft - len(clip))))
        spectra = self.features.stft(x.unsqueeze(0))[0]
        parts = [self._frames(part) for part in spectra.split(TOGETHER, 1)]
        mel, frames, contrast = (torch.cat(column, 1) for column in zip(*parts, strict=True))
        log_mel = mel.clamp_min(FLOOR).log()
        cepstra = self.cosines @ log_mel
        bands = torch.cat([log_mel.mean(1), deviation(log_mel)])
        vectors = {
            "timbre": torch.cat(
                [self._cepstral(cepstra), self._spectral(x, frames, contrast, log_mel)]
            ),
            "rhythm": torch.cat([_modulation(log_mel), _envelope(log_mel.mean(0))]),
            "bands": bands,
            "loud": _loud(cepstra, mel),
        }
        return {name: v.numpy() for name, v in vectors.items()}, log_mel

    @staticmethod
    def _cepstral(cepstra: Tensor) -> Tensor:
        steps = cepstra.diff(dim=1)
        spread, moving = ((deviation(c) + 1e-2).log() for c in (cepstra, steps))
        return torch.cat([cepstra.mean(1), spread, moving])

    def _frames(self, spectra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of some frames `(F, n)`, few enough to stay in a core's cache: mels `(M, n)`; centroid,
        width, three roll-offs, flatness, log RMS `(7, n)`; contrast `(octaves, n)`.
        """
        power = spectra.real.square() + spectra.imag.square()
        s = power.sqrt()
        total = s.sum(0) + 1e-6
        centroid = (self.bins @ s) / total
        square = (self.bins.square() @ s) / total
        width = (square - centroid.square()).clamp_min(1).sqrt()
        below = s.cumsum(0).mT.contiguous()
        places = torch.searchsorted(below, below[:, -1:] * self.shares)
        roll_off = self.bins[places.clamp_max(len(self.bins) - 1)].mT
        logs = (s + 1e-5).log()
        mean = (power.mean(0) + 1e-10).log()
        frames = torch.stack(
            [centroid, width, *roll_off, 2 * logs.mean(0) - mean, mean / 2],
        )
        contrast = torch.from_numpy(_contrast(logs.mT.contiguous().numpy(), self.octaves))
        return self.features.filterbank @ s, frames, contrast.mT

    def _spectral(self, x: Tensor, frames: Tensor, contrast: Tensor, log_mel: Tensor) -> Tensor:
        """Descriptors of frames, and contrast by octaves: means and deviations over time."""
        rising = log_mel.diff(dim=1).clamp_min(0).mean(0)
        hand = [
            torch.cat([(frames[:5] + 50).log(), frames[5:]]),
            (self._crossings(x) + 1e-3).log().unsqueeze(0),
            (rising + 1e-2).log().unsqueeze(0),
        ]
        each = (torch.stack([h.mean(1), deviation(h, 0)], 1).flatten() for h in hand)
        return torch.cat([*each, contrast.mean(1), deviation(contrast)])

    def _crossings(self, x: Tensor) -> Tensor:
        """Share of neighbours of opposite sign, frame by frame; frames that lie within x."""
        crossed = pad((x[1:] * x[:-1] < 0).double().cumsum(0), (1, 0))
        whole = torch.arange(0, len(x) - self.n_fft + 1, self.hop)
        return ((crossed[whole + self.n_fft - 1] - crossed[whole]) / (self.n_fft - 1)).float()


def deviation(x: Tensor, correction: int = 1) -> Tensor:
    """Standard deviation of rows `(R, T)`: plain sums, several times faster than torch's `std`."""
    around = x - x.mean(1, keepdim=True)
    return (around.square().sum(1) / (x.shape[1] - correction)).sqrt()


def _contrast(logs: np.ndarray, octaves: list[slice]) -> np.ndarray:
    """Mean of the highest tenth less mean of the lowest, of each octave: `(T, octaves)`."""
    out = np.empty((len(logs), len(octaves)), np.float32)
    for i, octave in enumerate(octaves):
        part = logs[:, octave]
        k = max(1, int(0.1 * part.shape[1]) + 1)
        k = min(k, part.shape[1])
        ordered = np.sort(part, axis=1)  # vectorised, where a partition in three is not
        out[:, i] = ordered[:, -k:].mean(1) - ordered[:, :k].mean(1)
    return out


def _modulation(log_mel: Tensor) -> Tensor:
    """Log power of the modulations of groups of bands, by octaves `(GROUPS * octaves,)`."""
    groups = log_mel.view(GROUPS, -1, log_mel.shape[1]).mean(1)
    n = min(LONGEST, log_mel.shape[1])
    parts = groups.unfold(1, n, max(1, n // 2))
    parts = (parts - parts.mean(2, keepdim=True)) * torch.hann_window(n)
    power = torch.fft.rfft(parts, n=LONGEST).abs().square().mean(1) / n
    octaves = [power[:, a:b].mean(1) for a, b in itertools.pairwise(OCTAVES)]
    return (torch.stack(octaves) + 1e-3).log().flatten()


def _envelope(envelope: Tensor) -> Tensor:
    """Quantiles, shape and autocorrelation of the mean log-mel of each frame `(T,)`."""
    count = len(envelope)
    around = envelope - envelope.mean()
    n = 1 << (2 * count - 1).bit_length()
    correlation = torch.fft.irfft(torch.fft.rfft(around, n).abs().square(), n)[:count]
    correlation = pad(correlation / (correlation[0] + 1e-3), (0, max(LAGS)))
    q = torch.quantile(envelope, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    steepest = envelope.diff().clamp_min(0).amax()
    loud = (envelope > q[4] - 1.5).float().mean()
    shape = torch.stack([around.std(), loud, steepest, torch.tensor(math.log(count))])
    return torch.cat([q - q[4], shape, correlation[list(LAGS)]])


def _loud(cepstra: Tensor, mel: Tensor) -> Tensor:
    weight = mel.square().sum(0) + 1e-12
    weight = weight / weight.sum()
    mean = cepstra @ weight
    spread = (cepstra - mean.unsqueeze(1)).square() @ weight
    return torch.cat([mean, (spread + 1e-2).log()])
