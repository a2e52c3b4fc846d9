"""Recordings taken to mels and back: what an analysis loses, to be heard and in figures."""

from __future__ import annotations

__all__ = ["Resynthesis", "analysis", "resynthesise", "resynthesise_file"]

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sance_audio.audio import PEAK
from sance_audio.decoding import shown
from sance_audio.features import LogMel
from sance_audio.inversion import GriffinLim, mel_residual, spectral_convergence
from sance_audio.samplers import clip_seeds
from sance_audio.tracks import Track, read_track, write_track

WINDOW = 0.055
"""Seconds that the window of an analysis is close to: a power of two in samples."""


class Resynthesis(NamedTuple):
    """What came back of each channel, and how close it is."""

    waveform: Tensor
    """`(channels, N)`."""
    residual: Tensor
    """`(channels,)`: mean absolute log-mel error, dB."""
    convergence: Tensor
    """`(channels,)`: spectral convergence."""
    seconds: float
    """That analysis and inversion took."""


def analysis(sample_rate: int, n_mels: int = 80, n_fft: int | None = None) -> LogMel:
    """Features of recordings at a rate, in Hz: windows of about `WINDOW` where n_fft is None,
    three quarters overlapping.

    Raises:
        ValueError: as `LogMel`.
    """
    if n_fft is None:
        n_fft = 2 ** max(4, round(math.log2(WINDOW * sample_rate)))
    return LogMel(sample_rate, n_fft, max(1, n_fft // 4), n_mels)


@torch.no_grad()
def resynthesise(
    features: LogMel,
    invert: GriffinLim,
    waveform: Tensor,
    generator: torch.Generator | None = None,
) -> Resynthesis:
    """Mels of a recording `(channels, N)`, and a recording that has them.

    Raises:
        ValueError: samples that are not finite.
    """
    if not bool(torch.isfinite(waveform).all()):
        raise ValueError("the recording holds NaN or infinite samples")
    began = time.perf_counter()
    n, hop = waveform.shape[1], features.hop_length
    whole = torch.nn.functional.pad(waveform.float(), (0, max(hop - n, 0)))  # two frames at least
    mel = torch.cat([part for _, part in features.mel_blocks(whole)], 2)
    seeds = clip_seeds(generator, len(mel))
    phases = [torch.Generator().manual_seed(seed) for seed in seeds]
    again = invert(mel, whole.shape[1], phases)
    seconds = time.perf_counter() - began
    residual = mel_residual(features, mel, again)
    convergence = spectral_convergence(features, whole, again)
    return Resynthesis(again[:, :n], residual, convergence, seconds)


def resynthesise_file(
    source: Path,
    target: Path,
    *,
    n_mels: int = 80,
    n_fft: int | None = None,
    n_iter: int | None = None,
    quality: str | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Track, Resynthesis, float]:
    """Resynthesise a recording into a WAV of its own rate, channels and sample format.

    Returns:
        The track that was read, what came back, and what all channels were scaled with so as not
        to pass `PEAK`, or the recording's own peak where that is higher; mostly 1.

    Raises:
        AudioError: a file that cannot be decoded.
        ValueError: samples that are not finite; impossible settings; not a `.wav` to write.
        OSError: whatever kept the file from being written.
    """
    if target.suffix.lower() != ".wav":
        raise ValueError(f"{shown(target)}: a WAV is written; expected a name that ends in .wav")
    track = read_track(source)
    features = analysis(track.sample_rate, n_mels, n_fft)
    invert = GriffinLim(features, n_iter, quality=quality)
    waveform = (track.rows / track.full_scale).float()
    try:
        done = resynthesise(features, invert, waveform, generator)
    except ValueError as error:
        raise ValueError(f"{shown(source)}: {error}") from error
    top, own = float(done.waveform.abs().max()), float(waveform.abs().max())
    gain = min(1.0, max(PEAK, own) / max(top, 1e-30))
    write_track(target, track.replaced(done.waveform * gain, 0))
    return track, done, gain
