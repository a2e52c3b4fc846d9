"""A detector in one safetensors file; no pickle."""

from __future__ import annotations

__all__ = ["digest_of", "load", "save"]

from pathlib import Path
from typing import Any

import torch

from sance_audio import labels
from sance_audio.detection.conformal import Calibration
from sance_audio.detection.maps import LocalScorer
from sance_audio.detection.rows import Describer
from sance_audio.detection.scorer import Scorer
from sance_audio.model import AudioEBM
from sance_audio.state import without
from sance_audio.weights import (
    WeightsError,
    below,
    digest,
    load_weights,
    locate,
    save_weights,
)

WEIGHTS = "detector.safetensors"
VERSION = 3
"""Of what the file holds: those before 2 had another score, before 3 one peak for all windows of a
recording."""


def save(detector: Any, folder: Path) -> Path:
    """Write `detector.safetensors`, and the model's weights where `fit` trained it."""
    settings = {k: v for k, v in detector.get_params(deep=False).items() if k != "model"}
    own_model = detector.model is None and detector.model_ is not None
    if own_model:
        detector.model_.save_pretrained(folder)
    about = {
        "version": VERSION,
        "detector": settings,
        "offset": detector.offset_,
        "sample_rate": detector.sample_rate_,
        "window": detector.window_,
        "model": detector.model_digest_,
        "own_model": own_model,
    }
    tensors = {f"scorer.{k}": v for k, v in detector._scorer.tensors().items()}
    tensors |= {f"local.{k}": v for k, v in detector._local.tensors().items()}
    tensors["normal_scores"] = torch.from_numpy(detector.normal_scores_)
    for name, known in (
        ("calibration", detector.calibration_),
        ("window_calibration", detector.window_calibration_),
    ):
        if known is not None:
            tensors[f"{name}.scores"] = torch.from_numpy(known.scores)
            tensors[f"{name}.weights"] = torch.from_numpy(known.weights)
    return save_weights(folder / WEIGHTS, "detector", about, tensors)


def load(cls: Any, run: str | Path, device: str | torch.device) -> Any:
    """A detector, with its model."""
    file = locate(run, WEIGHTS)
    about, tensors = load_weights(file, "detector")
    if about.get("version") != VERSION:
        raise WeightsError(
            f"{file}: a detector of version {about.get('version', 1)}, this one reads {VERSION}: "
            f"fit it again, or use the version of sance_audio that wrote it"
        )
    model = None
    if about.get("model") is not None:
        model = AudioEBM.from_pretrained(run, device)
    try:
        detector = cls(None if about["own_model"] else model, **about["detector"])
        detector.model_, detector.model_digest_ = model, about["model"]
        detector.offset_ = float(about["offset"])
        detector.sample_rate_ = int(about["sample_rate"])
        detector._scorer = Scorer.restore(below(tensors, "scorer."))
        detector._local = LocalScorer.restore(below(tensors, "local."))
        detector.normal_scores_ = tensors["normal_scores"].numpy()
        detector.window_ = float(about["window"])
        detector.calibration_ = _calibration(tensors, "calibration")
        detector.window_calibration_ = _calibration(tensors, "window_calibration")
    except (KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{file}: settings do not match this version ({error})") from error
    own = detector.sample_rate_, model, detector.learnt, detector.window_
    detector._describer = Describer(*own)
    if about["model"] != digest_of(model):
        raise WeightsError(
            f"{file}: was calibrated with another model than the one beside it; put that model "
            f"back, or fit a detector to this one"
        )
    return detector


def _calibration(tensors: dict[str, torch.Tensor], name: str) -> Calibration | None:
    found = {k: v.numpy() for k, v in below(tensors, f"{name}.").items()}
    return Calibration(**found) if found else None


def digest_of(model: AudioEBM | None) -> str | None:
    """What tells a model from any other: all its weights and settings but those of truncation,
    which changes no score.
    """
    if model is None:
        return None
    unscored = ("inverter.", *labels.TENSORS)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(unscored)}
    return digest(without(model.settings, labels.SETTINGS), own)
