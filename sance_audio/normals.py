r"""A model of normal sounds alone, trained in seconds, for where none is at hand.

One Gaussian reference, regularised, and a small network trained by self-adapting
noise-contrastive estimation. Of n windows in D dimensions the sample covariance is far from the
true one: along its own leading directions it has too much variance, everywhere else too little.
So only the leading directions U, r = n / 8 of them or fewer, are taken from all windows; the
variance along and beside them is measured on windows that U did not see, fold by fold:

    lambda_i = mean (u_i . (x - mu))^2,    s = mean |(x - mu) - U U^T (x - mu)|^2 / (D - r)

with U and mu of the other folds, plus sigma^2 for the dequantisation (cross-validation based
nonlinear shrinkage; Bartz, 2016).
"""

from __future__ import annotations

__all__ = ["train_on_normals"]

import io
import math
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sance_audio import audio
from sance_audio.config import TrainConfig
from sance_audio.energy import ReferencedEnergy
from sance_audio.features import LogMel
from sance_audio.model import AudioEBM
from sance_audio.networks import SIZES, ResidualEnergy
from sance_audio.reference import GaussianReference
from sance_audio.streams import SILENCE_DBFS
from sance_audio.training import train

PEAK = 0.5
"""Peak that clips are scaled to, so that level is no evidence."""
SIGMA, FLOOR, FOLDS = 0.2, 0.01, 4
"""Of the reference: deviation of the dequantisation noise, least variance beside it, folds."""
MELS, FRAMES = (64, 48, 32, 24, 16), 64
"""Bands, as many as fit, and frames of a window at most: a second, 16 ms apart."""
WINDOWS = 2048
"""Windows that are trained on, about, spread over all clips."""


@dataclass(frozen=True)
class Preset:
    """How large a network is trained, and how long; rank of the reference and batch at most."""

    network: dict[str, Any]
    rank: int
    batch: int
    steps: int
    langevin_steps: int


PRESETS = {
    "smoke": Preset({"channels": (8, 8), "depth": (1,)}, 4, 8, 4, 2),
    "cpu": Preset(SIZES["smoke"], 32, 16, 300, 8),
    "gpu": Preset(SIZES["cpu"], 32, 64, 2000, 12),
}


