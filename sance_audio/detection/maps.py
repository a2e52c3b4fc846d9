r"""Which cells of a clip are odd: a score of log-mels, learnt from changes planted in normals.

x `(M, T)` are log-mels. Two maps of residuals, both of which forget how a recording is coloured:

    z_b(t) = (x_b(t) - median_t x_b - m_b) / s_b                m, s of normals
    r_b(t) = (P u(t))_b / sqrt(P_bb)         u: z at t and the frames beside it; P their precision,
                                             of a Ledoit-Wolf covariance

r is what the Gaussian energy u^T P u / 2 has left of a cell given all others about it. Each map is
smoothed over `SCALES`, keeping its sign: faint changes that last add up, the rest cancels. A small
network h reads these and the band, cell by cell; it is learnt by logistic regression of the cells
inside planted changes against all others (`planted`), so h is a log ratio of densities, and
F = -h the energy of a normal cell relative to a changed one. With h smoothed, the score is

    h + w |z smoothed| / its deviation

p-values compare a cell with those of its band in normals. What lasts for most of a clip is its
median, and is not seen; nor is what goes missing where pauses are normal.

References:
    Noise-contrastive estimation (Gutmann & Hyvarinen, 2010)
    A well-conditioned estimator for large-dimensional covariance matrices (Ledoit & Wolf, 2004)
"""

from __future__ import annotations

