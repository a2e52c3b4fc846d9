r"""Anomaly detection by energy: how atypical are a clip's energies?

Low energy is not the same as normal: normal clips sit at a *typical* energy, and a simpler sound
can have a lower one. So a clip is described by a vector of energy statistics s(x) (`statistics`),
and scored by the Mahalanobis distance of s(x) from those of normal clips (Ledoit-Wolf covariance).
Scores of normals that touched no fit calibrate it:

    p(x) = (1 + number of calibration scores >= score(x)) / (n + 1)

which for a normal clip falls below alpha with probability at most alpha (split conformal
prediction).

References:
    Density of states estimation for out-of-distribution detection (Morningstar et al., 2021)
    Detecting out-of-distribution inputs to deep generative models using typicality
        (Nalisnick et al., 2019)
    Testing for outliers with conformal p-values (Bates et al., 2023)
"""

from __future__ import annotations

__all__ = ["EnergyDetector", "Clips", "statistics"]

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from torch import Tensor

from sance_audio import audio
from sance_audio.chunks import chunk_size, chunked, cores
from sance_audio.model import AudioEBM
from sance_audio.streams import PART, batches, listen, parts_of
from sance_audio.weights import WeightsError, digest, load_weights, locate, save_weights

WEIGHTS = "detector.safetensors"
BANDS = 8
"""Groups of mel bands, and of frames, whose residual energies are told apart."""

LEARNT = ("centre_", "scale_", "precision_", "calibration_")
"""What `fit` leaves behind, beside `offset_` and `model_digest_`."""

Array = np.ndarray
Clips = Iterable[Any]
"""Paths, arrays at the model's rate `(N,)`, or pairs (array, sample rate in Hz)."""


@torch.no_grad()
def statistics(model: AudioEBM, x: Tensor, learnt: bool = True) -> tuple[Tensor, Tensor]:
    """Energies and energy statistics of log-mels `(B, 1, M, T)`.

    Returns:
        -log p(x) `(B,)` in nats, and s(x) `(B, S)`: under the likeliest component, the energy, the
        modelled and the residual part of its Gaussian, the residual's part in each of `BANDS`
        groups of bands and of frames, and (with `learnt`) the network's energy. Everything but the
        energies is on a logarithmic scale.
    """

    def one(rows: Tensor) -> Tensor:
        c = model.component_of(rows)
        noisy = rows + model.jitter
        gaussian = model.reference.given(c)
        modelled, residual = gaussian.parts(noisy)
        u = noisy.flatten(1) - gaussian.mean
        outside = u - (gaussian.basis @ (gaussian.basis.mT @ u.unsqueeze(2))).squeeze(2)
        cells = (outside.square() / gaussian.remainder.unsqueeze(1)).view(-1, 1, *model.shape)
        bands = torch.nn.functional.adaptive_avg_pool2d(cells, (BANDS, 1)).flatten(1)
        times = torch.nn.functional.adaptive_avg_pool2d(cells, (1, BANDS)).flatten(1)
        columns = [
            modelled.log().unsqueeze(1),
            residual.log().unsqueeze(1),
            bands.log(),
            times.log(),
        ]
        if learnt:
            columns.append(model.density.learnt(noisy, c).unsqueeze(1))
        return torch.cat(columns, 1)

    energy = model.energy_of(x, reference_only=not learnt)
    return energy, torch.cat([energy.unsqueeze(1), chunked(one, x, size=chunk_size(x.device))], 1)


