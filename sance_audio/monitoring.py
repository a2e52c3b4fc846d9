"""Recipes of corpora of machine sounds: a detector of each machine and section, fitted to its
normals, judges the section's clips.

A corpus is listed by `datasets.mimii`, `toyadmos` or `dcase`; `screening` fits and judges. Clips
are read when they are needed: those of one machine are hundreds of megabytes.
"""

from __future__ import annotations

__all__ = [
    "RATE",
    "CalibratedOptions",
    "SectionOptions",
    "Sections",
    "cells",
    "conclude_by_section",
    "describe",
    "sections",
]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

from sance_audio.audio import resample
from sance_audio.config import TrainConfig
from sance_audio.datasets.corpus import Clip
from sance_audio.datasets.sections import DOMAINS, Listing, SectionClip
from sance_audio.detection.domains import FEWEST
from sance_audio.options import Results, RunOptions
from sance_audio.ranking import shown_gain
from sance_audio.screening import (
    ROWS,
    Judged,
    Task,
    conclude,
    false_alarms,
    figures,
    is_judged,
    judge,
    less,
)

RATE = 16000
"""Hz, that is listened at."""
HEADER = ["machine", "section", "normals", "AUC", "pAUC", "AUC, reference only"]
HEADER += ["pAUC, reference only", "ours - reference (95 %)", "false alarms"]
NAMED = 5
"""Foreign files that are printed, at most; all are in `results.json`."""


@dataclass(frozen=True)
class SectionOptions(RunOptions):
    """What these recipes can be told."""

    train: tyro.conf.Suppress[TrainConfig] = field(default_factory=TrainConfig)
    data: Path | None = None
    """Folder of the corpus, or one above it."""
    machines: tuple[str, ...] = ()
    """Machines that are judged; all that are there when left out."""
    fewest: int = 50
    """Normals of a section from which on it has a detector of its own; with fewer, one is fitted
    to all sections of the machine."""
    show: int = 2
    """Oddest, and most ordinary, clips of each section on the page."""

    def __post_init__(self) -> None:
        for name, value in {"seed": 0, "fewest": 1, "show": 0}.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name} must be at least {value}, found {getattr(self, name)}")