__all__ = ["LocalScorer", "MapConfig", "config_of", "frames_of"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, silu

from sance_audio.chunks import threads_of
from sance_audio.detection.descriptors import N_MELS
from sance_audio.detection.planted import plant
from sance_audio.detection.residuals import conditional, context, levelled, settled, smoothed
from sance_audio.detection.rows import Row
from sance_audio.detection.typicality import folds_of

SCALES = ((1, 2), (2, 5), (3, 10), (4, 25), (6, 60))
"""Deviations of the smoothing over bands and frames."""
PLAIN, PLAIN_WEIGHT = (3, 10), 0.4
"""The scale of the second term, and w."""
STEP = 2
"""Frames from one cell that the network reads to the next."""
LAST = (2, 6)
"""Smoothing of its log odds."""
SLIGHTEST = 1e-3
"""Deviation at least, nats."""
QUANTILES = 512
"""That are kept of the normals' scores, of each band."""
TOP = 8
"""Bands whose mean is the score of a frame: the oddest."""
HALVES = 2
"""Of the normals, for p-values where none are left to calibrate."""
KEPT = 200
"""Windows of normals that are fitted, and that calibrate, at most."""
LIMIT = 6.0
"""Of what the network reads, in deviations."""

Array = np.ndarray


@dataclass(frozen=True)
class MapConfig:
    """How the score of cells is learnt."""

    changes: int = 250
    """Planted; 0: no network, the second term alone is the score."""
    cells: int = 1000
    """Read of each."""
    hidden: int = 48
    epochs: int = 4
    batch: int = 1024
    rate: float = 3e-3
    """Of AdamW; falls linearly to zero from half-way."""
    decay: float = 1e-3


def config_of(preset: str | None) -> MapConfig:
    """Of a preset of the detector; None: without a network."""
    return MapConfig(changes={None: 0, "smoke": 40}.get(preset, MapConfig.changes))


class LocalScorer:
    """Scores cells.

    Arguments:
        parts: m, s `(M, 1)`; the rows `(M, 3 M)` that make r of u; the deviation of the second
            term; where a network is, the mean and deviation of what it reads and its weights.
        quantiles: Ascending `QUANTILES` of normals' cells, by band `(M, Q)`, and of their frames
            `(1, Q)`; None before `calibrate`.
    """

    def __init__(self, parts: dict[str, Tensor], quantiles: tuple[Array, Array] | None = None):
        self.parts, self.quantiles = parts, quantiles

    @classmethod
    def fit(cls, log_mels: Sequence[Tensor], config: MapConfig, seed: int) -> LocalScorer:
        """On the log-mels of normals, each `(M, T)`, T of its own."""
        log_mels = [settled(x) for x in log_mels]
        with threads_of(1):
            frames = torch.cat([levelled(x) for x in log_mels], 1)
            parts = {
                "mean": frames.mean(1, keepdim=True),
                "deviation": frames.std(1, correction=0, keepdim=True).clamp_min(SLIGHTEST),
            }
            scorer = cls(parts)
            parts["rows"] = conditional([context(scorer.z(x)) for x in log_mels])
            plain = torch.cat([scorer.plain(x) for x in log_mels], 1)
            parts["plain"] = plain.std(correction=0).clamp_min(SLIGHTEST)
            if config.changes:
                scorer._learn([x.numpy() for x in log_mels], config, seed)
        return scorer

    def _learn(self, log_mels: list[Array], config: MapConfig, seed: int) -> None:
        """The network, from cells of planted changes."""
        rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        read, inside = [], []
        for _ in range(config.changes):
            y, where = plant(log_mels[rng.integers(len(log_mels))], rng)
            f = self.read(torch.from_numpy(y))
            chosen = torch.from_numpy(rng.integers(0, f.shape[1], config.cells))
            read.append(f[:, chosen].T)
            inside.append(torch.from_numpy(where[:, ::STEP].flatten())[chosen].float())
        f, target = torch.cat(read), torch.cat(inside)
        self.parts["read.mean"], self.parts["read.deviation"] = f.mean(0), f.std(0) + SLIGHTEST
        with torch.enable_grad():
            network = _separate(self.scaled(f), target, config, g)
        self.parts |= {f"network.{k}": v.detach() for k, v in network.state_dict().items()}

    def z(self, x: Tensor) -> Tensor:
        """Of log-mels `(M, T)`: `(M, T)`."""
        return (levelled(x) - self.parts["mean"]) / self.parts["deviation"]

    def plain(self, x: Tensor) -> Tensor:
        """|z smoothed| of log-mels `(M, T)`: `(M, T)`."""
        return smoothed(self.z(x), PLAIN).abs()

    def scaled(self, f: Tensor) -> Tensor:
        """What the network reads `(n, features)`, standardised."""
        f = (f - self.parts["read.mean"]) / self.parts["read.deviation"]
        return f.clamp(-LIMIT, LIMIT)

    def read(self, x: Tensor) -> Tensor:
        """What the network reads of log-mels `(M, T)`: `(features, M T')`, T' = T / STEP."""
        z = self.z(x)
        residuals = torch.stack([z, self.parts["rows"] @ context(z)])
        smooth = [smoothed(residuals, scale, wanted=STEP) for scale in SCALES]
        band = torch.linspace(-1, 1, N_MELS).view(1, -1, 1).expand(1, -1, smooth[0].shape[2])
        return torch.cat([*smooth, band]).flatten(1)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Array:
        """Scores `(M, T)` of the cells of log-mels; higher is odder."""
        x = settled(x)
        with threads_of(1):
            score = self.plain(x) / self.parts["plain"]
            if "read.mean" in self.parts:
                h = self.scaled(self.read(x).T)
                for i in (0, 2):
                    h = silu(self._layer(i, h))
                odds = self._layer(4, h).view(N_MELS, -1)
                score = PLAIN_WEIGHT * score
                score += smoothed(odds, LAST, given=STEP, frames=x.shape[1])
            return score.numpy()

    def _layer(self, i: int, h: Tensor) -> Tensor:
        name = f"network.{i}"
        return linear(h, self.parts[f"{name}.weight"], self.parts[f"{name}.bias"])

    @classmethod
    def fitted(
        cls,
        inside: Sequence[Row],
        outside: Sequence[Row],
        groups: Array,
        config: MapConfig,
        seed: int,
    ) -> LocalScorer:
        """Fitted on windows of normals, and calibrated by others; without others by what fits to
        each half of the recordings say of the other half.

        Arguments:
            groups: The recording of each clip that a row may be of.
        """
        rng = np.random.default_rng(seed)
        inside, outside = _some(inside, rng), _some(outside, rng)
        scorer = cls.fit([row.log_mel for row in inside], config, seed)
        scores = [scorer(row.log_mel) for row in outside]
        if not outside:
            outside, scores = inside, [np.empty(0)] * len(inside)
            halves = folds_of(groups[[row.clip for row in inside]], HALVES, rng)
            for j in np.unique(halves):
                seen = [r.log_mel for r, h in zip(inside, halves, strict=True) if h != j]
                other = cls.fit(seen, config, seed) if seen else scorer
                for i in np.flatnonzero(halves == j):
                    scores[i] = other(inside[i].log_mel)
        scorer.calibrate(scores, groups[[row.clip for row in outside]])
        return scorer

    def calibrate(self, scores: Sequence[Array], groups: Array) -> None:
        """By scores, each `(M, T)`, of normals of the recordings `(n,)`, which count the same."""
        number = np.unique(groups, return_inverse=True)[1]
        length = np.bincount(number, [s.shape[1] for s in scores])
        weight = np.concatenate(
            [np.full(s.shape[1], 1 / length[i]) for s, i in zip(scores, number, strict=True)]
        )
        cells = np.concatenate(list(scores), 1)
        frames = np.concatenate([frames_of(s) for s in scores])[None]
        self.quantiles = _quantiles(cells, weight), _quantiles(frames, weight)

    def p_cells(self, score: Array) -> Array:
        """Of scores `(M, T)`."""
        return self._p(score, 0)

    def p_frames(self, score: Array) -> Array:
        """Of the scores of frames `(T,)`."""
        return self._p(score[None], 1)[0]

    def _p(self, score: Array, which: int) -> Array:
        assert self.quantiles is not None
        table = self.quantiles[which]
        below = np.stack([np.searchsorted(q, s) for q, s in zip(table, score, strict=True)])
        return (1 + QUANTILES - below) / (QUANTILES + 1)

    def tensors(self) -> dict[str, Tensor]:
        """What `restore` makes it again from."""
        assert self.quantiles is not None
        cells, frames = (torch.from_numpy(q) for q in self.quantiles)
        return {**self.parts, "quantiles.cells": cells, "quantiles.frames": frames}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor]) -> LocalScorer:
        parts = {k: v for k, v in tensors.items() if not k.startswith("quantiles.")}
        cells, frames = (tensors[f"quantiles.{name}"].numpy() for name in ("cells", "frames"))
        return cls(parts, (cells, frames))


