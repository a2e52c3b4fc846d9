"""The temperature of generated clips, chosen on validation clips.

Chains are short and the network is small, so that clips of the trained density wander further than
recordings do. At a temperature below 1 they stay nearer to what is likely; too low, they are all
alike. Between the two, FID to the validation clips has a minimum, and near it lower temperatures
cost nothing and give clips that are recognised more often. The model and its reference alone each
have their own, by the same rule, so that the one is not compared with a worse choice of the other.
"""

from __future__ import annotations

__all__ = ["TEMPERATURES", "lowest", "temper"]

from collections.abc import Mapping

import torch
from torch import Tensor

from sance_audio import evaluation, metrics
from sance_audio.assessment import Judge, analyse
from sance_audio.model import AudioEBM
from sance_audio.options import Options, Results
from sance_audio.preparation import Material
from sance_audio.samplers import clip_seeds

TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
CLIPS, FEWEST = 300, 100
"""Clips at each temperature; validation clips without which nothing is chosen."""
TOLERANCE = 1.05
"""FID, of the least, that is as good."""
SEED = 10_000
"""Added to the run's: these clips are none of those that are judged later."""


def temper(model: AudioEBM, judge: Judge, material: Material, options: Options) -> Results:
    """Set the model's temperatures, and save it; the curves that they were chosen by.

    With `options.sampling_temperature`, that is the model's and the reference's stays at 1; with
    fewer than `FEWEST` validation clips, both do.
    """
    model.reference_temperature = 1.0
    model.sampling_temperature = options.sampling_temperature or 1.0
    x, _ = material.some("valid", CLIPS)
    found: Results = {"validation_clips": len(x), "curves": {}}
    if options.sampling_temperature is None and len(x) >= FEWEST:
        real = evaluation.describe(judge.classifier, x).phi
        for name, alone in (("ours", False), ("reference only", True)):
            found["curves"][name] = [
                {"temperature": t} | _figures(model, judge, options, real, t, alone)
                for t in TEMPERATURES
            ]
        fids = {
            name: {row["temperature"]: row["fid"] for row in curve}
            for name, curve in found["curves"].items()
        }
        model.sampling_temperature = lowest(fids["ours"])
        model.reference_temperature = lowest(fids["reference only"])
    model.save_pretrained(options.run)
    found |= {"ours": model.sampling_temperature, "reference only": model.reference_temperature}
    print(
        f"temperature of generated clips {found['ours']:g}, of the reference's "
        f"{found['reference only']:g}"
        + (f", chosen on {len(x)} validation clips" if found["curves"] else "")
    )
    return found


def lowest(fid: Mapping[float, float]) -> float:
    """The lowest temperature whose FID is within `TOLERANCE` of the least.

    >>> lowest({1.0: 1.27, 0.8: 1.14, 0.7: 1.12, 0.6: 1.17, 0.5: 1.31})
    0.6
    """
    best = min(fid.values())
    return min(t for t, value in fid.items() if value <= TOLERANCE * best)


def _figures(
    model: AudioEBM,
    judge: Judge,
    options: Options,
    real: evaluation.Array,
    temperature: float,
    alone: bool,
) -> Results:
    """FID to the validation clips, and accuracy where there are classes."""
    classes = model.classes(CLIPS)
    seeds = clip_seeds(torch.Generator().manual_seed(options.seed + SEED), CLIPS)
    x, _ = model.draw(classes, seeds, temperature=temperature, reference_only=alone)
    heard: Tensor = analyse(model, model.invert(x, seeds))
    meant = torch.tensor(classes) if model.labels else None
    clips = evaluation.describe(judge.classifier, heard, meant)
    found: Results = {"fid": float(metrics.frechet_distance(clips.phi, real))}
    return found | ({} if clips.right is None else {"accuracy": float(clips.right.mean())})
