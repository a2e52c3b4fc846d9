r"""Recipes of anomaly detection: fit on normals, judge what was held out, say how well it went.

A `Task` has its own normals and its own clips to judge. It is judged by two detectors, with
networks ("ours") and by reference statistics alone ("reference only"); `ranking` compares them.
"""

from __future__ import annotations

__all__ = ["ROWS", "Task", "conclude", "figures", "judge", "less", "refuse_several"]

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sance_audio import processes
from sance_audio.datasets.corpus import Clip
from sance_audio.detection import EnergyDetector
from sance_audio.files import read_json, write_json
from sance_audio.options import Results, RunOptions
from sance_audio.ranking import Case, auc, paired_auc, pauc
from sance_audio.scored_page import Beside, Scored, section, write

ROWS = {"ours": True, "reference only": False}
"""Rows of the tables, and whether networks count in them."""
Array = np.ndarray
Judged = dict[str, Any]
Heard = Callable[[Clip], tuple[Array, int]]


@dataclass(frozen=True)
class Task:
    """Normals to fit, clips to judge."""

    name: str
    """Of its folder in the run: "fan", or "dog/1"."""
    part: str
    """What its figures are grouped by: the machine, the class."""
    train: Sequence[Clip]
    groups: Sequence[str]
    """The recording of each of `train`."""
    test: Sequence[Clip]
    sorts: Sequence[str]
    """What is wrong with each of `test`; "" for a normal clip."""
    test_groups: Sequence[str]


def refuse_several() -> None:
    """Raise ValueError where a launcher started several processes: the work is one's."""
    if processes.count() > 1:
        raise ValueError("start this recipe in one process: it uses no other")


def judge(
    task: Task,
    options: RunOptions,
    hear: Heard,
    *,
    calibration: float | None = None,
    alpha: float = 0.05,
    show: int = 6,
    save: bool = False,
) -> Judged:
    """Fit and score; written to `RUN/TASK/judged.json`, and read from there where it stands.

    Arguments:
        hear: Gives the sound of a clip, and its rate in Hz.
        calibration: As of `EnergyDetector`.
        show: Oddest, and most ordinary, clips written for the page; 0 leaves the task out of it.
        save: Also write `detector.safetensors`.
    """
    file = options.run / task.name / "judged.json"
    names = [clip.name for clip in task.test]
    if file.exists():
        return _earlier(file, names)
    began = time.monotonic()
    normals, test = [hear(clip) for clip in task.train], [hear(clip) for clip in task.test]
    settings: Results = {"preset": options.preset, "seed": options.seed, "alpha": alpha}
    detectors = {
        row: EnergyDetector(learnt=learnt, calibration=calibration, **settings)
        for row, learnt in ROWS.items()
    }
    for detector in detectors.values():
        detector.fit(normals, groups=list(task.groups))
    about = {"task": task.name, "part": task.part, "fitted": len(normals), "names": names}
    judged = about | _marks(task, detectors, test)
    if show:
        judged["page"] = _section(detectors["ours"], task, judged, test, options.run, show)
    if save:
        detectors["ours"].save_pretrained(options.run / task.name)
    judged["seconds"] = time.monotonic() - began
    write_json(file, judged)
    return judged


def _earlier(file: Path, names: list[str]) -> Judged:
    """What stands of a task, if it is this corpus's."""
    known = read_json(file)
    if known["names"] != names:
        raise ValueError(
            f"{file}: {len(known['names'])} other clips were judged than the {len(names)} of "
            f"this corpus: name the folder that the run was started with, or another --run"
        )
    print(f"{file}: finished before")
    return known


def _marks(task: Task, detectors: dict[str, EnergyDetector], test: Sequence[Any]) -> Judged:
    marks = {row: detector.assess(test) for row, detector in detectors.items()}
    p = marks["ours"]["p_value"]
    return {
        "sorts": list(task.sorts),
        "groups": list(task.test_groups),
        "scores": {row: m["anomaly_score"].tolist() for row, m in marks.items()},
        "p_value": None if np.isnan(p).any() else p.tolist(),
    }


def _section(
    detector: EnergyDetector,
    task: Task,
    judged: Judged,
    test: Sequence[Any],
    run: Path,
    show: int,
) -> Judged:
    """What the page shows of a task; sounds and pictures go below RUN/samples."""
    p = judged["p_value"] or [None] * len(test)
    scored = [
        Scored(name, score, p_value, clip, sort or "normal")
        for name, score, p_value, clip, sort in zip(
            judged["names"], judged["scores"]["ours"], p, test, judged["sorts"], strict=True
        )
    ]
    store = Beside(run, f"samples/{task.name}")
    return section(detector, scored, store, show=show, title=task.name) | {"rows": []}


def figures(judged: Sequence[Judged], sort: str | None = None) -> Results:
    """By row of `ROWS`: `auc` and `pauc`, means over tasks; of one sort of odd clips against the
    normal ones, or of all.
    """
    out: Results = {}
    for row in ROWS:
        found = []
        for one in judged:
            sorts, score = np.array(one["sorts"]), np.array(one["scores"][row])
            taken = (sorts == "") | (True if sort is None else sorts == sort)
            odd = sorts[taken] != ""
            found.append((auc(odd, score[taken]), pauc(odd, score[taken])))
        out[row] = dict(zip(("auc", "pauc"), np.mean(found, 0).tolist(), strict=True))
    return out


def less(judged: Sequence[Judged]) -> dict[str, float]:
    """Mean AUC of ours less reference only, as `ranking.paired_auc` gives it."""
    return paired_auc(
        [
            Case(
                np.array(one["sorts"]) != "",
                one["groups"],
                *(np.array([one["scores"][row]]) for row in ROWS),
            )
            for one in judged
        ]
    )


def false_alarms(judged: Sequence[Judged], alpha: float) -> float | None:
    """Share of the normal clips judged whose p-value is at most alpha; None without p-values."""
    known = [(one["p_value"], one["sorts"]) for one in judged]
    p = [v for values, sorts in known for v, s in zip(values or (), sorts, strict=False) if not s]
    return float((np.array(p) <= alpha + 1e-9).mean()) if p else None


def conclude(
    recipe: str,
    options: RunOptions,
    judged: Sequence[Judged],
    table: tuple[str, Sequence[str], Sequence[Sequence[str]]],
    results: Results,
    alpha: float | None = None,
) -> None:
    """Print table and findings; write `results.json` and `index.html`.

    Arguments:
        table: Caption, header and rows.
        results: The figures, by name.
        alpha: Of the false alarms, where there are p-values.
    """
    gain, flagged = less(judged), None if alpha is None else false_alarms(judged, alpha)
    lines = [
        f"AUC of ours less reference only: {gain['value']:+.3f} [{gain['low']:+.3f}, "
        f"{gain['high']:+.3f}], 95 % paired bootstrap over recordings."
    ]
    if flagged is not None:
        lines.append(f"Normal clips flagged at alpha = {alpha:g}: {100 * flagged:.1f} %.")
    results = {
        **{"recipe": recipe, "findings": lines},
        **results,
        "ours_less_reference": gain,
        "alpha": alpha,
        "false_alarms": flagged,
        "seconds": sum(one["seconds"] for one in judged),
    }
    write_json(options.run / "results.json", results)
    sections = [one["page"] for one in judged if "page" in one]
    page = write(options.run / "index.html", recipe, sections, words=lines, tables=[table])
    _, header, rows = table
    print("\n| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    print("\n" + "\n".join(f"- {line}" for line in lines))
    print(f"\n{results['seconds'] / 60:.1f} minutes of fitting and scoring")
    print(f"listen: {page.resolve()}")
