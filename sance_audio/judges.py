"""The classifier that judges a run's clips: trained once, on its training clips, and kept."""

from __future__ import annotations

__all__ = ["CLASSIFIER_SEED", "Judge", "classify", "judged_in"]

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sance_audio import evaluation
from sance_audio.model import AudioEBM
from sance_audio.options import Options
from sance_audio.preparation import Material
from sance_audio.weights import WeightsError, load_weights, save_weights

TAUGHT = 10_000
"""Rows of training clips that the classifier learns from, at most."""
CLASSIFIER_SEED = 0
"""One for all runs, whatever theirs, so that their figures compare."""


@dataclass(frozen=True)
class Judge:
    """The evaluating classifier of a run."""

    classifier: evaluation.Classifier
    kinds: tuple[str, ...]
    """What it tells apart: the labels, or clusters of the training clips where there are none."""
    sha256: str
    """Of its file: the same hash, the same judge."""
    seed: int = CLASSIFIER_SEED
    """Of its training."""

    @property
    def folder(self) -> str:
        """Where the closest pairs are written that it is asked of, in the run folder."""
        return _own("evaluation", self.seed)

    @property
    def file(self) -> str:
        """Where it is kept, in the run folder."""
        return _own("classifier.safetensors", self.seed)


def judged_in(seed: int) -> str:
    """The file of a run that holds the evaluation by the judge of this seed."""
    return _own("evaluation.json", seed)


def _own(name: str, seed: int) -> str:
    stem, dot, suffix = name.partition(".")
    return name if seed == CLASSIFIER_SEED else f"{stem}_{seed}{dot}{suffix}"


def classify(
    model: AudioEBM, material: Material, options: Options, seed: int = CLASSIFIER_SEED
) -> Judge:
    """The judge of a run: trained on the training clips once, and kept in the run folder; one of
    another seed beside it.

    An unlabelled model's clips have no classes; its classifier learns to tell clusters of them
    apart, which gives features to compare sets of clips in.

    Raises:
        WeightsError: the file in the run is no classifier of this model.
    """
    path = options.run / _own("classifier.safetensors", seed)
    if not path.exists():
        x, rows = material.some("train", TAUGHT)
        y = material.y["train"][rows] if model.labels else _kinds(x)
        kinds = model.labels or tuple(f"kind {k + 1}" for k in range(int(y.max()) + 1))
        epochs = options.classifier_epochs
        trained = evaluation.train_classifier(x, y, len(kinds), epochs=epochs, seed=seed)
        about = {"classifier": trained.settings, "kinds": kinds, "epochs": epochs}
        save_weights(path, "classifier", about, trained.state_dict())
    settings, tensors = load_weights(path, "classifier")
    kinds = tuple(settings.get("kinds", model.labels))
    try:
        classifier = evaluation.Classifier(**settings["classifier"])
        classifier.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: not a classifier of this version ({error})") from error
    if model.labels and kinds != model.labels:
        raise WeightsError(f"{path}: tells {', '.join(kinds)} apart, not the model's labels")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Judge(classifier.eval(), kinds, digest, seed)


def _kinds(x: Tensor) -> Tensor:
    """Clusters `(N,)` of log-mels `(N, 1, M, T)`, by each band's mean and deviation over time."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    bands = torch.cat([x.mean(3), x.std(3)], 2).squeeze(1).cpu().numpy()
    k = max(2, min(10, len(x) // 20))
    found = KMeans(k, n_init=4, random_state=0).fit_predict(StandardScaler().fit_transform(bands))
    return torch.from_numpy(found).long()
