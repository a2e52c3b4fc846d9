"""An `EnergyDetector` as `model.onnx`, for one window of sound, and `model.json` beside it."""

from __future__ import annotations

__all__ = ["Exported", "deviation_of", "export_onnx"]

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sance_audio.audio import QUIETEST
from sance_audio.detection import EnergyDetector
from sance_audio.detection.conformal import Calibration
from sance_audio.detection.rows import LOWEST_RATE
from sance_audio.export.describe import described
from sance_audio.export.energies import energies
from sance_audio.export.graph import OPSET, Graph, Value, onnx
from sance_audio.export.scores import scored
from sance_audio.files import read_json, write_json, write_whole

KIND = "sance_audio detector"
VERSION = 1
"""Of the JSON file's format."""


class Exported(NamedTuple):
    """What was written."""

    model: Path
    about: Path
    nodes: int
    bytes: int


def export_onnx(detector: EnergyDetector, path: str | Path) -> Exported:
    """Write a fitted detector as an ONNX graph, and as JSON what is decided with its score.

    The graph takes `waveform` `(samples,)`, float32, mono, at the detector's rate, no longer than
    a window. It gives `anomaly_score` `()`, float64; `statistics`, the clip vectors one after the
    other, and `log_mel` `(M, T)`, float32; with a model also `energy` `()`, float32, in nats.
    The log-mel is in the graph. The windows of longer recordings, their mean, thresholds and
    p-values are not: the JSON file says what they are made of.

    Arguments:
        path: Ending in .onnx; the other file's name ends in .json instead.

    Raises:
        ValueError: another suffix; a JSON file of that name that is not ours; a rate below 8 kHz,
            whose windows are resampled; features whose edges reflect; a package that is missing.
        NotFittedError: a detector without a fit.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"{path}: expected a name ending in .onnx")
    about = path.with_suffix(".json")
    _refuse_foreign(path, about)
    detector._fitted()
    if detector.sample_rate_ < LOWEST_RATE:
        raise ValueError(
            f"export: a detector at {detector.sample_rate_} Hz resamples its windows to "
            f"{LOWEST_RATE} Hz, which no ONNX operator does; fit one with "
            f"sample_rate={LOWEST_RATE}"
        )
    graph, outputs, parts = _graph(detector)
    shapes: dict[str, list[Any]] = {
        "statistics": [sum(parts.values())],
        "log_mel": [None, "frames"],
    }
    shapes |= {name: [] for name in ("anomaly_score", "energy")}
    waveform = onnx().helper.make_tensor_value_info(
        "waveform", onnx().TensorProto.FLOAT, ["samples"]
    )
    model = graph.model([waveform], outputs, shapes)
    content = model.SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    write_json(about, _about(detector, parts, list(outputs)))
    return Exported(path, about, len(model.graph.node), len(content))


def _refuse_foreign(path: Path, about: Path) -> None:
    """Raise ValueError where what would be written over was not written here."""
    try:
        said = read_json(about) if about.exists() else {"format": KIND}
    except ValueError:
        said = None
    if not isinstance(said, dict) or said.get("format") != KIND:
        raise ValueError(
            f"{path}: {about} would be written too, and what stands there was not made by an "
            f"export; move it away, or give another name"
        )


def _graph(detector: EnergyDetector) -> tuple[Graph, dict[str, Value], dict[str, int]]:
    """The graph, its outputs, and the size of each clip vector."""
    own, graph = detector._describer, Graph()
    x = Value(graph, "waveform", np.float32)
    if own.peak is not None:
        x = x * (own.peak / graph.node("Abs", x).max(0, keep=True).at_least(QUIETEST))
    vectors, log_mel = described(x, own.descriptors)
    outputs: dict[str, Value] = {}
    if own.model is not None:
        outputs["energy"], vectors["energy"] = energies(x, own.model, own.learnt)
    if detector.score == "energy":
        score = outputs["energy"].cast(np.float64)
    else:
        score = scored(vectors, log_mel, detector._scorer)
    names = sorted(vectors)
    outputs |= {
        "anomaly_score": score.reshape(),
        "statistics": graph.joined([vectors[name] for name in names]),
        "log_mel": log_mel,
    }
    (row,) = own.described([(0, torch.zeros(own.length))])
    return graph, outputs, {name: len(row.vectors[name]) for name in names}


def _about(detector: EnergyDetector, parts: dict[str, int], outputs: list[str]) -> dict[str, Any]:
    """What the graph leaves to its user."""
    ends = np.cumsum(list(parts.values())).tolist()
    length = detector._describer.length
    return {
        "format": KIND,
        "version": VERSION,
        "opset": OPSET,
        "log_mel": "in the graph",
        "sample_rate": detector.sample_rate_,
        "window": length,
        "hop": max(1, length // 2),
        "last_window": "aligned to the end of the recording; a shorter recording is one window",
        "aggregate": detector.aggregate,
        "outputs": outputs,
        "statistics": {
            name: [end - parts[name], end] for name, end in zip(parts, ends, strict=True)
        },
        "alpha": detector.alpha,
        "threshold": -detector.offset_,
        "odd": "an aggregated anomaly_score above threshold",
        "p_value": "(1 + sum of weights whose score >= anomaly_score) / (1 + sum of weights)",
        "calibration": _scores(detector.calibration_),
        "window_calibration": _scores(detector.window_calibration_),
    }


def _scores(known: Calibration | None) -> dict[str, list[float]] | None:
    if known is None:
        return None
    return {"scores": known.scores.tolist(), "weights": known.weights.tolist()}


def deviation_of(path: str | Path, detector: EnergyDetector, clips: Iterable[Tensor]) -> float:
    """The largest difference, relative to max(1, |score|), between the graph's scores of windows
    `(N,)` and the detector's own.

    Raises:
        ValueError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("needs onnxruntime: pip install 'sance-audio[onnx]'") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for clip in clips:
        (score,) = session.run(["anomaly_score"], {"waveform": clip.numpy()})
        own = float(detector.assess_windows([[clip.unsqueeze(0)]])["anomaly_score"][0])
        largest = max(largest, abs(float(score) - own) / max(1.0, abs(own)))
    return largest
