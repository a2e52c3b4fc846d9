r"""Recipes of anomaly detection: fit on normals, judge what was held out, say how well it went.

A `Task` has its own normals and its own clips to judge. It is judged by two detectors, with
networks ("ours") and by reference statistics alone ("reference only"); `ranking` compares them.
Clips without a label are scored beside them.
"""

from __future__ import annotations

__all__ = [
    "ROWS",
    "Task",
    "conclude",
    "figures",
    "false_alarms",
    "is_judged",
    "judge",
    "less",
    "refuse_several",
]

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sance_audio import processes
from sance_audio.audio import AudioError
from sance_audio.datasets.corpus import Clip
from sance_audio.detection import EnergyDetector
from sance_audio.detection.domains import DOMAINS, FEWEST, DomainDetector
from sance_audio.files import read_json, write_json
from sance_audio.options import Results, RunOptions
from sance_audio.ranking import Case, auc, paired_auc, pauc, shown_gain
from sance_audio.scored_page import Beside, Scored, section, write

ROWS = {"ours": True, "reference only": False}
"""Rows of the tables, and whether networks count in them."""
Array = np.ndarray
Judged = dict[str, Any]
Hear = Callable[[Clip], tuple[Array, int]]


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
    domains: Sequence[str] = ()
    """Of each of `train`; `()` where there are none to tell apart."""
    unlabelled: Sequence[Clip] = ()
    """Clips to score, of which nobody says what is wrong with them."""


class Heard:
    """A clip that is heard anew each time it is needed: an array, and as a pair that and its rate
    in Hz.
    """

    def __init__(self, clip: Clip, hear: Hear):
        self._clip, self._hear = clip, hear

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self._hear(self._clip)[0], dtype)

    def __getitem__(self, i: int) -> Any:
        return self._hear(self._clip)[i]


def refuse_several() -> None:
    """Raise ValueError where a launcher started several processes: the work is one's."""
    if processes.count() > 1:
        raise ValueError("start this recipe in one process: it uses no other")


def judge(
    task: Task,
    options: RunOptions,
    hear: Hear,
    *,
    calibration: float | None = None,
    alpha: float = 0.05,
    show: int = 6,
    save: bool = False,
    rate: int | None = None,
) -> Judged:
    """Fit and score; written to `RUN/TASK/judged.json`, and read from there where it stands.

    Arguments:
        hear: Gives the sound of a clip, and its rate in Hz.
        calibration: As of `EnergyDetector`.
        show: Oddest, and most ordinary, clips written for the page; 0 leaves the task out of it.
        save: Also write `detector.safetensors`.
        rate: In Hz, of clips too many to be held: each is heard when it is needed; what cannot be
            read is left out, and named in `unread`. None: all are held.
    """
    file = options.run / task.name / "judged.json"
    if file.exists():
        return _earlier(file, task)
    began = time.monotonic()
    task, unread = (task, []) if rate is None else _readable(task, hear)
    take = hear if rate is None else functools.partial(Heard, hear=hear)
    every = (task.train, task.test, task.unlabelled)
    normals, test, others = ([take(clip) for clip in clips] for clips in every)
    settings: Results = {"preset": options.preset, "seed": options.seed, "alpha": alpha}
    detectors = _fitted(
        task, normals, settings | {"calibration": calibration, "sample_rate": rate}
    )
    judged = {"task": task.name, "part": task.part, "fitted": len(normals), "unread": unread}
    judged |= _marks(task, detectors, test, others)
    if show:
        judged["page"] = _section(detectors["ours"], task, judged, test, others, options.run, show)
    if save:
        detectors["ours"].save_pretrained(options.run / task.name)
    judged["seconds"] = time.monotonic() - began
    write_json(file, judged)
    return judged


def _fitted(task: Task, normals: Sequence[Any], settings: Results) -> dict[str, DomainDetector]:
    """A detector of each of `ROWS`."""
    detectors = {row: DomainDetector(learnt=learnt, **settings) for row, learnt in ROWS.items()}
    about: Results = {"groups": list(task.groups), "domains": list(task.domains) or None}
    for detector in detectors.values():
        try:
            detector.fit(normals, **about)
        except AudioError:  # names its file
            raise
        except ValueError as error:
            raise ValueError(f"{task.name}: {error}") from error
    return detectors


def _earlier(file: Path, task: Task) -> Judged:
    """What stands of a task, if it is this corpus's."""
    known = read_json(file)
    left_out = {name for name, _ in known.get("unread", ())}
    found = [*known["names"], *known.get("unlabelled", {}).get("names", ())]
    clips = [c.name for c in (*task.test, *task.unlabelled) if c.name not in left_out]
    if found != clips:
        raise ValueError(
            f"{file}: {len(found)} other clips were judged than the {len(clips)} of "
            f"this corpus: name the folder that the run was started with, or another --run"
        )
    print(f"{file}: finished before")
    return known


