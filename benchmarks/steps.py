"""How many Langevin steps a clip needs: quality and cost of generated clips, a curve.

    python -m benchmarks.steps RUN [--data DIR] [--num 300] [--seed 1] [--steps 0 10 30 100 300]

RUN is a finished run of a recipe with labels, DIR its corpus, where it is no longer where the run
found it. Clips of one seed are drawn with each number of steps, as they come and with the run's
truncation, inverted, analysed and judged by the run's own classifier against training clips. The
last column is what drawing and inverting take, over the length of the sound.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sance_audio import AudioEBM, evaluation
from sance_audio.assessment import generate
from sance_audio.files import read_json
from sance_audio.judges import Judge, classify
from sance_audio.options import options_from
from sance_audio.preparation import Material, prepare
from sance_audio.recipe import load_recipe

STEPS = (0, 10, 30, 100, 300)
TITLES = ("steps", "truncation", "accuracy", "FID", "KID x1000", "recall", "real-time factor")


def loaded(run: Path, data: Path | None) -> tuple[AudioEBM, Material, Judge]:
    """The model of a run, its corpus and its judge."""
    model = AudioEBM.from_pretrained(run)
    settings = read_json(run / "config.json")
    recipe = load_recipe(settings["recipe"])
    options = options_from(settings, recipe.PRESETS["cpu"])
    options = replace(options, run=run, data=data or options.data)
    corpus = recipe.corpus(options)
    material = prepare(corpus, model.features, options, frames=model.frames, fitted=True)
    return model, material, classify(model, material, options)


def rows(
    run: Path, data: Path | None, num: int, seed: int, steps: Sequence[int]
) -> list[tuple[str, ...]]:
    """The table's rows, as text; of a model without a label network, those without truncation."""
    model, material, judge = loaded(run, data)
    if not model.labels:
        raise ValueError(f"{run}: an unlabelled model; nothing tells whether its clips are right")
    x, chosen = material.some("train", 2500)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    real = evaluation.describe(judge.classifier, x[order], material.y["train"][chosen][order])
    shares = (0.0, model.truncation or 0.1) if model.label_network is not None else (0.0,)
    found: list[tuple[str, ...]] = []
    for count in steps:
        for share in shares:
            made = generate(model, num, seed, steps=count, truncation=share)
            clips = evaluation.describe(judge.classifier, made.x, torch.tensor(made.classes))
            figures = evaluation.row(clips, real, judge.kinds, min(num, len(x)))
            factor = made.seconds / (num * model.window / model.sample_rate)
            found.append(
                (
                    str(count),
                    f"{share:g}",
                    f"{figures['accuracy']:.3f}",
                    f"{figures['fid']:.2f}",
                    f"{1000 * figures['kid']['value']:.0f}",
                    f"{figures['recall']:.2f}",
                    f"{factor:.2f}",
                )
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| " + " | ".join(TITLES) + " |\n" + "|---" * len(TITLES) + "|")
    for row in rows(args.run, args.data, args.num, args.seed, args.steps):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