class EnergyDetector(OutlierMixin, BaseEstimator):
    """A scikit-learn outlier detector over a trained `AudioEBM`; needs normal clips only.

    Signs are scikit-learn's: `score_samples` and `decision_function` are higher for normal clips,
    `predict` gives +1 (normal) or -1. `anomaly_score` is higher for odd ones.

    Arguments:
        model: The trained energy.
        score: "typicality" (Mahalanobis distance of the energy statistics) or "energy" (the bare
            energy).
        preset: Kept for training a model on the normals, which this version does not do.
        seed: Of the split into clips that fit and clips that calibrate.
        alpha: False-alarm rate of `predict`.
        learnt: Use the network; False scores by the Gaussian reference alone.
        calibration: Share of the normals kept for calibration.
    """

    def __init__(
        self,
        model: AudioEBM | None = None,
        *,
        score: str = "typicality",
        preset: str = "cpu",
        seed: int = 0,
        alpha: float = 0.05,
        learnt: bool = True,
        calibration: float = 0.4,
    ):
        self.model = model
        self.score = score
        self.preset = preset
        self.seed = seed
        self.alpha = alpha
        self.learnt = learnt
        self.calibration = calibration

    @property
    def clips_needed(self) -> int:
        """Normal clips that `fit` needs at least, to calibrate `alpha`."""
        return max(3, int(np.ceil(_scores_needed(self.alpha) / self.calibration)))

    def fit(self, X: Clips, y: Any = None) -> EnergyDetector:
        """Fit on normal clips that the model was not trained on; `y` is ignored.

        Raises:
            ValueError: no model; too few clips to calibrate at `alpha`; a clip that cannot be
                read.
        """
        from sklearn.covariance import LedoitWolf

        if self.score not in ("typicality", "energy"):
            raise ValueError(f"score must be 'typicality' or 'energy', found {self.score!r}")
        if not 0 < self.calibration < 1:
            raise ValueError(f"calibration is a share between 0 and 1, found {self.calibration}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is a false-alarm rate between 0 and 1, found {self.alpha}")
        s, _ = self._describe(self.windows(X))
        n = len(s)
        n_calibration = round(self.calibration * n)
        needed = _scores_needed(self.alpha)
        if n_calibration < needed or n - n_calibration < 2:
            raise ValueError(
                f"{n} normal clips leave {n_calibration} for calibration; alpha={self.alpha} "
                f"needs at least {needed}: "
                f"pass {self.clips_needed} clips or more, or raise alpha"
            )
        order = np.random.default_rng(self.seed).permutation(n)
        fit, held_out = s[order[n_calibration:]], s[order[:n_calibration]]
        self.centre_ = fit.mean(0)
        spread = fit.std(0)
        self.scale_ = np.where(spread > 1e-9, spread, np.inf)  # a constant statistic says nothing
        estimate = LedoitWolf().fit((fit - self.centre_) / self.scale_)
        self.precision_ = estimate.precision_
        self.calibration_ = np.sort(self._score(held_out))
        rank = int(np.ceil((1 - self.alpha) * (n_calibration + 1)))
        self.offset_ = -float(self.calibration_[min(rank, n_calibration) - 1])
        self.model_digest_: str | None = _digest(self.model)
        return self

    def anomaly_score(self, X: Clips) -> Array:
        """`(B,)`: higher is odder."""
        return self.assess(X)["anomaly_score"]

    def score_samples(self, X: Clips) -> Array:
        """`(B,)`: the anomaly score with its sign turned; higher is more normal."""
        return -self.anomaly_score(X)

    def decision_function(self, X: Clips) -> Array:
        """`(B,)`: `score_samples - offset_`; negative where `predict` says -1."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Clips) -> Array:
        """`(B,)`: +1 for normal, -1 for odd, at false-alarm rate `alpha`."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_value(self, X: Clips) -> Array:
        """`(B,)`: conformal p-values, between 1 / (n + 1) and 1; small is odd."""
        return self.assess(X)["p_value"]

    def assess(self, X: Clips) -> dict[str, Array]:
        """From one pass: `energy` (nats), `anomaly_score`, `p_value`, each `(B,)`."""
        return self.assess_windows(self.windows(X))

    def windows(self, X: Clips) -> Iterator[Iterator[Tensor]]:
        """Of each clip, its windows at the model's rate: parts `(<= PART, window)`, made when
        asked for, so that no clip is in memory longer than it is needed.
        """
        model = self.model
        if model is None:
            raise ValueError(
                "EnergyDetector needs a trained model: "
                "EnergyDetector(AudioEBM.from_pretrained(RUN))"
            )
        return (_parts(clip, model) for clip in X)

    def assess_windows(
        self, clips: Iterable[Iterable[Tensor]], classes: bool = False
    ) -> dict[str, Array]:
        """As `assess`, from what `windows` gives; with `classes` also `class_log_p`, log p(y | x)
        summed over a clip's windows, `(B, classes)`.
        """
        if not hasattr(self, "calibration_"):
            raise ValueError("this EnergyDetector has not been fitted; call fit with normal clips")
        s, log_p = self._describe(clips, classes)
        score = self._score(s)
        at_least = len(self.calibration_) - np.searchsorted(self.calibration_, score, side="left")
        p = (1 + at_least) / (len(self.calibration_) + 1)
        marks = {"energy": s[:, 0], "anomaly_score": score, "p_value": p}
        return marks | ({"class_log_p": log_p} if classes else {})

    def _describe(
        self, clips: Iterable[Iterable[Tensor]], classes: bool = False
    ) -> tuple[Array, Array]:
        """Statistics `(B, 2 S)`: mean over a clip's windows, largest less mean; and the sums of
        log p(y | x), `(B, classes)`.

        Windows of several clips go through the model together; of each clip only count, sums and
        maxima are kept.
        """
        counts: list[int] = []
        sums: list[Tensor] = []
        tops: list[Tensor] = []
        for waves, owners in batches(clips, self._batch_size()):
            s, log_p = self._measure(waves, classes)
            rows = torch.cat([s, log_p], 1).split([n for _, n in owners])
            for (i, n), part in zip(owners, rows, strict=True):
                if i == len(counts):
                    counts.append(0)
                    sums.append(torch.zeros_like(part[0]))
                    tops.append(part[0])
                counts[i] += n
                sums[i] = sums[i] + part.sum(0)
                tops[i] = torch.maximum(tops[i], part.amax(0))
        if not counts:
            raise ValueError("no clips were given")
        total, width = torch.stack(sums), s.shape[1]
        mean = total[:, :width] / torch.tensor(counts).unsqueeze(1)
        spread = torch.stack(tops)[:, :width] - mean
        return torch.cat([mean, spread], 1).numpy(), total[:, width:].numpy()

    def _measure(self, waves: Tensor, classes: bool) -> tuple[Tensor, Tensor]:
        """Statistics `(W, S)` of windows `(W, N)`, and log p(y | x) `(W, classes)`."""
        assert self.model is not None
        x = self.model.log_mels(waves)
        s = statistics(self.model, x, self.learnt)[1].double().cpu()
        return s, self.model.classify(x).double().cpu() if classes else s[:, :0]

    def _batch_size(self) -> int:
        """Windows that go through the model together: a chunk for every core, on a GPU one."""
        assert self.model is not None
        device = self.model.device
        chunks = cores() if device.type == "cpu" else 1
        return min(256, max(PART, chunks * chunk_size(device)))

    def _score(self, s: Array) -> Array:
        if self.score == "energy":
            return s[:, 0]
        z = (s - self.centre_) / self.scale_
        return np.einsum("bi,ij,bj->b", z, self.precision_, z)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `detector.safetensors` into a run folder, beside the model's weights."""
        scale = np.where(
            np.isinf(self.scale_), 0.0, self.scale_
        )  # the file holds finite numbers only
        arrays = {name: getattr(self, name) for name in LEARNT} | {"scale_": scale}
        settings = {k: v for k, v in self.get_params(deep=False).items() if k != "model"}
        return save_weights(
            Path(folder) / WEIGHTS,
            "detector",
            {"detector": settings, "offset": self.offset_, "model": self.model_digest_},
            {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()},
        )

    @classmethod
    def from_pretrained(
        cls, run: str | Path, device: str | torch.device = "cpu"
    ) -> EnergyDetector:
        """Load the detector of a run folder, with its model.

        Raises:
            WeightsError: no such folder, no detector in it, a damaged one, or one that was
                calibrated with another model than the folder's.
        """
        file = locate(run, WEIGHTS)
        settings, tensors = load_weights(file, "detector")
        try:
            detector = cls(AudioEBM.from_pretrained(run, device), **settings["detector"])
            for name in LEARNT:
                setattr(detector, name, tensors[name].numpy())
            detector.scale_ = np.where(detector.scale_ == 0, np.inf, detector.scale_)
            detector.offset_ = float(settings["offset"])
            detector.model_digest_ = settings.get("model")
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{file}: settings do not match this version ({error})") from error
        if detector.model_digest_ != _digest(detector.model):
            found = "was calibrated with another model than the one beside it; put that model back"
            if detector.model_digest_ is None:
                found = "does not say which model it was calibrated with (an earlier version did)"
            raise WeightsError(f"{file}: {found}, or fit a detector to this one")
        return detector


