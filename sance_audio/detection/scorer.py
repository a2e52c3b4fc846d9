r"""The score of a window: how atypical all that is known of it is.

    score = sum_v (z_M(v) + z_K(v)) + w mean_i (z_M(e_i) + z_K(e_i)) / 2

over the clip vectors v (`descriptors`; energy statistics where there is a model) and the inner
views e_i of two networks (`contrast`), each learnt on one half of the normals and compared with
the other half, which it did not see. z are the cross-fitted terms of `typicality`.
"""

from __future__ import annotations

__all__ = ["Network", "Scorer", "halves_of", "views_of"]

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sance_audio.chunks import threads_of
from sance_audio.detection.contrast import Contrast, ContrastConfig
from sance_audio.detection.descriptors import VECTORS
from sance_audio.detection.rows import Row, gathered
from sance_audio.detection.typicality import CONSTANT, FOLDS, Typicality, folds_of
from sance_audio.weights import below

NETWORK_WEIGHT = 4.0
"""w."""
HALVES = 2
FEWEST = 8
"""Windows below which no network is learnt."""

Array = np.ndarray
Network = tuple[Contrast, Typicality]
"""A network, with the typicality of its view."""


class Scorer:
    """Scores rows.

    Arguments:
        vectors: Typicality of each clip vector, by name.
        networks: Networks, each with the typicality of its view.
        normal: `(n,)`: scores of the rows it was fitted on, each under what did not see it.
    """

    def __init__(
        self,
        vectors: dict[str, Typicality],
        networks: Sequence[Network],
        normal: Array,
    ):
        self.vectors, self.networks, self.normal = vectors, list(networks), normal

    @classmethod
    def fit(
        cls, rows: Sequence[Row], groups: Array, seed: int, config: ContrastConfig | None
    ) -> Scorer:
        """On rows of normals and the recording `(n,)` of each; without networks where `config` is
        None.

        Raises:
            ValueError: normals that are all alike.
        """
        found = gathered(rows)
        if all((found[name].std(0) < CONSTANT).all() for name in VECTORS):
            raise ValueError(
                f"the {len(rows)} normal clips are all alike: there is no telling what else is "
                f"normal; pass different recordings"
            )
        (folds, halves), total = _splits(groups, seed), np.zeros(len(rows))
        vectors: dict[str, Typicality] = {}
        for name, v in sorted(found.items()):
            vectors[name], own = Typicality.fit(v, folds)
            total += own.sum(1)
        networks = []
        if config is not None and len(rows) >= FEWEST:
            for j in np.unique(halves):
                seen = [row.log_mel for row, h in zip(rows, halves, strict=True) if h != j]
                with threads_of(1), torch.enable_grad():
                    network = Contrast.fit(seen, config, seed * 10 + int(j))
                views = views_of(network, [r for r, h in zip(rows, halves, strict=True) if h == j])
                typicality, own = Typicality.fit(views, folds[halves == j])
                networks.append((network, typicality))
                total[halves == j] += NETWORK_WEIGHT * own.mean(1)
        return cls(vectors, networks, total)

    def __call__(self, rows: Sequence[Row]) -> Array:
        """`(n,)`: higher is odder."""
        found = gathered(rows)
        total = sum(t.z(found[name]).sum(1) for name, t in self.vectors.items())
        if self.networks:
            z = [t.z(views_of(network, rows)).mean(1) for network, t in self.networks]
            total = total + NETWORK_WEIGHT * np.mean(z, 0)
        return np.asarray(total)

    def tensors(self) -> dict[str, Tensor]:
        """What `restore` makes it again from."""
        out = {"normal": torch.from_numpy(self.normal)}
        for name, typicality in self.vectors.items():
            out |= _tensors(f"vector.{name}.", typicality)
        for i, (network, typicality) in enumerate(self.networks):
            out |= _tensors(f"view.{i}.", typicality)
            out |= {f"network.{i}.{k}": v for k, v in network.tensors().items()}
        return out

    @classmethod
    def restore(cls, tensors: dict[str, Tensor]) -> Scorer:
        """Of what `tensors` gave, one for domains too."""
        if "target.normal" in tensors:
            from sance_audio.detection.domains import DomainScorer

            return DomainScorer.restore(tensors)

        def typicality(prefix: str) -> Typicality:
            arrays = {k: v.numpy().copy() for k, v in below(tensors, prefix).items()}
            return Typicality.restore(arrays)  # copies are aligned, as what was fitted is

        names = dict.fromkeys(k.split(".")[1] for k in tensors if k.startswith("vector."))
        numbers = sorted({int(k.split(".")[1]) for k in tensors if k.startswith("view.")})
        networks = [
            (Contrast.restore(below(tensors, f"network.{i}.")), typicality(f"view.{i}."))
            for i in numbers
        ]
        vectors = {name: typicality(f"vector.{name}.") for name in sorted(names)}
        return cls(vectors, networks, tensors["normal"].numpy())


def halves_of(groups: Array, seed: int) -> Array:
    """The half `(n,)` that each row's view is judged with: that of the network of its number."""
    return _splits(groups, seed)[1]


def _splits(groups: Array, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return folds_of(groups, FOLDS, rng), folds_of(groups, HALVES, rng)


def views_of(network: Contrast, rows: Sequence[Row]) -> Array:
    """What a network says of rows, `(n, D)`."""
    with threads_of(1):
        return np.stack([network(row.log_mel)[0] for row in rows])


def _tensors(prefix: str, typicality: Typicality) -> dict[str, Tensor]:
    return {
        prefix + k: torch.from_numpy(np.array(v, order="C"))
        for k, v in typicality.arrays().items()
    }
