"""A recipe's entry and end: options from the command line; table, findings, results and page."""

from __future__ import annotations

__all__ = ["launch", "conclude", "findings", "load_recipe", "recipe_names", "one_line_errors"]

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from sance_audio.files import write_json
from sance_audio.report import write_page
from sance_audio.workflow import Options, Results, parse

O = TypeVar("O", bound=Options)
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
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def conclude(name: str, results: Results, options: Options) -> None:
    """Print table and findings, write `results.json` and `index.html`, say where the page is."""
    results = {"recipe": name, "findings": findings(results), **results, "cost": _cost()}
    write_json(options.run / "results.json", results)
    page = write_page(options.run)
    equal = f"fid_at_{results['n_equal']}"
    print(
        f"\n{'':24}{'clips':>7}{'accuracy':>10}{'IS':>7}"
        f"{equal.replace('_', ' '):>13}{'FID all':>9}"
    )
    for title, row in results["table"].items():
        print(
            f"{title:24}{row['clips']:7d}{row['accuracy']:10.3f}{row['inception_score']:7.2f}"
            f"{row[equal]:13.2f}{row['fid']:9.2f}"
        )
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
        f"{log_z['reverse']:.2f}, the larger taken component by component."
    ]
    for what, unit, better in (("fid", "FID", -1), ("accuracy", "accuracy", 1)):
        d = results[f"{what}_difference"]
        clear = d["high"] < 0 if better < 0 else d["low"] > 0
        verdict = "a gain" if clear else "no gain that excludes chance"
        lines.append(
            f"{unit}, ours less reference only: {d['difference']:+.3f}, 95 % interval "
            f"[{d['low']:+.3f}, {d['high']:+.3f}], "
            f"paired: {verdict}."
        )
    seen = results["table"]["ours"]["seen_as"]
    absent = [label for label, count in seen.items() if count == 0]
    lines.append(
        f"Kinds the classifier hears in ours: "
        f"{_list(seen)}{'; ABSENT: ' + ', '.join(absent) if absent else ''}."
    )
    memory = results["nearest_training_neighbour"]
    lines.append(
        f"Distance to the nearest training clip, over that of real test clips: "
        f"{memory['at_5_percent']:.2f} at the 5 % quantile, {memory['at_median']:.2f} in the "
        f"median (well below 1 would mean copies)."
    )
    made = results["generation"]
    lines.append(
        f"Generation at {made['real_time_factor']:.2f} s of computing a second of sound; "
        f"quietest clip "
        f"{made['quietest_rms_dbfs']:.1f} dBFS RMS; {made['clips_scaled_down']} clips scaled "
        f"down to avoid clipping."
    )
    if results["anomalies"]["note"]:
        lines.append(f"No detector: {results['anomalies']['note']}")
    else:
        rate = results["anomalies"]["false_alarms_at_0.05"]
        lines.append(f"Held-out normal clips flagged at alpha = 0.05: {100 * rate:.1f} %.")
    return lines


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


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{label} {count}" for label, count in counts.items())


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