def train_on_normals(
    clips: Sequence[Tensor],
    sample_rate: int,
    *,
    preset: str = "cpu",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> AudioEBM:
    """An unlabelled model of the given sounds; the same from the same seed.

    Windows are of a second, or of the median clip where that is shorter; silent ones are passed
    over. Nothing is printed, and nothing is left on the disk.

    Arguments:
        clips: Waveforms `(N,)`, N >= 1 of each its own; two windows at least in all.
        sample_rate: Of all of them, in Hz, 500 to 16000.
        preset: smoke (a second, to see that all works), cpu (half a minute) or gpu.
        seed: Of everything random.
        device: Where it is trained, and left.

    Raises:
        ValueError: an unknown preset, another rate, a clip that is no waveform; clips that are
            silent, all the same, or too few.
        Diverged: as `training.train`.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: there are {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    model, x = _untrained([_checked(c, i) for i, c in enumerate(clips)], sample_rate, chosen, seed)
    config = TrainConfig(
        steps=chosen.steps,
        per_component=min(chosen.batch, len(x)),
        langevin_steps=chosen.langevin_steps,
        sample_every=0,
    )
    components = torch.zeros(len(x), dtype=torch.long)
    with tempfile.TemporaryDirectory() as run, redirect_stdout(io.StringIO()):
        train(model.to(device), x, components, config, run, seed=seed, progress=False)
    return model.eval()


def _checked(clip: Tensor, i: int) -> Tensor:
    """A clip as a waveform `(N,)` on the CPU, or ValueError."""
    wave = torch.as_tensor(clip, dtype=torch.float32).cpu()
    shape, bad = tuple(wave.shape), int((~wave.isfinite()).sum())
    if wave.ndim != 1 or len(wave) == 0 or bad:
        raise ValueError(
            f"clip {i}: expected a waveform (N,) of finite samples, N >= 1, found shape {shape}, "
            f"{bad} samples NaN or infinite: leave it out, or mend it"
        )
    return wave


def _untrained(
    waves: Sequence[Tensor], sample_rate: int, chosen: Preset, seed: int
) -> tuple[AudioEBM, Tensor]:
    """A model that is its reference, and the log-mels `(n, 1, M, T)` that it was fitted to."""
    features, frames = _features(sample_rate, waves)
    log_mels = _log_mels(waves, features, frames)
    x = features.fit(log_mels).standardise(log_mels)
    reference = _reference(x.flatten(1), chosen.rank)
    with torch.random.fork_rng(devices=[]):  # the user's generator is left as it was
        positions = ResidualEnergy(1, **chosen.network).map(x[:1]).numel()
        torch.manual_seed(seed)
        network = ResidualEnergy(1, **chosen.network, positions=positions)
    energy = ReferencedEnergy(reference, network)
    return AudioEBM(features, energy, frames=frames, sigma=SIGMA, peak=PEAK), x


def _features(sample_rate: int, waves: Sequence[Tensor]) -> tuple[LogMel, int]:
    """Features of 64 ms every 16 ms, as many bands as fit; and the frames of a window."""
    if not 500 <= sample_rate <= 16000:
        raise ValueError(
            f"sample_rate={sample_rate}: expected 500 to 16000 Hz; resample the clips"
        )
    hop = 2 ** round(math.log2(0.064 * sample_rate)) // 4
    lengths = sorted(map(len, waves)) or [0]
    wanted = min(lengths[len(lengths) // 2], sample_rate)
    frames = min(FRAMES, 16 * math.ceil((1 + math.ceil(wanted / hop)) / 16))
    for n_mels in MELS:
        with suppress(ValueError):  # bands without a frequency bin
            return LogMel(sample_rate, 4 * hop, hop, n_mels, min(20.0, sample_rate / 100)), frames
    raise AssertionError(f"no mel bands fit at {sample_rate} Hz")


def _log_mels(waves: Sequence[Tensor], features: LogMel, frames: int) -> Tensor:
    """Log-mels `(n, M, T)` of the windows that are not silent, at most about `WINDOWS`."""
    most = max(1, WINDOWS // max(1, len(waves)))
    found = [torch.zeros(0, features.n_mels, frames)]
    for wave in waves[:: max(1, len(waves) // WINDOWS)]:
        windows = audio.windows(wave, features.length(frames), PEAK)
        loud = windows[windows.square().mean(1) > 10 ** (SILENCE_DBFS / 10)]
        if len(loud):
            found.append(features.log_mel(loud[:: -(-len(loud) // most)]))
    log_mels = torch.cat(found)
    if len(log_mels) < 2:
        raise ValueError(
            f"{len(waves)} clips hold {len(log_mels)} windows that are not silent, expected 2 at "
            f"least: give more normal clips, or longer ones, with sound in them"
        )
    same = all(torch.equal(wave, waves[0]) for wave in waves)
    if same and (len(waves) > 1 or bool((log_mels == log_mels[0]).all())):
        raise ValueError(
            f"the {len(waves)} normal clips are all the same, which leaves nothing to learn from: "
            f"expected different recordings; is one file given several times?"
        )
    return log_mels


def _reference(x: Tensor, most: int) -> GaussianReference:
    """The regularised Gaussian of rows `(n, D)`."""
    n, dimensions = x.shape
    r = min(most, max(1, n // 8))
    fold = torch.arange(n) * FOLDS // n  # windows of one clip follow each other
    along, beside = x.new_zeros(r), x.new_zeros(())
    for k in fold.unique():
        seen, held_out = x[fold != k], x[fold == k]
        u = held_out - seen.mean(0)
        a = (u @ _directions(seen, r)).square().sum(0)
        along, beside = along + a, beside + u.square().sum() - a.sum()
    remainder = (beside / (n * (dimensions - r))).clamp_min(FLOOR) + SIGMA**2
    eigenvalues = (along / n + SIGMA**2).maximum(remainder)
    parts = x.mean(0), _directions(x, r), eigenvalues, remainder
    return GaussianReference(*(part.unsqueeze(0) for part in parts))


def _directions(x: Tensor, r: int) -> Tensor:
    """The r leading principal directions of rows `(n, D)`, `(D, r)`, orthonormal even where the
    rows do not vary that much.
    """
    u = (x - x.mean(0)).double()
    _, vectors = torch.linalg.eigh(u @ u.T)
    return torch.linalg.qr(u.T @ vectors.flip(1)[:, :r])[0].float()
