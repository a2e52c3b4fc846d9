"""`detection.scorer` as a graph: typicality of vectors in double precision, networks in single."""

from __future__ import annotations

__all__ = ["scored"]

import math

import numpy as np

from sance_audio.detection.contrast import SHORTEST, Contrast
from sance_audio.detection.descriptors import FLOOR
from sance_audio.detection.domains import DomainScorer
from sance_audio.detection.scorer import NETWORK_WEIGHT, Scorer
from sance_audio.detection.typicality import NEAREST, Fold, Typicality
from sance_audio.export.describe import deviation
from sance_audio.export.graph import Value


def scored(vectors: dict[str, Value], log_mel: Value, scorer: Scorer) -> Value:
    """The anomaly score `()` of a window, in double precision."""
    if isinstance(scorer, DomainScorer):
        each = (scored(vectors, log_mel, one) for one in (scorer.source, scorer.target))
        return log_mel.graph.node("Min", *each)
    total = [typical(vectors[name], t).sum() for name, t in scorer.vectors.items()]
    views = [typical(view(log_mel, net), t).mean() for net, t in scorer.networks]
    if views:
        total.append(log_mel.graph.total(views) * (NETWORK_WEIGHT / len(views)))
    return log_mel.graph.total(total)


def typical(v: Value, typicality: Typicality) -> Value:
    """z `(2,)` of a vector `(D,)`."""
    v = v.cast(np.float64)
    terms = v.graph.total([_terms(v, fold) for fold in typicality.folds])
    return (terms / len(typicality.folds) - typicality.centre) / typicality.spread


def _terms(v: Value, fold: Fold) -> Value:
    z = (v - fold.mean) * fold.scale
    square = (z @ fold.precision * z).sum(0, keep=True)
    distance = (z - fold.normals).square().sum(1).sqrt()
    if fold.radius is None:
        count = min(NEAREST, len(fold.normals))
    else:
        distance, count = distance / fold.radius, 1
    near = distance.sorted(count, largest=False)[0].mean(0, keep=True)
    return v.graph.joined([(square + 1e-9).log() * 0.5, (near + 1e-9).log()])


def view(log_mel: Value, network: Contrast) -> Value:
    """Mean and deviation over time of what a network's heads read, `(2 width,)`, of `(M, T)`."""
    short = (SHORTEST - log_mel.count(1)).at_least(0)
    x = log_mel.padded(0, short, math.log(FLOOR))
    x = ((x - network.mean.numpy()) / network.scale.numpy()).expanded(0)
    h = _convolved(x, network.energies.stem)
    for block in network.energies.blocks:
        h = (h + _convolved(h.silu(), block)) / math.sqrt(2)
    h = h.reshape(len(network.energies.stem.weight), -1)
    return x.graph.joined([h.mean(1), deviation(h, 1)])


def _convolved(x: Value, layer: object) -> Value:
    weight, bias = (x._of(getattr(layer, name).detach().numpy()) for name in ("weight", "bias"))
    padding, dilation, stride = (
        list(getattr(layer, name)) for name in ("padding", "dilation", "stride")
    )
    return x.graph.node(
        "Conv", x, weight, bias, pads=padding * 2, dilations=dilation, strides=stride
    )
