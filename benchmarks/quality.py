"""How close a resynthesis is to its recording, in the measures that the field reports."""

from __future__ import annotations

__all__ = ["MEASURES", "noisy", "quality"]

import math

import numpy as np
import torch
from torch import Tensor

from sance_audio import LogMel, audio

MEASURES = {
    "PESQ": "narrow band at 8 kHz, wide band at 16 kHz (others are resampled to it)",
    "ESTOI": "extended short-time objective intelligibility",
    "log-mel": "mean absolute error of log-mels, dB, floor at -85 dB",
    "active": "the same over cells within 60 dB of the clip's loudest",
    "LSD": "log-spectral distance, dB: RMS over bins, mean over frames",
    "SC": "spectral convergence, |S' - S| / |S|",
}
FLOOR = 10 ** (-85 / 20)


def quality(f: LogMel, recording: Tensor, again: Tensor) -> dict[str, np.ndarray]:
    """Every measure of each clip `(B,)`; PESQ is NaN where it finds no utterance.

    Arguments:
        f: The analysis, of power 1.
        recording, again: `(B, N)`.
    """
    decibel = 20 / math.log(10)
    mel, mel_again = f.mel(recording), f.mel(again)
    off = decibel * (mel_again.clamp_min(FLOOR).log() - mel.clamp_min(FLOOR).log()).abs()
    active = mel > 1e-3 * mel.amax((1, 2), keepdim=True)
    s, s_again = f.stft(recording).abs(), f.stft(again).abs()
    apart = decibel * (s_again.clamp_min(FLOOR).log() - s.clamp_min(FLOOR).log())
    measures = {
        "log-mel": off.mean((1, 2)),
        "active": (off * active).sum((1, 2)) / active.sum((1, 2)),
        "LSD": apart.square().mean(1).sqrt().mean(1),
        "SC": (s_again - s).flatten(1).norm(dim=1) / s.flatten(1).norm(dim=1),
    }
    pairs = list(zip(recording, again, strict=True))
    return {
        "PESQ": np.array([_pesq(f.sample_rate, *pair) for pair in pairs]),
        "ESTOI": np.array([_estoi(f.sample_rate, *pair) for pair in pairs]),
        **{name: value.numpy() for name, value in measures.items()},
    }


def _pesq(rate: int, recording: Tensor, again: Tensor) -> float:
    from pesq import NoUtterancesError, pesq

    known = 8_000 if rate == 8_000 else 16_000
    a, b = (audio.resample(x, rate, known).numpy() for x in (recording, again))
    try:
        return float(pesq(known, a, b, "nb" if known == 8_000 else "wb"))
    except NoUtterancesError:
        return math.nan


def _estoi(rate: int, recording: Tensor, again: Tensor) -> float:
    from pystoi import stoi

    return float(stoi(recording.numpy(), again.numpy(), rate, extended=True))


def noisy(mel: Tensor, power: float, decibel: float = 3.0) -> Tensor:
    """Mels `(B, M, T)`, to that power, with Gaussian noise of so many dB, as generated ones
    have.
    """
    noise = torch.randn(mel.shape, generator=torch.Generator().manual_seed(0))
    return mel * 10 ** (power * decibel * noise / 20)