def _readable(task: Task, hear: Hear) -> tuple[Task, list[tuple[str, str]]]:
    """A task without the clips that cannot be read; their names, each with the reason."""
    unread = []
    for clip in (*task.train, *task.test, *task.unlabelled):
        try:
            hear(clip)
        except AudioError as error:
            unread.append((clip.name, str(error)))
    return _without(task, {name for name, _ in unread}), unread


def _without(task: Task, names: set[str]) -> Task:
    """A task without some of its clips."""

    def kept(clips: Sequence[Clip], *columns: Sequence[Any]) -> list[list[Any]]:
        stay = [clip.name not in names for clip in clips]
        every = (clips, *columns)
        return [[x for x, s in zip(c, stay, strict=True) if s] if c else [] for c in every]

    train, groups, domains = kept(task.train, task.groups, task.domains)
    test, sorts, test_groups = kept(task.test, task.sorts, task.test_groups)
    unlabelled = kept(task.unlabelled)[0]
    for what, clips, before in (
        ("normal clips", train, task.train),
        ("clips to judge", [*test, *unlabelled], [*task.test, *task.unlabelled]),
    ):
        if not clips:
            raise ValueError(f"{task.name}: none of its {len(before)} {what} can be read")
    if domains and min(map(domains.count, DOMAINS)) < FEWEST:
        print(f"{task.name}: too few of a domain can be read, domains are not told apart")
        domains = []
    parts: Results = {"train": train, "groups": groups, "domains": domains, "test": test}
    parts |= {"sorts": sorts, "test_groups": test_groups, "unlabelled": unlabelled}
    return replace(task, **parts)


def _marks(
    task: Task, detectors: dict[str, DomainDetector], test: Sequence[Any], others: Sequence[Any]
) -> Judged:
    marks = {row: detector.assess([*test, *others]) for row, detector in detectors.items()}
    p = marks["ours"]["p_value"][: len(test)]
    scores = {row: m["anomaly_score"].tolist() for row, m in marks.items()}
    out: Judged = {
        "names": [clip.name for clip in task.test],
        "sorts": list(task.sorts),
        "groups": list(task.test_groups),
        "scores": {row: s[: len(test)] for row, s in scores.items()},
        "p_value": None if np.isnan(p).any() else p.tolist(),
    }
    if others:
        out["unlabelled"] = {
            "names": [clip.name for clip in task.unlabelled],
            "scores": {row: s[len(test) :] for row, s in scores.items()},
        }
    out["threshold"] = detectors["ours"].gamma_threshold()
    return out


def _section(
    detector: EnergyDetector,
    task: Task,
    judged: Judged,
    test: Sequence[Any],
    others: Sequence[Any],
    run: Path,
    show: int,
) -> Judged:
    """What the page shows of a task, of its unlabelled clips where it has no others; sounds and
    pictures go below RUN/samples.
    """
    shown, clips = (judged, test) if test else (judged["unlabelled"], others)
    p = judged["p_value"] or [None] * len(clips)
    notes = [sort or "normal" for sort in judged["sorts"]] or [""] * len(clips)
    columns = shown["names"], shown["scores"]["ours"], p, clips, notes
    scored = [Scored(*one) for one in zip(*columns, strict=True)]
    store = Beside(run, f"samples/{task.name}")
    return section(detector, scored, store, show=show, title=task.name) | {"rows": []}


def is_judged(one: Judged) -> bool:
    """Whether a task has normal clips and odd ones to tell apart."""
    return "" in one["sorts"] and any(one["sorts"])


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
    gain: dict[str, float] | None = None,
    words: Sequence[str] = (),
) -> None:
    """Print table and findings; write `results.json` and `index.html`.

    Arguments:
        table: Caption, header and rows.
        results: The figures, by name.
        alpha: Of the false alarms, where there are p-values.
        gain: Of ours over reference only; of `less` when None, where clips are labelled.
        words: Findings that come first.
    """
    flagged = None if alpha is None else false_alarms(judged, alpha)
    if gain is None and any(map(is_judged, judged)):
        gain = less([one for one in judged if is_judged(one)])
    lines = [*words, *_said(gain, flagged, alpha)]
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


def _said(
    gain: dict[str, float] | None, flagged: float | None, alpha: float | None
) -> Iterable[str]:
    if gain is not None:
        yield (
            f"AUC of ours less reference only: {shown_gain(gain)}, 95 % paired bootstrap over "
            f"recordings."
        )
    if flagged is not None:
        yield f"Normal clips flagged at alpha = {alpha:g}: {100 * flagged:.1f} %."
