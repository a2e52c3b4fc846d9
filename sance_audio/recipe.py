"""A recipe's entry and end: options from the command line; table, findings, results and page."""

from __future__ import annotations

__all__ = [
    "launch",
    "conclude",
    "evaluate_run",
    "findings",
    "load_recipe",
    "recipe_names",
    "one_line_errors",
]

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from sance_audio import processes
from sance_audio.assessment import evaluate, make
from sance_audio.files import read_json, write_json
from sance_audio.judges import CLASSIFIER_SEED, Judge, classify, judged_in
from sance_audio.model import AudioEBM
from sance_audio.options import Options, Results, RunOptions, options_from, parse
from sance_audio.preparation import prepare
from sance_audio.report import write_page
from sance_audio.verdicts import evaluation_findings, table

O = TypeVar("O", bound=RunOptions)
BEGAN = time.monotonic()


def launch(main: Callable[[O], None], presets: dict[str, O], description: str | None) -> None:
    """A recipe's entry point: options from the command line, then `main`; a user's mistake is one
    line, status 2.
    """
    with one_line_errors(f"python recipes/{Path(sys.argv[0]).parent.name}/train.py"):
        main(parse(presets, description or ""))


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn a user's mistake (ValueError), a full disk or a diverged run into one line on standard
    error and status 2.
    """
    from sance_audio.training import Diverged

    try:
        yield
    except (ValueError, OSError, Diverged) as error:
        if processes.is_main():  # errors of the first process are raised in all
            print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def conclude(name: str, results: Results, options: Options) -> None:
    """Print table and findings, write `results.json` and `index.html`, say where the page is."""
    results = {"recipe": name, "findings": findings(results), **results, "cost": _cost()}
    write_json(options.run / "results.json", results)
    page = write_page(options.run)
    print("\n" + "\n".join(table(results["evaluation"])))
    for title, row in results["anomalies"]["auc"].items():
        print(f"anomalies, {title:28} AUC {row['auc']:.3f}   pAUC {row['pauc']:.3f}")
    for line in results["findings"]:
        print(f"- {line}")
    cost = results["cost"]
    print(
        f"\n{cost['seconds'] / 60:.1f} minutes, peak memory {cost['peak_mib']:.0f} MiB (this call)"
    )
    print(f"listen: {page.resolve()}")


def findings(results: Results) -> list[str]:
    """What the figures say, in words that a figure decides."""
    gain, log_z = results["held_out_gain"], results["log_z"]
    sigmas = gain["mean"] / max(gain["standard_error"], 1e-9)
    lines = [
        f"Held-out log p_theta - log p_0: {gain['mean']:+.2f} nats a clip, standard error "
        f"{gain['standard_error']:.2f} "
        f"({sigmas:+.1f} of them, {gain['clips']} test clips); log Z annealed forwards "
        f"{log_z['forward']:.2f}, backwards "
        f"{log_z['reverse']:.2f}"
        + (
            ", the larger taken component by component."
            if log_z["exported"] == "annealing"
            else f"; taken: the ledger of weighted chains, {log_z['ledger']:.2f}, standard error "
            f"{log_z['ledger_standard_error'] or math.nan:.2f} per component."
        )
    ]
    lines += evaluation_findings(results["evaluation"])
    odd = results["anomalies"]
    if odd["note"]:
        lines.append(f"Detector: {odd['note']}.")
    if "alpha" in odd:
        lines.append(
            f"Held-out normal clips flagged at alpha = {odd['alpha']:.2g}: "
            f"{100 * odd['false_alarms']:.1f} %."
        )
    return lines


def evaluate_run(
    run: Path,
    data: Path | None = None,
    num: int | None = None,
    seed: int | None = None,
    judges: Sequence[int] = (CLASSIFIER_SEED,),
) -> dict[int, Results]:
    """The evaluation of a finished run, made anew with its model, its classifier and its corpus.

    Arguments:
        run: Run folder.
        data: Folder of the corpus, where it is not the one that the run was given.
        num: Clips to generate, where it is not the run's number.
        seed: Of the clips, where it is not the run's.
        judges: Seeds of the classifiers that judge the same clips; any but the usual one is
            trained afresh, once, and its figures stand in a file of their own.

    Returns:
        The evaluation by each judge.

    Raises:
        ValueError: no finished run of a known recipe; another classifier than the run was judged
            by before.
    """
    model = AudioEBM.from_pretrained(run)
    settings = read_json(run / "config.json")
    if not isinstance(settings, dict) or not isinstance(settings.get("recipe"), str):
        raise ValueError(f"{run / 'config.json'}: not the settings of a recipe's run")
    recipe = load_recipe(settings["recipe"])
    options = options_from(settings, recipe.PRESETS["cpu"])
    corpus = recipe.corpus(replace(options, run=run, data=data or options.data))
    if corpus.labels != model.labels:
        raise ValueError(
            f"--data: has the classes {', '.join(corpus.labels) or 'none'}, the model "
            f"{', '.join(model.labels) or 'none'}"
        )
    options = replace(options, run=run, evaluate=options.evaluate if num is None else num)
    material = prepare(corpus, model.features, options, frames=model.frames, fitted=True)
    options = options if seed is None else replace(options, seed=seed)
    known = {judge: classify(model, material, options, judge) for judge in judges}
    for judge in known.values():
        _same_judge(run, judge)
    made = make(model, material, options)
    found = {
        number: evaluate(model, judge, material, options, made)[0]
        for number, judge in known.items()
    }
    usual = found.get(CLASSIFIER_SEED)
    if usual and (run / "results.json").exists():  # so that the page tells of what it plays
        results = read_json(run / "results.json") | {"evaluation": usual}
        write_json(run / "results.json", results | {"findings": findings(results)})
        write_page(run)
    return found


def _same_judge(run: Path, judge: Judge) -> None:
    """Raise ValueError where a run was judged by another classifier of this name before."""
    before = run / judged_in(judge.seed)
    known = read_json(before).get("classifier", {}).get("sha256") if before.exists() else None
    if known not in (None, judge.sha256):
        raise ValueError(
            f"{run}: {judge.file} is not the one that {before.name} was made with; put that back, "
            f"or delete {before.name}"
        )


def _cost() -> dict[str, float]:
    """Wall-clock seconds since this module was imported, and the process's peak memory in MiB."""
    try:
        import resource
    except ImportError:  # there is no such module on Windows
        peak = 0.0
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"seconds": time.monotonic() - BEGAN, "peak_mib": peak}


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.parent.name for path in _home().glob("*/train.py"))


def load_recipe(name: str) -> ModuleType:
    """The `train.py` of a recipe, as a module: in a checkout's `recipes/`, or inside a wheel.

    Raises:
        ValueError: there is no such recipe.
    """
    if name not in recipe_names():
        raise ValueError(f"no recipe named {name!r}; there are: {', '.join(recipe_names())}")
    path = _home() / name / "train.py"
    spec = importlib.util.spec_from_file_location(f"sance_audio_recipes_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the help of its options is looked up
    spec.loader.exec_module(module)
    return module


def _home() -> Path:
    inside: Any = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "recipes"
