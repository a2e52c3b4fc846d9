"""An `AudioEBM`'s energies and their statistics as part of a graph.

The network may be any module, so that PyTorch's own exporter writes this part; windows and
log-mels are ours.
"""

from __future__ import annotations

__all__ = ["energies"]

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sance_audio.detection.rows import terms
from sance_audio.energy.referenced import CANDIDATES
from sance_audio.export.describe import log_mel, magnitudes
from sance_audio.export.graph import OPSET, Graph, Value, onnx
from sance_audio.model import AudioEBM


class _Statistics(nn.Module):
    """`detection.rows.statistics` in one piece."""

    def __init__(self, model: AudioEBM, learnt: bool):
        super().__init__()
        self.model, self.learnt = model, learnt
        self.candidates = min(CANDIDATES, int((model.reference.weight > 0).sum()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        density, noisy = self.model.density, x + self.model.jitter
        weight = self.model.reference.weight.log()
        c = (density.base.log_prob_all(noisy) + weight).argmax(1)
        if self.learnt:
            energy = -density.candidates(noisy, weight, self.candidates)[0].logsumexp(1)
        else:
            energy = density.reference_marginal(noisy, weight)
        s = terms(self.model, x, c, self.learnt)
        return energy, torch.cat([energy.unsqueeze(1), s], 1)


def energies(x: Value, model: AudioEBM, learnt: bool) -> tuple[Value, Value]:
    """Of a waveform `(N,)` at the model's peak: its energy `()` in nats, the mean over the model's
    windows, and the vector of its statistics `(2 S,)`.
    """
    cut = _windows(x, model.window)
    _, logs = log_mel(magnitudes(cut, model.features), model.features)
    features = (logs - model.features.mean.numpy()) / model.features.std.numpy()
    features = features.swapped(0, 2, 1).expanded(1)
    energy, s = include(x.graph, _exported(model, learnt), features)
    mean = s.mean(0)
    return energy.mean(), x.graph.joined([mean, s.max(0) - mean])


def _windows(x: Value, length: int) -> Value:
    """`audio.windows`: `(W, length)`, the last aligned to the end, a short clip centred."""
    extra = (length - x.count(0)).at_least(0)
    before = extra / 2
    x = x.padded(before, extra - before)
    last, hop = x.count(0) - length, max(1, length // 2)
    count = (last + (hop - 1)) / hop + 1
    starts = (x.graph.range(count) * hop).at_most(last)
    return x.at(starts.expanded(1) + np.arange(length)[None], 0)


def _exported(model: AudioEBM, learnt: bool) -> Any:
    """The statistics of log-mels `(W, 1, M, T)` as a graph of its own."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "exporting a model's energies needs onnxscript: pip install 'sance-audio[onnx]'"
        ) from error
    example = torch.zeros(2, 1, *model.shape)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Statistics(model, learnt).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("windows", min=1)},),
            verbose=False,
        )
    assert program is not None
    return onnx().inliner.inline_local_functions(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress and its advice are not the user's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def include(graph: Graph, part: Any, *inputs: Value) -> list[Value]:
    """The nodes of a model among a graph's own, under names of their own; its outputs."""
    names = {given.name: value.name for given, value in zip(part.graph.input, inputs, strict=True)}
    for constant in part.graph.initializer:
        names[constant.name] = f"part.{constant.name}"
        constant.name = names[constant.name]
        graph.constants.append(constant)
    for node in part.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for i, name in enumerate(node.output):
            names[name] = f"part.{name}" if name else ""
            node.output[i] = names[name]
        node.name = ""
        graph.nodes.append(node)
    return [Value(graph, names[out.name], np.float32) for out in part.graph.output]
