"""What a user would pick instead of `EnergyDetector`, as objects with the same two functions.

    fit(clips) -> self         clips: pairs (waveform (N,), rate in Hz), normal ones
    score(clips) -> (B,)       higher is odder

Features of a clip can be remembered (`Features.remembered`), so that folds that share clips do not
compute them again; whatever is timed must not be.

References:
    PyOD 3.6: EmbeddingOD.for_audio (74 features of librosa at 22.05 kHz), AudioAE
    Description and discussion on DCASE 2020 challenge task 2 (Koizumi et al., 2020): the baseline
"""

from __future__ import annotations

__all__ = ["Clip", "Features", "Method", "PEERS", "SEEDED"]

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sance_audio import audio
from sance_audio.features import LogMel

Array = np.ndarray
Clip = tuple[Array, int]
"""Waveform `(N,)` and its rate in Hz."""
Describe = Callable[[Clip], Array]
RATE = 16000
CONTEXT, MELS = 5, 128
"""Frames and mel bands of a vector of the baseline of DCASE 2020."""
EPOCHS, BATCH = 100, 512
"""As in the challenge."""


class Method(Protocol):
    """A detector of odd clips."""

    def fit(self, clips: Sequence[Clip]) -> Method: ...

    def score(self, clips: Sequence[Clip]) -> Array: ...


def acoustic(clip: Clip) -> Array:
    """PyOD's 74 features `(74,)`, by PyOD's own code."""
    from pyod.utils.encoders.audio import AudioFeatureEncoder

    return AudioFeatureEncoder().encode([clip], show_progress=False)[0]


def mel_statistics(clip: Clip) -> Array:
    """Mean and standard deviation over time of each of 64 log-mel bands at 16 kHz, `(128,)`."""
    features = LogMel(RATE, n_fft=1024, hop_length=512, n_mels=64)
    x = features.log_mel(torch.as_tensor(_at(clip, RATE)).unsqueeze(0))[0]
    return torch.cat([x.mean(1), x.std(1, correction=0)]).numpy()