def frames_of(score: Array) -> Array:
    """Scores of frames `(T,)` from those of their cells `(M, T)`."""
    return np.sort(score, axis=0)[-TOP:].mean(0)


def _quantiles(scores: Array, weight: Array) -> Array:
    """`QUANTILES` of each row `(R, n)`, columns weighted: `(R, Q)`."""
    at, out = (np.arange(QUANTILES) + 0.5) / QUANTILES, []
    for row in scores:
        order = np.argsort(row, kind="stable")
        share = np.cumsum(weight[order])
        out.append(row[order[np.searchsorted(share / share[-1], at)]])
    return np.stack(out)


def _some(rows: Sequence[Row], rng: np.random.Generator) -> list[Row]:
    chosen = np.sort(rng.permutation(len(rows))[:KEPT])
    return [rows[i] for i in chosen]


def _separate(
    f: Tensor, inside: Tensor, config: MapConfig, generator: torch.Generator
) -> nn.Module:
    """Log odds of being inside `(n,)`, as a network of f `(n, features)`."""
    network = _network(f.shape[1], config.hidden, generator)
    optimiser = torch.optim.AdamW(network.parameters(), config.rate, weight_decay=config.decay)
    steps = config.epochs * len(f) // config.batch
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = config.rate * min(1.0, 2 * (1 - step / steps))
        batch = torch.randint(0, len(f), (config.batch,), generator=generator)
        loss = binary_cross_entropy_with_logits(network(f[batch])[:, 0], inside[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


def _network(features: int, hidden: int, generator: torch.Generator) -> nn.Sequential:
    layers = [nn.Linear(a, b) for a, b in ((features, hidden), (hidden, hidden), (hidden, 1))]
    for layer in layers:
        bound = layer.in_features**-0.5
        for p in layer.parameters():
            nn.init.uniform_(p, -bound, bound, generator=generator)
    return nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
