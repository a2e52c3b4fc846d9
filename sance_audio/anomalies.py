"""The step of a recipe that finds odd clips: fits the detector, and compares it with baselines."""

from __future__ import annotations

__all__ = ["backwards", "detect"]

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sance_audio import audio, evaluation, ranking
from sance_audio.assessment import analyse
from sance_audio.datasets import FileSource
from sance_audio.detection import EnergyDetector
from sance_audio.detection.splits import SHARE
from sance_audio.model import AudioEBM
from sance_audio.options import Options, Results
from sance_audio.preparation import Material

SCREENED = 2_000
"""Clips of a split that are scored, at most."""
SHOWN = 20
"""Seconds of a clip on the page, at most."""
BACKWARDS = 500
"""Test clips played backwards, at most."""
ALPHA = 0.05
"""False-alarm rate, where there are clips enough to calibrate it."""


def backwards(
    model: AudioEBM, material: Material, seconds: float | None = None
) -> list[tuple[str, Tensor]]:
    """Test clips, or their first seconds, played backwards: spectra, levels and lengths are those
    of recordings. Each with a name, at the model's rate, as `detect` takes odd sounds.
    """
    out = []
    for i in material.chosen_clips("test", BACKWARDS):
        clip = material.clips["test"][i]
        wave = material.wave("test", i, model.sample_rate, seconds).flip(0)
        out.append((f"{clip.label} backwards ({clip.name})".lstrip(), wave))
    return out


def detect(
    model: AudioEBM,
    material: Material,
    options: Options,
    odd: Sequence[tuple[str, Tensor]] = (),
    show: int = 6,
) -> Results:
    """Fit the detector on the validation clips, score the test clips and the odd ones, compare
    with baselines.

    Clips too few for a false-alarm rate of 5 % give the lowest that they can calibrate.

    Arguments:
        odd: Sounds of no class, as (name, waveform at the model's rate); none leaves out the AUCs.
        show: Oddest and most ordinary clips written for the page.
    """
    out: Results = {"oddest": [], "most_ordinary": [], "auc": {}, "note": ""}
    chosen = material.chosen_clips("test", SCREENED)
    test = [material.clips["test"][i] for i in chosen]
    try:
        detector, alone = (
            _fitted(model, material, options, learnt=learnt) for learnt in (True, False)
        )
    except ValueError as error:
        print(f"no detector: {error}", file=sys.stderr)
        return out | {"note": str(error)}
    if detector.alpha > ALPHA:
        out["note"] = (
            f"{len(material.clips['valid'])} validation clips calibrate false-alarm rates of "
            f"{detector.alpha:.2f} and more; for {ALPHA} there must be "
            f"{EnergyDetector(model, alpha=ALPHA).clips_needed}"
        )
        print(out["note"], file=sys.stderr)
    detector.save_pretrained(options.run)

    def clips() -> Iterator[Any]:
        return chain(_clips(model, material, "test"), (wave for _, wave in odd))

    names = [f"{clip.label} ({clip.name})" if clip.label else clip.name for clip in test]
    names += [name for name, _ in odd]
    marks = detector.assess(clips())
    is_odd = np.arange(len(names)) >= len(test)

    def card(i: int, kind: str, rank: int) -> Results:
        file = f"samples/{kind}_{rank}.wav"
        if i < len(test):
            sound = material.wave("test", chosen[i], model.sample_rate, SHOWN)
        else:
            sound = odd[i - len(test)][1][: SHOWN * model.sample_rate]
        audio.write(options.run / file, sound, model.sample_rate)
        return {"file": file, "label": names[i], "odd": bool(is_odd[i])} | {
            key: float(value[i]) for key, value in marks.items()
        }

    order = np.argsort(-marks["anomaly_score"], kind="stable")
    if odd:
        x = material.x["valid"][:]
        sounds = [material.wave("test", i, model.sample_rate) for i in chosen]
        sounds += [wave for _, wave in odd]
        baselines = {
            "ours": marks["anomaly_score"],
            "reference only": alone.anomaly_score(clips()),
            "log-mel statistics + kNN": evaluation.knn_scores(x, analyse(model, sounds)),
        }
        out["auc"] = {
            name: {"auc": ranking.auc(is_odd, score), "pauc": ranking.pauc(is_odd, score)}
            for name, score in baselines.items()
        }
    return out | {
        "oddest": [card(int(i), "oddest", k) for k, i in enumerate(order[:show])],
        "most_ordinary": [card(int(i), "ordinary", k) for k, i in enumerate(order[::-1][:show])],
        "alpha": detector.alpha,
        "false_alarms": float((marks["p_value"][~is_odd] <= detector.alpha).mean()),
    }


def _fitted(
    model: AudioEBM, material: Material, options: Options, *, learnt: bool
) -> EnergyDetector:
    """A detector at 5 % false alarms, or the lowest rate that the validation clips allow."""
    n = len(material.chosen_clips("valid", SCREENED))
    if n < 3:
        raise ValueError(f"{n} validation clips are too few to calibrate one; there must be 3")
    detector = EnergyDetector(model, seed=options.seed, learnt=learnt)
    if n < detector.clips_needed:
        calibrating = max(1, round(SHARE * n))
        detector.set_params(alpha=1 / (calibrating + 1))
    return detector.fit(_clips(model, material, "valid"))


def _clips(model: AudioEBM, material: Material, split: str) -> Iterator[Path | Tensor]:
    """Clips of a split as the detector takes them: whole files by path, for it to read in parts;
    others as waveforms, one after the other.
    """
    for i in material.chosen_clips(split, SCREENED):
        clip = material.clips[split][i]
        if isinstance(clip.source, FileSource) and clip.source.whole:
            yield clip.source.path
        else:
            yield material.wave(split, i, model.sample_rate)