def stacked_frames(clip: Clip) -> Array:
    """Five frames of 128 log-mel powers in dB on end, at each frame, `(F - 4, 640)` float32.

    Of 64 ms, every 32 ms, at 16 kHz; at the clip's own rate where that is lower: resampled, it
    would have bands that hold rounding errors alone, and they would outweigh the sound.
    """
    import librosa

    rate = min(clip[1], RATE)
    n = 1024 * rate // RATE
    power = librosa.feature.melspectrogram(
        y=_at(clip, rate), sr=rate, n_fft=n, hop_length=n // 2, n_mels=MELS, power=2.0
    )
    frames = 10 * np.log10(power.T + np.finfo(np.float64).eps)
    if len(frames) < CONTEXT:
        frames = np.pad(frames, ((0, CONTEXT - len(frames)), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(frames, CONTEXT, 0)
    return windows.swapaxes(1, 2).reshape(len(windows), -1).astype(np.float32)


def _at(clip: Clip, rate: int) -> Array:
    return audio.resample(torch.as_tensor(clip[0]), clip[1], rate).numpy()


@dataclass(frozen=True)
class Features:
    """How clips are described."""

    acoustic: Describe = acoustic
    mel_statistics: Describe = mel_statistics
    stacked_frames: Describe = stacked_frames

    @classmethod
    def remembered(cls) -> Features:
        """The same, each clip's kept from the first time on, known by its samples."""
        return cls(*map(_remember, (acoustic, mel_statistics, stacked_frames)))


def _remember(describe: Describe) -> Describe:
    known: dict[str, Array] = {}

    def look(clip: Clip) -> Array:
        wave, rate = clip
        key = hashlib.blake2b(np.ascontiguousarray(wave).tobytes(), digest_size=16).hexdigest()
        key = f"{key}/{rate}"
        if key not in known:
            known[key] = describe(clip)
        return known[key]

    return look


class Described:
    """One vector a clip, standardised on the normals as PyOD does, and a detector of vectors.

    Arguments:
        describe: Gives the vector.
        make: Makes the detector, an object with `fit` and `decision_function` (higher is odder).
    """

    def __init__(self, describe: Describe, make: Callable[[], Any]):
        self.describe, self.detector = describe, make()

    def fit(self, clips: Sequence[Clip]) -> Described:
        from sklearn.preprocessing import StandardScaler

        x = self._vectors(clips)
        self.scaler = StandardScaler().fit(x)
        self.detector.fit(self.scaler.transform(x).astype(np.float32))
        return self

    def score(self, clips: Sequence[Clip]) -> Array:
        x = self.scaler.transform(self._vectors(clips)).astype(np.float32)
        return np.asarray(self.detector.decision_function(x), float)

    def _vectors(self, clips: Sequence[Clip]) -> Array:
        return np.nan_to_num(np.stack([self.describe(clip) for clip in clips]).astype(float))


class Mahalanobis:
    """Squared Mahalanobis distance under the Ledoit-Wolf covariance."""

    def fit(self, x: Array) -> Mahalanobis:
        from sklearn.covariance import LedoitWolf

        self.estimate = LedoitWolf().fit(x)
        return self

    def decision_function(self, x: Array) -> Array:
        return self.estimate.mahalanobis(x)


class Neighbours:
    """Mean distance to the five nearest."""

    def fit(self, x: Array) -> Neighbours:
        from sklearn.neighbors import NearestNeighbors

        self.index = NearestNeighbors(n_neighbors=min(5, len(x))).fit(x)
        return self

    def decision_function(self, x: Array) -> Array:
        return self.index.kneighbors(x)[0].mean(1)


class PyodAutoencoder:
    """PyOD's AudioAE as it comes: 40 epochs, 5 frames of 64 log-mels at 22.05 kHz."""

    def __init__(self, seed: int = 0):
        from pyod.models.audio_ae import AudioAE

        self.detector = AudioAE(random_state=seed, device="cpu")

    def fit(self, clips: Sequence[Clip]) -> PyodAutoencoder:
        self.detector.fit(list(clips))
        return self

    def score(self, clips: Sequence[Clip]) -> Array:
        return self.detector.decision_function(list(clips))


class Dcase2020:
    """The baseline autoencoder of DCASE 2020, task 2: mean squared error over a clip's vectors.

    Arguments:
        describe: Gives a clip's vectors `(F, 640)`.
        seed: Of weights and batches.
    """

    def __init__(self, describe: Describe = stacked_frames, seed: int = 0):
        self.describe, self.seed = describe, seed

    def fit(self, clips: Sequence[Clip]) -> Dcase2020:
        x = torch.from_numpy(np.concatenate([self.describe(clip) for clip in clips]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = _autoencoder(x.shape[1])
            optimiser = torch.optim.Adam(self.network.parameters(), 1e-3)
            for _ in range(EPOCHS):
                for rows in torch.randperm(len(x)).split(BATCH):
                    if len(rows) > 1:  # of one vector there is no batch statistic
                        loss = (self.network(x[rows]) - x[rows]).square().mean()
                        optimiser.zero_grad()
                        loss.backward()
                        optimiser.step()
        self.network.eval()
        return self

    @torch.no_grad()
    def score(self, clips: Sequence[Clip]) -> Array:
        def error(x: Tensor) -> float:
            return float((self.network(x) - x).square().mean())

        return np.array([error(torch.from_numpy(self.describe(clip))) for clip in clips])


def _autoencoder(width: int) -> nn.Sequential:
    """640-128-128-128-128-8-128-128-128-128-640 with Keras's defaults for what is not said."""
    layers: list[nn.Module] = []
    sizes = [width, *4 * [128], 8, *4 * [128]]
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out, eps=1e-3, momentum=0.01)]
        layers += [nn.ReLU()]
    layers.append(nn.Linear(sizes[-1], width))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def _knn() -> Any:
    from pyod.models.knn import KNN

    return KNN()


def _forest(seed: int) -> Any:
    from pyod.models.iforest import IForest

    return IForest(random_state=seed)


PEERS: dict[str, Callable[[Features, int], Method]] = {
    "74 features + kNN (PyOD)": lambda f, seed: Described(f.acoustic, _knn),
    "74 features + Ledoit-Wolf": lambda f, seed: Described(f.acoustic, Mahalanobis),
    "log-mel statistics + kNN": lambda f, seed: Described(f.mel_statistics, Neighbours),
    "74 features + IForest (PyOD)": lambda f, seed: Described(f.acoustic, lambda: _forest(seed)),
    "AudioAE (PyOD)": lambda f, seed: PyodAutoencoder(seed),
    "autoencoder of DCASE 2020": lambda f, seed: Dcase2020(f.stacked_frames, seed),
}
"""By name: made of features and a seed."""
SEEDED = ("74 features + IForest (PyOD)", "AudioAE (PyOD)", "autoencoder of DCASE 2020")
"""Those whose scores depend on the seed."""
