r"""How good generated clips are, in the eyes of a small classifier trained on real ones.

Every clip, real or generated, goes through its waveform: log-mels are taken from the sound that is
heard. With p(y | x) the classifier and phi its features,

    accuracy          share of clips recognised as the class they were meant to be
    inception score   exp mean_x KL(p(y | x) || p(y)),  p(y) the mean of p(y | x) over the clips
    FID               |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)),  m, S mean and covariance of phi;
                      against the training clips

References:
    Improved techniques for training GANs (Salimans et al., 2016)
    GANs trained by a two time-scale update rule converge to a local Nash equilibrium
        (Heusel et al., 2017)
"""

from __future__ import annotations

__all__ = [
    "Classifier",
    "train_classifier",
    "frechet_distance",
    "inception_score",
    "row",
    "paired_interval",
    "neighbour_ratio",
    "knn_scores",
]

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sance_audio.chunks import chunked

Array = np.ndarray


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

    @torch.no_grad()
    def describe(self, x: Tensor) -> tuple[Array, Array]:
        """Features `(B, n_features)` and probabilities `(B, n_classes)`, float64."""
        self.eval()
        phi = chunked(self.features, x, size=32)
        return phi.double().numpy(), self.head(phi).softmax(1).double().numpy()


def train_classifier(
    x: Tensor, y: Tensor, n_classes: int, *, epochs: int = 12, seed: int = 0, batch: int = 32
) -> Classifier:
    """Train on log-mels `(N, 1, M, T)` with classes `(N,)`; small shifts in time and mel band, and
    noise, are added.

    Seeded: the same data and seed give the same classifier on one machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(n_classes)
        generator = torch.Generator().manual_seed(seed)
        steps = epochs * -(-len(x) // batch)
        optimiser = torch.optim.AdamW(classifier.parameters(), 3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(batch):
                shift, bend = torch.randint(-4, 5, (2,), generator=generator).tolist()
                clip = torch.roll(x[rows], (shift, bend // 3), (3, 2))
                clip = clip + 0.1 * torch.randn(clip.shape, generator=generator)
                loss = F.cross_entropy(classifier(clip), y[rows], label_smoothing=0.05)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return classifier.eval()


def frechet_distance(a: Array, b: Array) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, `(N, d)` and `(N', d)`.

    >>> a = np.random.default_rng(0).normal(size=(100, 4))
    >>> abs(frechet_distance(a, a)) < 1e-6, round(frechet_distance(a, a + 1), 6)
    (True, 4.0)
    """
    s, r = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(s)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ r @ root), 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(r) - 2 * cross)


def inception_score(probabilities: Array) -> float:
    """Of `(N, classes)`: 1 when all clips look alike, the number of classes when all are clear and
    balanced.

    >>> round(inception_score(np.eye(5)), 6), round(inception_score(np.eye(5)[[0, 0, 0]]), 6)
    (5.0, 1.0)
    """
    p = np.clip(probabilities, 1e-12, 1)
    marginal = p.mean(0, keepdims=True)
    return float(np.exp((p * (np.log(p) - np.log(marginal))).sum(1).mean()))


def row(
    phi: Array,
    probabilities: Array,
    meant: Array,
    real: Array,
    labels: tuple[str, ...],
    n_equal: int,
) -> dict[str, Any]:
    """One row of the table: accuracy, inception score, FID of all clips and of the first
    `n_equal`, class histogram.

    Arguments:
        phi: `(N, d)`.
        probabilities: `(N, classes)`.
        meant: `(N,)`, the classes that the clips were meant to be.
        real: `(N', d)`, features of the training clips.
        labels: Names of the classes.
        n_equal: FID depends on the number of clips; rows compare at this one.
    """
    seen = probabilities.argmax(1)
    counts = np.bincount(seen, minlength=len(labels))
    return {
        "clips": len(phi),
        "accuracy": float((seen == meant).mean()),
        "inception_score": inception_score(probabilities),
        "fid": frechet_distance(phi, real),
        f"fid_at_{n_equal}": frechet_distance(phi[:n_equal], real),
        "seen_as": dict(zip(labels, counts.tolist(), strict=True)),
    }


def paired_interval(
    difference: Callable[[Array], float], n: int, *, resamples: int = 400, seed: int = 0
) -> dict[str, float]:
    """Percentile bootstrap of a statistic of paired clips.

    Arguments:
        difference: Of row indices `(n,)`, drawn with replacement; gives (ours - reference).
        n: Number of pairs.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        `difference` of all pairs, and the 2.5 and 97.5 % quantiles of its bootstrap distribution.
    """
    rng = np.random.default_rng(seed)
    draws = [difference(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"difference": difference(np.arange(n)), "low": float(low), "high": float(high)}


def neighbour_ratio(x: Tensor, train: Tensor, test: Tensor) -> dict[str, float]:
    """Are clips copies? Distances to the nearest training clip, over those of test clips.

    Arguments:
        x: Log-mels of generated clips, `(B, 1, M, T)`.
        train: Of training clips.
        test: Of real clips that were not trained on.

    Returns:
        Ratios of the 5 % quantiles and of the medians; well below 1 means copying.
    """
    flat = train.flatten(1)
    ours, real = (torch.cdist(z.flatten(1), flat).amin(1) for z in (x, test))
    return {
        f"at_{name}": float(ours.quantile(q) / real.quantile(q).clamp_min(1e-9))
        for name, q in (("5_percent", 0.05), ("median", 0.5))
    }


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
