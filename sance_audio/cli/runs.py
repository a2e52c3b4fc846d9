"""Commands about a run as a whole: train, evaluate, page, info."""

from __future__ import annotations

__all__ = ["Evaluate", "Info", "Page", "evaluate", "info", "page", "train"]

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from sance_audio.options import parse
from sance_audio.recipe import load_recipe, recipe_names


@dataclass(frozen=True)
class Evaluate:
    """Judge a finished run anew: print the table, write evaluation.json and the closest pairs."""

    run: Positional[str]
    """Run folder."""
    data: Path | None = None
    """Folder of the corpus; where the run found it when left out."""
    num: int | None = None
    """Clips to generate; the run's own number when left out."""
    seed: int | None = None
    """Of the clips; the run's own when left out."""
    judges: tuple[int, ...] = (0,)
    """Seeds of the classifiers that judge: 0 is the run's own, any other one is trained afresh."""


@dataclass(frozen=True)
class Page:
    """(Re)build the listening page of a run, finished or not."""

    run: Positional[str]
    """Run folder."""
    zip: bool = False
    """Pack the page with the sounds that it plays into RUN/page.zip, to mail."""


@dataclass(frozen=True)
class Info:
    """Say what a run or model file holds."""

    run: Positional[str]
    """Run folder (or hf:owner/name)."""


def evaluate(args: Evaluate) -> None:
    from sance_audio.judges import judged_in
    from sance_audio.recipe import evaluate_run
    from sance_audio.verdicts import evaluation_findings, table

    found = evaluate_run(Path(args.run), args.data, args.num, args.seed, args.judges)
    for judge, results in found.items():
        print("\n".join(table(results)))
        for line in evaluation_findings(results):
            print(f"- {line}")
        print(f"figures in {Path(args.run) / judged_in(judge)}")


def page(args: Page) -> None:
    from sance_audio.report import bundle, write_page

    written = write_page(args.run)
    print(written.resolve())
    if args.zip:
        packed = bundle(written)
        size = packed.stat().st_size / 2**20
        print(f"{packed.resolve()}: {size:.1f} MiB; unpack it anywhere and open index.html")


def info(args: Info) -> None:
    from sance_audio.model import AudioEBM

    model = AudioEBM.from_pretrained(args.run)
    facts: dict[str, Any] = {
        "labels": model.labels,
        "sample_rate": model.sample_rate,
        "window_seconds": model.window / model.sample_rate,
        "components": model.reference.n_components,
        "parameters": sum(p.numel() for p in model.density.network.parameters()),
        **model.settings,
    }
    print(json.dumps(facts, indent=2))


def train(arguments: Sequence[str]) -> None:
    """Run a recipe by name, with the rest of the command line as its own."""
    names = ", ".join(recipe_names())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: sance-audio train RECIPE [options]\n\nrecipes: {names}\noptions: "
            f"sance-audio train RECIPE --help"
        )
        return
    recipe = load_recipe(arguments[0])
    program = f"sance-audio train {arguments[0]}"
    recipe.main(parse(recipe.PRESETS, recipe.__doc__ or "", arguments[1:], program))
