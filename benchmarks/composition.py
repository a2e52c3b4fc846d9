"""Digit and speaker at once, from two energies that were trained apart: how often are both right?

    python -m benchmarks.composition RUN_DIGITS RUN_SPEAKERS DIR [--num N] [--seed S]

The runs are finished ones of the digits recipe, one with `--by speaker`; DIR is the Free Spoken
Digit Dataset. All 60 pairs in balanced turn. Each clip is judged by its sound, by the two
classifiers of the runs, which were trained on the training clips; KID and FID are to training
clips, in the features of the digits' classifier, at equal numbers of clips. Shares have 95 %
Wilson intervals, KID a bootstrap interval; the difference is paired by seed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sance_audio import AudioEBM, evaluation, metrics
from sance_audio.assessment import analyse, classify
from sance_audio.composition import compose, draw
from sance_audio.files import read_json
from sance_audio.options import options_from
from sance_audio.preparation import Material, prepare
from sance_audio.recipe import load_recipe
from sance_audio.samplers import clip_seeds

PAIR = "7", "jackson"
PAIR_CLIPS = 100


@dataclass(frozen=True)
class Side:
    """A finished run, its corpus, and what it is judged by."""

    model: AudioEBM
    material: Material
    classifier: evaluation.Classifier


def side(run: Path, data: Path, by: str) -> Side:
    """A run of the digits recipe.

    Raises:
        ValueError: it is of other classes.
    """
    recipe = load_recipe("fsdd")
    options = options_from(read_json(run / "config.json"), recipe.PRESETS["cpu"])
    if options.by != by:
        raise ValueError(f"{run}: its classes are a {options.by} each, expected a {by}")
    options = replace(options, run=run, data=data)
    model = AudioEBM.from_pretrained(run)
    corpus = recipe.corpus(options)
    material = prepare(corpus, model.features, options, frames=model.frames, fitted=True)
    return Side(model, material, classify(model, material, options).classifier)


@dataclass(frozen=True)
class Judged:
    """Clips, as both classifiers hear them."""

    digit: evaluation.Described
    speaker: evaluation.Described

    @property
    def right(self) -> np.ndarray:
        """`(n, 3)`: digit, speaker, both."""
        digit, speaker = self.digit.right, self.speaker.right
        assert digit is not None
        assert speaker is not None
        return np.stack([digit, speaker, digit & speaker], 1)


def judged(sides: Sequence[Side], x: Tensor, wanted: Tensor) -> Judged:
    """Log-mels `(n, 1, M, T)` of sounds, meant as digits and speakers `(n, 2)`."""
    described = [
        evaluation.describe(one.classifier, x, y)
        for one, y in zip(sides, wanted.unbind(1), strict=True)
    ]
    return Judged(*described)


def rows(
    sides: Sequence[Side], wanted: Tensor, seed: int, weights: Sequence[float] | None
) -> dict[str, Callable[[], Tensor]]:
    """What makes the waveforms of each row of the table."""
    models = [one.model for one in sides]
    seeds = clip_seeds(torch.Generator().manual_seed(seed), len(wanted))

    def alone(k: int) -> Tensor:
        drawn, _ = models[k].draw(wanted[:, k].tolist(), seeds, truncation=0.0)  # as sums are
        return models[k].invert(drawn, seeds)

    def both(reference_only: bool) -> Tensor:
        how: Any = {"weights": weights, "reference_only": reference_only}
        return models[0].invert(draw(models, wanted.tolist(), seeds, **how), seeds)

    return {
        "digit energy alone": lambda: alone(0),
        "speaker energy alone": lambda: alone(1),
        "sum, references only": lambda: both(True),
        "sum of energies": lambda: both(False),
    }


def main(
    digits: Path, speakers: Path, data: Path, num: int, seed: int, weights: Sequence[float] | None
) -> None:
    torch.set_num_threads(1)
    began = time.perf_counter()
    sides = side(digits, data, "digit"), side(speakers, data, "speaker")
    first, model = sides[0], sides[0].model
    d, s = (len(one.model.labels) for one in sides)
    wanted = torch.tensor([(i % d, i // d % s) for i in range(num)])
    test = torch.stack([one.material.y["test"] for one in sides], 1)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    x_test = first.material.x["test"][order]
    sets = {"real test clips": judged(sides, x_test, test[order])}
    again = analyse(model, model.invert(x_test))
    sets["real through inversion"] = judged(sides, again, test[order])
    for name, waves in rows(sides, wanted, seed, weights).items():
        sets[name] = judged(sides, analyse(model, waves()), wanted)
    x, _ = first.material.some("train", 2500)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    real = evaluation.describe(first.classifier, x)
    equal = min(num, len(test), len(x))
    print(f"{'clips':24}{'n':>5}   {'digit':22}{'speaker':22}{'both':22}{'FID':>5}   KID x1000")
    for name, found in sets.items():
        print(f"{name:24}{len(found.right):5}   {described(found, real, model.labels, equal)}")
    difference(sets["sum of energies"], sets["sum, references only"], real)
    named(sides, seed, weights)
    print(f"FID and KID at {equal} clips; {(time.perf_counter() - began) / 60:.1f} minutes")


def described(
    found: Judged, real: evaluation.Described, kinds: tuple[str, ...], equal: int
) -> str:
    row = evaluation.row(found.digit, real, kinds, equal)
    kid = {key: 1000 * value for key, value in row["kid"].items()}
    shares = "".join(f"{share(right):22}" for right in found.right.T)
    return f"{shares}{row['fid']:5.2f}   {kid['value']:.0f} [{kid['low']:.0f}, {kid['high']:.0f}]"


def difference(ours: Judged, alone: Judged, real: evaluation.Described) -> None:
    gained = ours.right[:, 2].astype(float) - alone.right[:, 2]
    phi, phi_0 = ours.digit.phi, alone.digit.phi
    both = metrics.paired_interval(lambda i: float(gained[i].mean()), len(gained))
    fid = metrics.paired_interval(
        lambda i: (
            metrics.frechet_distance(phi[i], real.phi)
            - metrics.frechet_distance(phi_0[i], real.phi)
        ),
        len(phi),
    )
    words = (
        f"{name} {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        for name, d in (("both", both), ("FID", fid))
    )
    print(f"sum of energies less references only: {', '.join(words)}")


def named(sides: Sequence[Side], seed: int, weights: Sequence[float] | None) -> None:
    """One pair alone, by name."""
    parts = [(one.model, label) for one, label in zip(sides, PAIR, strict=True)]
    wanted = torch.tensor([m.labels.index(label) for m, label in parts]).expand(PAIR_CLIPS, 2)
    for name, reference_only in (("references only", True), ("energies", False)):
        g = torch.Generator().manual_seed(seed)
        waves = compose(parts, PAIR_CLIPS, g, weights=weights, reference_only=reference_only)
        right = judged(sides, analyse(parts[0][0], waves), wanted).right
        digit, speaker, both = (share(one) for one in right.T)
        print(
            f"{' + '.join(PAIR)}, sum of {name}, {PAIR_CLIPS} clips: digit {digit}, speaker "
            f"{speaker}, both {both}"
        )


def share(right: np.ndarray) -> str:
    """A share with its 95 % Wilson interval."""
    n, p, z = len(right), float(right.mean()), 1.96
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return f"{p:.3f} [{centre - half:.3f}, {centre + half:.3f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("digits", type=Path, help="run folder of the digits recipe")
    parser.add_argument("speakers", type=Path, help="run folder of the recipe with --by speaker")
    parser.add_argument("data", type=Path, help="folder of the corpus, with recordings/")
    parser.add_argument("--num", type=int, default=600, help="clips of each generated row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=float, nargs=2, default=None, metavar="W")
    a = parser.parse_args()
    main(a.digits, a.speakers, a.data, a.num, a.seed, a.weights)
