"""`index.html` of a run, from what the run wrote: finished, half-finished, or with files gone."""

from __future__ import annotations

__all__ = ["write_page"]

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sance_audio.files import atomic, read_json, read_jsonl
from sance_audio.health import summary
from sance_audio.model import AudioEBM
from sance_audio.pretrained import WEIGHTS
from sance_audio.report.cards import Deck
from sance_audio.report.film import film
from sance_audio.report.learning import curves, progress
from sance_audio.verdicts import cell, columns

TEMPLATE = Path(__file__).with_name("page.html.j2")
WANTED = {"recipe", "examples", "anomalies", "evaluation", "findings"}

Facts = dict[str, Any]


def write_page(run: str | Path) -> Path:
    """(Re)build the page of a run, all that there is to hear and see of it so far.

    What a film of clips that emerge is made of is drawn here, from the model, and kept.

    Raises:
        ValueError: a folder that is no run, or one that has nothing to show yet; what to run.
    """
    import jinja2

    run = Path(run)
    rows = read_jsonl(run / "metrics.jsonl")
    settings = _settings(run)
    results = _results(run, bool(rows))
    model = AudioEBM.from_pretrained(run) if results or not rows or _trained(run) else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE.name).render(
        name=results["recipe"] if results else settings.get("recipe", run.resolve().name),
        results=results,
        cell=cell,
        titles=columns(results["evaluation"]) if results else {},
        words=summary(rows),
        curves=curves(rows),
        about=_about(model, results, rows),
        **_shown(run, model, results, rows, settings),
    )
    path = run / "index.html"
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _trained(run: Path) -> bool:
    return (run / WEIGHTS).is_file()


def _settings(run: Path) -> Facts:
    """What the run was told, for words alone: a page does without."""
    try:
        found = read_json(run / "config.json")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _results(run: Path, begun: bool) -> Facts:
    """What the recipe found; empty where it has not come so far.

    Raises:
        ValueError: something else.
    """
    path = run / "results.json"
    if not path.exists():
        if _trained(run) and not begun:
            raise ValueError(
                f"{path}: not there, and nothing was recorded of a training: a page shows a "
                f"recipe's run (sance-audio train RECIPE --run {run})"
            )
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not found.keys() >= WANTED:
        raise ValueError(f"{path}: not the results of a recipe; run it again")
    return found


def _shown(
    run: Path, model: AudioEBM | None, results: Facts, rows: list[Facts], settings: Facts
) -> Facts:
    """Everything that is heard, by section, and what is missing, in words."""
    made = [c for c in results.get("examples", ()) if c["kind"] == "generated"]
    seeds = [c["seed"] for c in made] + [settings.get("seed", 0)]
    films = film(run, seeds[0]) if model is not None else []
    learnt = progress(run)
    odd = results.get("anomalies", {})
    pairs = _pairs(results)
    deck = Deck(run, _files([results.get("examples", []), odd, pairs, films, learnt]), model)
    near = [deck.deal([c["nearest"]]) if "nearest" in c else [] for c in made]
    here = [(c, n) for c, n in zip(made, near, strict=True) if c["file"] in deck.sounds]
    labels = dict.fromkeys(c["label"] if model and model.labels else "" for c, _ in here)
    groups = [
        (label, [(deck.card(c), n) for c, n in here if label in ("", c["label"])])
        for label in labels
    ]
    return {
        "groups": groups,
        "labels": _keyed([label for label in labels if label]),
        "triples": _triples(deck, results.get("examples", []), made),
        "truncated": model is not None and model.truncates,
        "films": [r for r in (deck.deal(frames) for frames in films) if r],
        "progress": [
            {"label": row["label"], "frames": deck.deal(row["frames"])} for row in learnt
        ],
        "pairs": [p for p in (deck.deal(pair) for pair in pairs) if len(p) == 2],
        "oddest": deck.deal(odd.get("oddest", [])),
        "ordinary": deck.deal(odd.get("most_ordinary", [])),
        "notes": _notes(run, deck.gone, results, rows, settings, made),
    }


def _keyed(labels: list[str]) -> list[tuple[str, str]]:
    """Classes with the key that shows each: digits are their own, others are counted, the tenth
    has 0 and those beyond none.
    """
    if all(len(label) == 1 and label in "0123456789" for label in labels):
        return [(label, label) for label in labels]
    keys = [*"1234567890", *[""] * len(labels)]
    return list(zip(labels, keys, strict=False))


def _files(found: Any) -> Iterator[str]:
    """Every "file" anywhere in what a page shows."""
    if isinstance(found, dict):
        if isinstance(found.get("file"), str):
            yield found["file"]
        found = list(found.values())
    if isinstance(found, list):
        for one in found:
            yield from _files(one)


def _triples(deck: Deck, examples: list[Facts], made: list[Facts]) -> list[list[Facts]]:
    """A recording, what analysis and inversion make of it, and a generated clip of its class."""
    kinds = [[c for c in examples if c["kind"] == k] for k in ("real", "resynthesised")]
    rows = []
    for i, (real, again) in enumerate(zip(*kinds, strict=False)):
        alike = [c for c in made if c["label"] == real["label"]] or made[i : i + 1]
        row = deck.deal([real, again, *alike[:1]])
        if len(row) == 3:
            rows.append(row)
    return rows


def _pairs(results: Facts) -> list[list[Facts]]:
    """Generated clips closest to a training clip, each with it."""
    closest = results["evaluation"]["memorisation"]["closest"] if results else []
    return [
        [
            {"file": p["generated"], "label": f"clip {p['index']}"},
            {"file": p["training"], "label": p["name"]},
        ]
        for p in closest
    ]


def _about(model: AudioEBM | None, results: Facts, rows: list[Facts]) -> list[str]:
    """A run in a few figures."""
    facts = []
    if model is not None:
        weights = sum(p.numel() for p in model.density.network.parameters())
        facts.append(f"{len(model.labels)} classes" if model.labels else "no classes")
        facts.append(f"{model.window / model.sample_rate:.2f} s at {model.sample_rate} Hz")
        facts.append(f"{weights:,} weights")
    if results.get("corpus"):
        facts.append(f"{results['corpus']['clips']['train']:,} training clips")
    if rows:
        facts.append(f"{rows[-1]['step']:,} training steps")
    if model is not None:
        warm = model.sampling_temperature
        at = f", at temperature {warm:g}" if warm != 1 else ""
        facts.append(f"{model.steps} Langevin steps a clip{at}")
        if model.truncates:
            facts.append(f"truncation {model.truncation:g}")
    return facts


def _notes(
    run: Path,
    gone: list[str],
    results: Facts,
    rows: list[Facts],
    settings: Facts,
    made: list[Facts],
) -> list[str]:
    """What is missing, and what to run for it."""
    again = f"sance-audio train {settings.get('recipe', 'RECIPE')} --run {run.resolve().name}"
    again = f"“{again}”, with the options that it was started with,"
    total = settings.get("train", {}).get("steps")
    notes = []
    if not results and not _trained(run):
        at = f"step {rows[-1]['step']} of {total}" if total else f"step {rows[-1]['step']}"
        notes.append(
            f"Not finished: training was at {at} when this page was written; {again} "
            f"goes on from its last checkpoint."
        )
    elif not results:
        notes.append(f"Trained, but not judged yet: {again} goes on from there.")
    elif not any("nearest" in c for c in made):
        notes.append(f"Nearest training clips were not written; {again} writes them.")
    if gone:
        few = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
        notes.append(f"{len(gone)} files are gone or cannot be read ({few}); {again} writes them.")
    return notes