def _digest(model: AudioEBM | None) -> str:
    """What tells a model from any other: all its weights and settings."""
    assert model is not None
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("inverter.")}
    return digest(model.settings, own)


def _parts(clip: Any, model: AudioEBM) -> Iterator[Tensor]:
    """The windows of one element of `Clips`, in parts."""
    if isinstance(clip, (str, Path)):
        return listen(clip, model.sample_rate, model.window, model.peak).parts()
    return parts_of(_waveform(clip, model.sample_rate), model.window, model.peak)


def _scores_needed(alpha: float) -> int:
    """Calibration scores without which no p-value reaches alpha."""
    return int(np.ceil(1 / alpha - 1e-9)) - 1


def _waveform(clip: Any, sample_rate: int) -> Tensor:
    """An array, or an array and its rate, as a mono waveform `(N,)` at `sample_rate` Hz."""
    rate = sample_rate
    if (
        isinstance(clip, Sequence)
        and len(clip) == 2
        and np.ndim(clip[1]) == 0
        and np.ndim(clip[0]) >= 1
    ):
        clip, rate = clip[0], int(clip[1])
    wave = torch.as_tensor(np.asarray(clip), dtype=torch.float32)
    if wave.ndim != 1 or len(wave) == 0:
        raise ValueError(f"a clip is a waveform (N,) with N >= 1, found shape {tuple(wave.shape)}")
    if not bool(torch.isfinite(wave).all()):
        raise ValueError("a clip holds NaN or infinite samples")
    return audio.resample(wave, rate, sample_rate)
