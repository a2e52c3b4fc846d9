"""How good generated clips are, in the eyes of a small classifier trained on real ones.

Every clip, real or generated, goes through its waveform: log-mels are taken from the sound that is
heard. The classifier's last hidden layer gives the features phi in which clips are compared with
the training clips; the formulas stand in `metrics`. FID, KID and inception score are computed
by torchmetrics on these features, at equal numbers of clips in every row; intervals resample the
closed formulas.
"""

from __future__ import annotations

__all__ = ["Classifier", "Described", "train_classifier", "describe", "row", "knn_scores"]

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sance_audio.chunks import chunked
from sance_audio.labels import learn
from sance_audio.metrics import Array, kernel_distances, manifold, percentiles


class Classifier(nn.Module):
    """A small convolutional classifier of log-mels; its last hidden layer gives the features of
    FID.

    Arguments:
        n_classes: Classes.
        width: Channels of the first layer.
        n_features: Dimensions of phi.
    """

    def __init__(self, n_classes: int, width: int = 24, n_features: int = 64):
        super().__init__()
        self.settings = {"n_classes": n_classes, "width": width, "n_features": n_features}
        layers: list[nn.Module] = []
        widths = [1, width, 2 * width, 4 * width, 4 * width]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Linear(4 * width, n_features)
        self.head = nn.Linear(n_features, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """phi, `(B, n_features)`, of log-mels `(B, 1, M, T)`."""
        h = self.body(x)
        return F.relu(self.hidden(h.mean((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, n_classes)`."""
        return self.head(self.features(x))


@dataclass(frozen=True)
class Described:
    """A set of clips as the classifier hears them."""

    phi: Array
    """`(N, d)`, features."""
    probabilities: Array
    """`(N, classes)`."""
    meant: Array | None
    """`(N,)`, the classes that the clips are of, or were meant to be; None for unlabelled ones."""
    groups: Array | None = None
    """`(N,)`, the recording that each is a window of; None where each is one of its own."""

    @property
    def right(self) -> Array | None:
        """`(N,)`, which clips are recognised."""
        return None if self.meant is None else self.probabilities.argmax(1) == self.meant


@torch.no_grad()
def describe(
    classifier: Classifier, x: Tensor, meant: Tensor | None = None, groups: Tensor | None = None
) -> Described:
    """Features and probabilities, in float64, of log-mels `(B, 1, M, T)`; with their classes, and
    the recordings that they are windows of, `(B,)` each.
    """
    classifier.eval()
    phi = chunked(classifier.features, x.cpu(), size=32)
    probabilities = classifier.head(phi).double().softmax(1)
    y, g = (None if z is None else z.numpy() for z in (meant, groups))
    return Described(phi.double().numpy(), probabilities.numpy(), y, g)


def train_classifier(
    x: Tensor, y: Tensor, n_classes: int, *, epochs: int = 12, seed: int = 0, batch: int = 32
) -> Classifier:
    """Train on log-mels `(N, 1, M, T)` with classes `(N,)`; small shifts in time and mel band, and
    noise, are added.

    Seeded: the same data and seed give the same classifier on one machine.
    """

    def varied(clips: Tensor, generator: torch.Generator) -> Tensor:
        shift, bend = torch.randint(-4, 5, (2,), generator=generator).tolist()
        clips = torch.roll(clips, (shift, bend // 3), (3, 2))
        return clips + 0.1 * torch.randn(clips.shape, generator=generator)

    def loss(logits: Tensor, told: Tensor) -> Tensor:
        return F.cross_entropy(logits, told, label_smoothing=0.05)

    sizes: dict[str, int] = {"epochs": epochs, "seed": seed, "batch": batch}
    return learn(lambda: Classifier(n_classes), x, y, varied, loss, **sizes)


class Given(nn.Module):
    """The extractor handed to torchmetrics: features that the classifier has computed already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, phi: Tensor) -> Tensor:
        return phi


def row(clips: Described, real: Described, kinds: tuple[str, ...], n_equal: int) -> dict[str, Any]:
    """One row of the table.

    Arguments:
        clips: Those judged.
        real: Training clips, in random order.
        kinds: Names of the classifier's classes.
        n_equal: Clips, and training clips, that rows are compared at: the first so many.

    Returns:
        Over all clips: `clips`, `recordings` (that they are windows of), `accuracy` (None without
        classes), `fid_all`, `seen_as`; over `n_equal`: `inception_score` (None without classes),
        `fid`, `kid` with a 95 % bootstrap interval (None for windows of a single recording),
        `precision`, `recall`, `density`, `coverage` (None where there are too few clips).
    """
    equal, some = clips.phi[:n_equal], real.phi[:n_equal]
    counts = np.bincount(clips.probabilities.argmax(1), minlength=len(kinds))
    right = clips.right
    owner, owner_real = (None if g is None else g[:n_equal] for g in (clips.groups, real.groups))
    return {
        "clips": len(clips.phi),
        "recordings": len(clips.phi if clips.groups is None else np.unique(clips.groups)),
        "accuracy": None if right is None else float(right.mean()),
        "inception_score": None if right is None else _inception(clips.probabilities[:n_equal]),
        "fid": _fid(equal, some),
        "fid_all": _fid(clips.phi, real.phi),
        "kid": _kid_interval(equal, some, (owner, owner_real)),
        **(
            manifold(some, equal, NEIGHBOURS, owner_real)
            if n_equal > NEIGHBOURS
            else dict.fromkeys(MANIFOLD)
        ),
        "seen_as": dict(zip(kinds, counts.tolist(), strict=True)),
    }


ALONE: dict[str, Any] = {"sync_on_compute": False}
"""One process judges, though several may have trained: torchmetrics would wait for the others."""
MANIFOLD = ("precision", "recall", "density", "coverage")
NEIGHBOURS = 5
"""Of precision to coverage, as in Naeem et al."""


def _fid(a: Array, b: Array) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    return _updated(lambda: FrechetInceptionDistance(feature=Given(a.shape[1]), **ALONE), a, b)


def _kid_interval(
    a: Array, b: Array, groups: tuple[Array | None, Array | None]
) -> dict[str, float] | None:
    """KID with its interval; None where a set is windows of a single recording."""
    if any(g is not None and len(np.unique(g)) < 2 for g in groups):
        return None
    found = percentiles(kernel_distances(a, b, groups=groups))
    if all(g is None for g in groups):
        found["value"] = _kid(a, b)
    return found


def _kid(a: Array, b: Array) -> float:
    """Over all clips at once: one subset."""
    from torchmetrics.image.kid import KernelInceptionDistance

    settings: dict[str, Any] = {"subsets": 1, "subset_size": len(a), **ALONE}
    extractor = Given(a.shape[1])
    return _updated(lambda: KernelInceptionDistance(feature=extractor, **settings), a, b)


def _inception(probabilities: Array) -> float:
    from torchmetrics.image.inception import InceptionScore

    logits = torch.from_numpy(np.log(np.clip(probabilities, 1e-12, 1)))
    with _quiet():
        metric = InceptionScore(feature=Given(probabilities.shape[1]), splits=1, **ALONE)
        metric.update(logits)
        return float(metric.compute()[0])


def _updated(make: Callable[[], Any], a: Array, b: Array) -> float:
    """The value of a metric that has seen features a `(N, d)` generated and b `(N', d)` real."""
    with _quiet():
        metric = make()
        metric.update(torch.from_numpy(b), real=True)
        metric.update(torch.from_numpy(a), real=False)
        value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torchmetrics' warnings (of a buffer, of one split), and with the random state left
    alone: its random subsets are whole sets here.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # they are shuffled all the same: the order decides last bits
        yield


def knn_scores(normal: Tensor, x: Tensor, neighbours: int = 5) -> Array:
    """A baseline detector: distance to the nearest normals in log-mel statistics. Higher is odder.

    Arguments:
        normal: Log-mels of normal clips, `(N, 1, M, T)`.
        x: Log-mels to score, `(B, 1, M, T)`.
        neighbours: k; the mean distance to the k nearest counts.

    Returns:
        `(B,)`. Statistics are each band's mean, standard deviation and maximum over time,
        standardised on the normals.
    """
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    def statistics(z: Tensor) -> Array:
        z = z.squeeze(1).cpu()
        return torch.cat([z.mean(2), z.std(2), z.amax(2)], 1).double().numpy()

    scaler = StandardScaler().fit(statistics(normal))
    index = NearestNeighbors(n_neighbors=min(neighbours, len(normal))).fit(
        scaler.transform(statistics(normal))
    )
    return index.kneighbors(scaler.transform(statistics(x)))[0].mean(1)