@dataclass(frozen=True)
class CalibratedOptions(SectionOptions):
    """What recipes of corpora with hundreds of normals a section can be told."""

    fewest: int = 100
    """Normals of a section from which on it has a detector of its own; with fewer, one is fitted
    to all sections of the machine."""
    calibration: float = 0.2
    """Share of the normals that calibrate p-values, and touch no fit; 0: none do."""
    alpha: float = 0.05
    """False-alarm rate that is calibrated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.calibration < 1 or not 0 < self.alpha < 1:
            raise ValueError(
                f"--calibration is a share from 0 to below 1 and --alpha a rate between 0 and 1, "
                f"found {self.calibration} and {self.alpha}"
            )


@dataclass(frozen=True)
class Sections:
    """The tasks of a corpus, and what is to be said of them."""

    tasks: list[Task]
    notes: list[str]

    def judged(
        self, options: SectionOptions, *, calibration: float, alpha: float = 0.05
    ) -> Iterator[Judged]:
        """Each task judged, or read from where it stands; its detector is saved."""
        about: Results = {"calibration": calibration, "alpha": alpha, "show": options.show}
        for task in self.tasks:
            one = judge(task, options, sound, save=True, rate=RATE, **about)
            scored = len(one["names"]) + len(one.get("unlabelled", {}).get("names", ()))
            print(
                f"{task.name}: {one['fitted']} normals fitted, {scored} clips scored", flush=True
            )
            for name, reason in one["unread"]:
                print(f"  left out, cannot be read: {name} ({reason})")
            yield one


def sections(
    corpus: Listing,
    fewest: int,
    *,
    domains: bool = False,
    part: Callable[[SectionClip], str] = lambda clip: clip.machine,
) -> Sections:
    """A task of each machine and section that has clips to judge.

    Arguments:
        corpus: Its listing.
        fewest: As of `SectionOptions`.
        domains: Tell source from target in what is fitted.
        part: The folder of a clip's machine in the run.
    """
    found: dict[tuple[str, str], list[SectionClip]] = {}
    for clip in corpus.clips:
        found.setdefault((part(clip), clip.section), []).append(clip)
    tasks, notes = [], []
    for (machine, section), clips in sorted(found.items()):
        name, train = f"{machine}/{section}", _in(clips, "train")
        if not _in(clips, "test") and not _in(clips, "evaluation"):
            notes.append(f"{name}: nothing to judge; passed over")
            continue
        if len(train) < fewest:
            every = [c for (m, _), some in found.items() if m == machine for c in some]
            few, train = len(train), _in(every, "train")
            notes.append(f"{name}: {few} normals, fitted to all {len(train)} of {machine}")
        of = [clip.domain for clip in train] if domains else []
        if domains and min(map(of.count, DOMAINS)) < FEWEST:
            counts = " and ".join(f"{of.count(d)} {d} normals" for d in DOMAINS)
            notes.append(f"{name}: {counts}, domains are not told apart")
            of = []
        tasks.append(_task(machine, name, clips, train, of))
    return Sections(tasks, notes)


def _in(clips: Sequence[SectionClip], split: str) -> list[SectionClip]:
    return [clip for clip in clips if clip.split == split]


def _task(
    machine: str,
    name: str,
    clips: Sequence[SectionClip],
    train: Sequence[SectionClip],
    domains: Sequence[str],
) -> Task:
    """Clips are recordings of their own."""
    test = _in(clips, "test")
    sorts = ["" if clip.label == "normal" else clip.label for clip in test]
    groups = [[clip.name for clip in some] for some in (train, test)]
    about = (train, groups[0], test, sorts, groups[1], domains, _in(clips, "evaluation"))
    return Task(name, machine, *about)


def sound(clip: Clip) -> tuple[np.ndarray, int]:
    """At `RATE`. Raises AudioError."""
    recording = clip.source.load()
    return resample(recording.waveform, recording.sample_rate, RATE).numpy(), RATE


def describe(corpus: Listing, notes: Sequence[str]) -> None:
    """Print what a corpus holds, what is foreign in it, and notes."""
    counts = dict.fromkeys(("train", "test", "evaluation", "supplemental"), 0)
    for clip in corpus.clips:
        counts[clip.split] = counts.get(clip.split, 0) + 1
    said = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    print(f"{corpus.name} ({corpus.licence}): {', '.join(corpus.machines)}; clips: {said}")
    if counts["supplemental"]:
        print(f"  {counts['supplemental']} supplemental clips are not used")
    if corpus.problems:
        print(f"  {len(corpus.problems)} files or folders are no part of it, and not read:")
        print("\n".join(f"    {line}" for line in corpus.problems[:NAMED]))
        if len(corpus.problems) > NAMED:
            print(f"    and {len(corpus.problems) - NAMED} more, listed in results.json")
    print("".join(f"  {note}\n" for note in notes), end="")


def conclude_by_section(
    recipe: str, options: CalibratedOptions, corpus: Listing, found: Sections
) -> None:
    """Judge all; AUC and pAUC of each section, their means by machine and over machines."""
    alpha = options.alpha if options.calibration else None
    judged = list(found.judged(options, calibration=options.calibration, alpha=options.alpha))
    machines: dict[str, list[Judged]] = {}
    for one in judged:
        machines.setdefault(one["part"], []).append(one)
    rows = []
    for machine, some in machines.items():
        rows += [_row(machine, one["task"].split("/")[1], [one], alpha) for one in some]
        rows.append(_row(machine, "mean", some, alpha))
    rows.append(_row("mean", "mean", judged, alpha))
    results = {
        **{"corpus": corpus.name, "licence": corpus.licence},
        "sections": {one["task"]: _figures([one]) for one in judged},
        "machines": {machine: _figures(some) for machine, some in machines.items()},
        "mean": _figures(judged),
        "unread": [line for one in judged for line in one["unread"]],
        "problems": corpus.problems,
    }
    words = [*_untold(judged), *found.notes]
    conclude(recipe, options, judged, (corpus.name, HEADER, rows), results, alpha, words=words)


def _figures(judged: Sequence[Judged]) -> Results | None:
    """Of those with normal and odd clips; None where there are none."""
    some = [one for one in judged if is_judged(one)]
    return figures(some) | {"ours_less_reference": less(some)} if some else None


def _row(machine: str, section: str, judged: Sequence[Judged], alpha: float | None) -> list[str]:
    found = _figures(judged)
    fitted = str(judged[0]["fitted"]) if len(judged) == 1 and section != "mean" else "-"
    values = [found[row][name] if found else None for row in ROWS for name in ("auc", "pauc")]
    flagged = None if alpha is None else false_alarms(judged, alpha)
    share = "-" if flagged is None else f"{100 * flagged:.1f} %"
    gain = found["ours_less_reference"] if found else None
    return [machine, section, fitted, *cells(*values), shown_gain(gain), share]


def _untold(judged: Sequence[Judged]) -> list[str]:
    return [
        f"{one['task']}: no AUC, its clips are not both normal and odd; the means leave it out."
        for one in judged
        if not is_judged(one)
    ] + [
        f"{one['task']}: {len(one['unread'])} clips cannot be read and are left out."
        for one in judged
        if one["unread"]
    ]


def cells(*values: float | None) -> list[str]:
    """Figures of a table; a dash for what is not known."""
    return ["-" if value is None else f"{value:.3f}" for value in values]
