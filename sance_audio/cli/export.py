"""`sance-audio export`: a detector for other runtimes."""

from __future__ import annotations

__all__ = ["Export", "export"]

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

TOLERANCE = 1e-3
"""Difference of scores, of themselves, that is worth a word."""


@dataclass(frozen=True)
class Export:
    """Write a run's detector as an ONNX graph, and what is decided with it as JSON beside it."""

    run: Positional[str]
    """Run folder, with a detector, and its model if it has one."""
    out: Positional[Path]
    """File to write, .onnx; the other file's name ends in .json."""


def export(args: Export) -> None:
    from sance_audio.detection import EnergyDetector
    from sance_audio.export import deviation_of, export_onnx
    from sance_audio.export.graph import OPSET

    detector = EnergyDetector.from_pretrained(args.run)
    done = export_onnx(detector, args.out)
    print(
        f"{done.model}: {done.nodes} nodes of opset {OPSET}, {done.bytes / 1e6:.1f} MB; log-mels, "
        f"statistics and scores are in the graph\n{done.about}: rate, windows, threshold and the "
        f"scores that calibrate"
    )
    if importlib.util.find_spec("onnxruntime") is None:
        print("not checked: onnxruntime is not installed; pip install 'sance-audio[onnx]'")
        return
    largest = deviation_of(done.model, detector, _probes(detector))
    print(
        f"checked in onnxruntime: scores of noise, tones, clicks and silence differ by at most "
        f"{largest:.1e} of themselves"
        + ("; that is more than rounding should" if largest > TOLERANCE else "")
    )


def _probes(detector: Any) -> list[Any]:
    """Sounds of several lengths, up to a window."""
    import torch

    g, n = torch.Generator().manual_seed(0), round(detector.window_ * detector.sample_rate_)
    t = torch.arange(n) / detector.sample_rate_
    clicks = torch.zeros(n)
    clicks[:: max(1, detector.sample_rate_ // 5)] = 1.0
    tone = torch.sin(2 * torch.pi * 440 * t) + 0.01 * torch.randn(n, generator=g)
    noise = torch.randn(n, generator=g)
    return [noise, noise[: n // 3], noise[:50], tone, tone[: n // 2], clicks, torch.zeros(n)]
