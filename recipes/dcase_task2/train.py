"""DCASE task 2: odd sounds of machines, from normal ones alone; the official scores of its year,
and the files of a submission.

    python recipes/dcase_task2/train.py --year 2023 --data DIR --run runs/dcase2023

A detector is fitted to the normals of each machine and section. Labelled test clips are judged by
the rules of the year; unlabelled ones are scored. From 2022 on nobody says which domain a test
clip is of: a clip is as odd as the nearer domain finds it. RUN/submission holds the files to hand
in: of the evaluation set where it is there, else of the development set. The detectors stand in
RUN/fan/00 and so on: `sance-audio score RUN/fan/00 PATH`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sance_audio.challenge import YEARS, Figures, Section, comparisons, figures, official, submit
from sance_audio.datasets import dcase
from sance_audio.datasets.sections import Listing, SectionClip
from sance_audio.monitoring import SectionOptions, cells, describe, sections
from sance_audio.options import Results
from sance_audio.ranking import Case, paired_auc, shown_gain
from sance_audio.recipe import launch
from sance_audio.screening import ROWS, Judged, conclude, is_judged, refuse_several
from sance_audio.workflow import connect, start

GENERAL = 2022
"""Year from which on the domain of a test clip is not known."""


@dataclass(frozen=True)
class DcaseOptions(SectionOptions):
    """Options of the recipe of DCASE's task 2."""

    run: Path = Path("runs/dcase_task2")
    """Run folder. The same command again goes on, section by section."""
    year: int = 2023
    """2020 to 2026."""
    evaluation: bool = False
    """Download the evaluation set too, where no folder is given."""
    domains: bool = True
    """From 2022 on, compare a clip with both domains; off: with all normals alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.year not in YEARS:
            raise ValueError(f"--year is {YEARS[0]} to {YEARS[-1]}, found {self.year}")


PRESETS = {
    "smoke": DcaseOptions(preset="smoke", fewest=4, show=1),
    "cpu": DcaseOptions(preset="cpu"),
    "gpu": DcaseOptions(preset="gpu"),
}
ROW = list(ROWS)


def main(options: DcaseOptions) -> None:
    refuse_several()
    device = connect(options)
    corpus = dcase.listing(
        options.data,
        options.year,
        machines=options.machines or None,
        evaluation=options.evaluation,
    )
    start(options, "dcase_task2", device)
    apart = options.domains and options.year >= GENERAL
    found = sections(corpus, options.fewest, domains=apart)
    describe(corpus, found.notes)
    judged = list(found.judged(options, calibration=0.0))
    clips = {clip.name: clip for clip in corpus.clips}
    by_task = {one["task"]: of_section(options.year, one, clips) for one in judged}
    scores, table = summary(corpus, options.year, judged, clips, by_task)
    files = submission(options, judged, clips)
    unread = [line for one in judged for line in one["unread"]]
    words = [*said(scores), *missing(judged, by_task), *found.notes, *lost(unread)]
    words.append(f"Submission: {len(files)} files of the {files_of(judged)} set in submission/.")
    results = {
        **{"year": options.year, "corpus": corpus.name, "licence": corpus.licence},
        "official": scores,
        "sections": {
            task: {row: one.known for row, one in rows.items()} for task, rows in by_task.items()
        },
        "missing": {task: rows["ours"].missing for task, rows in by_task.items()},
        "unread": unread,
        "problems": corpus.problems,
        "submission": [path.name for path in files],
    }
    more = gain(options.year, judged, clips)
    conclude("dcase_task2", options, judged, table, results, gain=more, words=words)


def of_section(year: int, one: Judged, clips: dict[str, SectionClip]) -> dict[str, Figures]:
    """The figures of each row."""
    odd = np.array([bool(sort) for sort in one["sorts"]], bool)
    domains = [clips[name].domain for name in one["names"]]
    return {row: figures(year, odd, domains, np.array(one["scores"][row])) for row in ROWS}


def gain(
    year: int, judged: Sequence[Judged], clips: dict[str, SectionClip]
) -> dict[str, float] | None:
    """Mean of the official AUCs of ours less that of reference only; clips are drawn again."""
    cases = []
    for one in filter(is_judged, judged):
        odd = np.array([bool(sort) for sort in one["sorts"]])
        groups, domains = np.array(one["groups"]), [clips[name].domain for name in one["names"]]
        for name, normal, anomaly in comparisons(year, odd, domains):
            taken = normal | anomaly
            if not name.endswith("pAUC") and normal.any() and anomaly.any():
                scores = (np.array([one["scores"][row]])[:, taken] for row in ROWS)
                cases.append(Case(odd[taken], groups[taken].tolist(), *scores))
    return paired_auc(cases) if cases else None


def summary(
    corpus: Listing,
    year: int,
    judged: Sequence[Judged],
    clips: dict[str, SectionClip],
    by_task: dict[str, dict[str, Figures]],
) -> tuple[Results, tuple[str, list[str], list[list[str]]]]:
    """Official scores by row, and the table: a line a section, a machine, and all."""
    names = [name for name, _, _ in comparisons(year, np.zeros(0, bool), [])]
    machines: dict[str, list[Judged]] = {}
    for one in judged:
        machines.setdefault(one["part"], []).append(one)

    def score(row: str, some: dict[str, list[Judged]]) -> float | None:
        return official(year, {m: [by_task[o["task"]][row] for o in s] for m, s in some.items()})

    def line(title: str, part: str, some: dict[str, list[Judged]], own: list[str]) -> list[str]:
        every = [one for ones in some.values() for one in ones]
        both = cells(*(score(row, some) for row in ROWS))
        return [title, part, *own, *both, shown_gain(gain(year, every, clips))]

    rows, none = [], ["-" for _ in ("normals", *names)]
    for machine, ones in machines.items():
        for one in ones:
            known = by_task[one["task"]]["ours"].known
            own = [str(one["fitted"]), *cells(*map(known.get, names))]
            rows.append(line(machine, one["task"].split("/")[1], {machine: [one]}, own))
        rows.append(line(machine, "all", {machine: ones}, none))
    rows.append(line("all", "all", machines, none))
    header = ["machine", "section", "normals", *names, "official", "official, reference only"]
    scores = {row: score(row, machines) for row in ROWS}
    return scores, (corpus.name, [*header, "AUC, ours - reference (95 %)"], rows)


def said(scores: Results) -> list[str]:
    """The official score in words, where there is one."""
    ours, reference = (scores[row] for row in ROW)
    if ours is None:
        return ["No clip is labelled: there is no official score."]
    return [f"Official score over all machines: {ours:.4f}; reference only {reference:.4f}."]


def missing(judged: Sequence[Judged], by_task: dict[str, dict[str, Figures]]) -> list[str]:
    """What could not be told of sections with labelled clips."""
    return [
        f"{one['task']}: {why}; the means leave it out."
        for one in judged
        if one["names"]
        for why in by_task[one["task"]]["ours"].missing.values()
    ]


def lost(unread: Sequence[object]) -> list[str]:
    """What cannot be read, in words."""
    said = "clips cannot be read; no score, and no line of the submission, is theirs."
    return [f"{len(unread)} {said}"] if unread else []


def files_of(judged: Sequence[Judged]) -> str:
    """Which set is submitted."""
    return "evaluation" if any("unlabelled" in one for one in judged) else "development"


def submission(
    options: DcaseOptions, judged: Sequence[Judged], clips: dict[str, SectionClip]
) -> list[Path]:
    """Write RUN/submission."""
    found = []
    for one in judged:
        part = one.get("unlabelled") if files_of(judged) == "evaluation" else one
        if part and part["names"]:
            of = [clips[name] for name in part["names"]]
            names = [Path(clip.name).name for clip in of]
            rest = ([clip.domain for clip in of], part["scores"]["ours"], one["threshold"])
            found.append(Section(of[0].machine, of[0].section, names, *rest))
    return submit(options.run / "submission", options.year, found)


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
