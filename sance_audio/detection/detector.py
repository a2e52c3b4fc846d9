"""`EnergyDetector`: what is odd among recordings, how sure, at what second, in what band.

`rows` describes clips, `scorer` scores windows, `conformal` turns scores into p-values that hold,
`maps` says where. Fitting takes normal recordings only.
"""

from __future__ import annotations

__all__ = ["EnergyDetector"]

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from torch import Tensor

from sance_audio.detection import storage
from sance_audio.detection.conformal import Calibration, gamma_threshold
from sance_audio.detection.contrast import PRESETS
from sance_audio.detection.inputs import check_parameters, clips_of, groups_of, rate_of
from sance_audio.detection.live import WindowScore, stream
from sance_audio.detection.maps import LocalScorer, config_of
from sance_audio.detection.regions import FrameScores, ScoreMap
from sance_audio.detection.rows import Clips, Describer, Row, whole
from sance_audio.detection.scorer import Scorer
from sance_audio.detection.splits import clips_needed, held_out
from sance_audio.detection.sums import Sums
from sance_audio.detection.where import frame_scores, map_of
from sance_audio.model import AudioEBM
from sance_audio.streams import Sound, count_windows

Array = np.ndarray


class EnergyDetector(OutlierMixin, BaseEstimator):
    """A scikit-learn outlier detector of recordings; needs normal ones only.

    Signs are scikit-learn's: `score_samples` and `decision_function` are higher for normal clips,
    `predict` gives +1 (normal) or -1. `anomaly_score` is higher for odd ones. A clip is a path, an
    array `(N,)` at the detector's rate, or a pair (array, sample rate in Hz); other rates are
    resampled, longer clips than a window are cut into windows, shorter ones stay as they are.

    Arguments:
        model: A trained `AudioEBM`, whose energy statistics are then part of the score; pass
            normals that it was not trained on. None: the detector learns its energies from the
            normals alone.
        score: "typicality" (of all that is known of a clip) or "energy" (the bare energy: a poor
            detector, since low is not the same as normal; without a model one is trained).
        preset: "smoke", "cpu" or "gpu": how long energies are learnt; "gpu" differs from "cpu" for
            the model of `score="energy"` only.
        seed: Of the splits, and of what is learnt.
        alpha: False-alarm rate of `predict`.
        learnt: Use networks; False scores by reference statistics alone.
        calibration: Share of the recordings kept for calibration; those touch no fit. None: 40 %,
            or more where `alpha` needs them. 0: none, all are fitted; then there are no p-values,
            and `predict` takes `gamma_threshold`.
        aggregate: "mean" or "max" of a recording's windows.
        sample_rate: Of plain arrays, and of the analysis. None: the model's; without one that of
            most normals, at most 16 kHz.
        window: Seconds that are judged at once, of longer recordings and of streams. None: a tenth
            more than the longest normal, between 2.5 and 10.

    Attributes:
        offset_: `decision_function` is `score_samples` less this.
        normal_scores_: Scores of the recordings that were fitted, each under what did not see it.
        calibration_, window_calibration_: The scores that calibrate recordings, and single
            windows; None without.
        window_: Seconds of a window.
        model_: The model in use, or None.
        sample_rate_: In Hz.
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
        calibration: float | None = None,
        aggregate: str = "mean",
        sample_rate: int | None = None,
        window: float | None = None,
    ):
        self.model = model
        self.score = score
        self.preset = preset
        self.seed = seed
        self.alpha = alpha
        self.learnt = learnt
        self.calibration = calibration
        self.aggregate = aggregate
        self.sample_rate = sample_rate
        self.window = window

    @property
    def clips_needed(self) -> int:
        """Recordings that `fit` needs at least, to calibrate `alpha`."""
        return clips_needed(self.alpha, self.calibration)

    def fit(self, X: Clips, y: Any = None, *, groups: Any = None) -> EnergyDetector:
        """Fit on normal clips.

        Arguments:
            X: Clips, or a folder of them.
            y: Ignored, as scikit-learn does.
            groups: `(B,)`: the recording, machine or session that each clip is of; clips of one
                stay together, on one side of every split. Each clip its own when None.

        Raises:
            ValueError: an impossible parameter; too few recordings to calibrate at `alpha`;
                normals that are all alike.
            AudioError: a clip that cannot be read.
        """
        check_parameters(self)
        split = self.alpha, self.calibration, self.seed
        X = clips_of(X)
        if isinstance(X, np.ndarray) and X.ndim == 2:
            self.n_features_in_ = X.shape[1]
        if self.model is None:
            X = list(X)
        self.sample_rate_ = rate_of(X, self.model, self.sample_rate)
        self.model_ = self.model
        if self.score == "energy" and self.model is None:
            clips = list(X)
            held = held_out(groups_of(groups, len(clips)), *split)
            self.model_ = self._trained([c for c, out in zip(clips, held, strict=True) if not out])
        self._describer = Describer(self.sample_rate_, self.model_, self.learnt, self.window)
        rows = [row for some in self._describer.rows(self.windows(X)) for row in some]
        of_clip = groups_of(groups, rows[-1].clip + 1 if rows else 0)
        if self.window is None:
            self._describer.shorten(rows)
        held = held_out(of_clip, *split)
        inside = [row for row in rows if not held[row.clip]]
        config = PRESETS[self.preset] if self.learnt and self.score == "typicality" else None
        self._scorer = Scorer.fit(inside, of_clip[[r.clip for r in inside]], self.seed, config)
        self._calibrate(rows, inside, of_clip, held)
        self.window_ = self._describer.length / self.sample_rate_
        self.model_digest_: str | None = storage.digest_of(self.model_)
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
        """`(B,)`: conformal p-values, between 1 / (n + 1) and 1; small is odd.

        Raises:
            ValueError: a detector without calibration.
        """
        self._calibrated()
        return self.assess(X)["p_value"]

    def threshold(self, alpha: float | None = None) -> float:
        """The anomaly score above which a clip is odd, at a false-alarm rate (`self.alpha` when
        None).

        Raises:
            ValueError: alpha below 1 / (n + 1), n recordings calibrating; no calibration.
        """
        return self._calibrated().threshold(self.alpha if alpha is None else alpha)

    def gamma_threshold(self, quantile: float = 0.9) -> float:
        """A quantile of the gamma distribution of the normals' cross-fitted scores, as the DCASE
        baselines have it.

        Raises:
            ValueError: a quantile outside (0, 1).
        """
        self._fitted()
        return gamma_threshold(self.normal_scores_, quantile)

    def assess(self, X: Clips) -> dict[str, Array]:
        """`energy` (nats, NaN without a model), `anomaly_score`, `p_value` (NaN without
        calibration), each `(B,)`."""
        self._fitted()
        return self.assess_windows(self.windows(clips_of(X)))

    def windows(self, X: Clips) -> Iterator[Iterator[Tensor]]:
        """Of each clip, its windows: parts `(<= PART, N)`, made when asked for, so that no clip is
        in memory longer than it is needed.
        """
        return self._describer.windows(X)

    def score_map(self, clip: Any) -> ScoreMap:
        """When and in what bands one clip is odd.

        p-values are of the calibration clips, which touched no fit; with calibration=0 of the
        fitted ones, each half of the recordings scored by a fit to the other half.

        Raises:
            ValueError: a clip that is no waveform; a detector without a fit.
            AudioError: a file that cannot be decoded.
        """
        self._fitted()
        return map_of(self._describer, self._local, clip)

    def score_frames(self, clip: Any) -> FrameScores:
        """When one clip is odd: by the oddest bands of each frame, calibrated as `score_map` is.

        Raises:
            ValueError, AudioError: as `score_map`.
        """
        self._fitted()
        return frame_scores(self._describer, self._local, clip)

    def score_stream(
        self, blocks: Iterable[Any], sample_rate: int | None = None
    ) -> Iterator[WindowScore]:
        """Of a sound that goes on, a window at a time, as soon as it is whole, in memory that does
        not grow; windows and scores are those of the same sound as one clip.

        Arguments:
            blocks: Samples `(n,)`, n as it comes, or pairs of them and their rate.
            sample_rate: Of the blocks, in Hz; the detector's when None.

        Raises:
            ValueError: a block of another shape or rate, or with samples that are not finite.
        """
        self._fitted()
        known = self.window_calibration_
        limit = known.threshold(self.alpha) if known else -self.offset_
        for seconds, row in stream(self._describer, blocks, sample_rate):
            score = self._scores([row])
            p = float(known.p_value(score)[0]) if known else float("nan")
            yield WindowScore(*seconds, float(score[0]), p, row.energy, bool(score[0] > limit))

    @property
    def shortest(self) -> int:
        """Samples below which a clip is padded: a window of the model, or of the transform."""
        model, own = self._describer.model, self._describer.descriptors
        return model.window if model is not None else own.n_fft

    def count_windows(self, samples: int) -> int:
        """How many windows a recording of so many samples is cut into."""
        return count_windows(samples, self._describer.length)

    def listen(self, path: str | Path) -> Sound:
        """A file, decoded once: what was found, and its windows when asked for.

        Raises:
            AudioError: a file that cannot be decoded.
        """
        self._fitted()
        return self._describer.listen(path)

    def assess_windows(
        self, clips: Iterable[Iterable[Tensor]], classes: bool = False
    ) -> dict[str, Array]:
        """As `assess`, from what `windows` gives; with `classes` also `class_log_p`, log p(y | x)
        summed over the model's windows, `(B, classes)`.
        """
        self._fitted()
        found = Sums(self.aggregate)
        for rows in self._describer.rows(clips, classes):
            found.add(rows, self._scores(rows))
        marks = found.marks()
        score, known = marks["anomaly_score"], self.calibration_
        marks["p_value"] = known.p_value(score) if known else np.full(len(score), np.nan)
        if not classes:
            marks.pop("class_log_p")
        return marks

    def _scores(self, rows: list[Row]) -> Array:
        if self.score == "energy":
            return np.array([row.energy for row in rows])
        return self._scorer(rows)

    def _calibrate(self, rows: list[Row], inside: list[Row], groups: Array, held: Array) -> None:
        own = self._scores(inside) if self.score == "energy" else self._scorer.normal
        fitted = Sums(self.aggregate)
        fitted.add(inside, own)
        self.normal_scores_ = fitted.marks()["anomaly_score"]
        self.calibration_: Calibration | None = None
        self.window_calibration_: Calibration | None = None
        outside = [row for row in rows if held[row.clip]]
        maps = config_of(self.preset if self.learnt else None)
        self._local = LocalScorer.fitted(inside, outside, groups, maps, self.seed)
        if outside:
            parts = [outside[start : start + 256] for start in range(0, len(outside), 256)]
            single = np.concatenate([self._scores(part) for part in parts])
            sums = Sums(self.aggregate)
            sums.add(outside, single)
            scores = sums.marks()["anomaly_score"]
            self.calibration_ = Calibration.of(scores, groups[np.flatnonzero(held)])
            of_row = groups[[row.clip for row in outside]]
            self.window_calibration_ = Calibration.of(single, of_row)
            self.offset_ = -self.calibration_.threshold(self.alpha)
        else:
            self.offset_ = -gamma_threshold(self.normal_scores_)

    def _trained(self, clips: list[Any]) -> AudioEBM:
        from sance_audio.normals import train_on_normals

        waves = [whole(clip, self.sample_rate_) for clip in clips]
        return train_on_normals(waves, self.sample_rate_, preset=self.preset, seed=self.seed)

    def _fitted(self) -> None:
        from sklearn.exceptions import NotFittedError

        if not hasattr(self, "offset_"):
            raise NotFittedError(
                "this EnergyDetector has not been fitted; call fit with normal clips"
            )

    def _calibrated(self) -> Calibration:
        self._fitted()
        if self.calibration_ is None:
            raise ValueError(
                "this detector was fitted with calibration=0, on all normals: it has no p-values; "
                "fit it with a share of them that calibrate"
            )
        return self.calibration_

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `detector.safetensors` into a run folder, beside the model's weights; those too
        where `fit` trained the model.
        """
        self._fitted()
        return storage.save(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls, run: str | Path, device: str | torch.device = "cpu"
    ) -> EnergyDetector:
        """Load the detector of a run folder, with its model.

        Raises:
            WeightsError: no such folder, no detector in it, a damaged one, one of another version,
                or one that was calibrated with another model than the folder's.
        """
        return storage.load(cls, run, device)
