"""Odd clips among normal ones: `EnergyDetector` and what a user would pick instead.

    python -m benchmarks.anomaly CORPUS... [--data DIR] [--split test|valid] [--methods NAME...]
        [--seeds N] [--folds K...] [--out FILE.json] [--no-timing]

CORPUS is one of:

    esc10          ESC-10 in DIR/esc10, 10 classes x 5 folds. Trained on a class's clips of four
                   folds, judged on all clips of the fifth. `valid`: the folds 1 and 2 alone.
    fsdd           spoken digits in DIR/fsdd, 10 digits. Trained on a digit's recordings 5 to 49,
                   judged on the recordings 0 to 4 of all digits. `valid`: 10 to 49, and 5 to 9.
    synth_machine  fans, pumps and valves made by `datasets.machines`, 3 folds of 16 recordings
                   trained on (6 takes each) and 10 others judged (6 takes in order, 6 with a
                   fault). `valid`: three other folds.

Every method sees the same clips. AUC, and pAUC (false-alarm rates up to .1, as `roc_auc_score`
standardises it), are means over tasks and seeds. The interval is of the first method's mean AUC
less the other's: a 95 % paired bootstrap over source recordings, whose clips are drawn together; a
task that a resample leaves without clips of either sort is left out of it. A spoken digit is a
recording of its own; that there are six speakers only does not enter.

Seconds and memory are those of one task, with nothing remembered from other tasks, in a process of
their own for each method; a first run that takes less than 20 s does not count, the second does.
Memory is the process's largest resident set, and in brackets how much of it came once the clips
were loaded: what the method holds, and libraries that it alone needs.

FILE.json is written after each task; the same command goes on from it. It knows clips by their
content, but not methods: delete it where one of them has changed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.anomaly_peers import EPOCHS, PEERS, SEEDED, Array, Clip, Features, Method
from sance_audio import EnergyDetector
from sance_audio.datasets import corpus as corpora
from sance_audio.datasets import esc50, fsdd, machines
from sance_audio.experiments.costs import peak_mib
from sance_audio.files import read_json, write_json
from sance_audio.ranking import Case, auc, paired_auc, pauc, shown_gain

TRAINED, JUDGED, TAKES = 16, 10, 6
"""Recordings of a machine that are trained on and judged, and clips of each."""
PATIENCE = 20.0
"""Seconds; a method that is slower is timed once."""
Results = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One class against the rest."""

    part: str
    """The class."""
    fold: int
    train: Sequence[corpora.Clip]
    test: Sequence[corpora.Clip]
    odd: Array
    """`(B,)`, which of `test` are."""
    groups: list[str]
    """The source recording of each of `test`."""

    @functools.cached_property
    def key(self) -> str:
        """Of its clips' contents."""
        text = "/".join(clip.source.digest() for clip in (*self.train, *self.test))
        return (
            f"{self.part}-{self.fold}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
        )


class Ours:
    """`EnergyDetector`, one configuration for all corpora. Like the peers, it is fitted on all
    normals: none is kept for p-values, which no peer has.
    """

    def __init__(self, seed: int, learnt: bool):
        self.detector = EnergyDetector(seed=seed, learnt=learnt, calibration=0)

    def fit(self, clips: Sequence[Clip]) -> Ours:
        self.detector.fit(clips)
        return self

    def score(self, clips: Sequence[Clip]) -> Array:
        return self.detector.anomaly_score(clips)


METHODS: dict[str, Callable[[Features, int], Method]] = {
    "ours": lambda features, seed: Ours(seed, learnt=True),
    "ours, reference only": lambda features, seed: Ours(seed, learnt=False),
    **PEERS,
}
BY_SEED = {"ours", "ours, reference only", *SEEDED}


def esc10_tasks(data: Path, split: str) -> list[Task]:
    clips, tasks = esc50.listing(data / "esc10", esc10=True), []
    for fold in (1, 2) if split == "valid" else esc50.FOLDS:
        test = [c for c in clips if c.fold == fold]
        groups = [c.group for c in test]
        for label in sorted({c.label for c in clips}):
            train = [c for c in clips if c.fold != fold and c.label == label]
            tasks.append(Task(label, fold, train, test, _others(test, label), groups))
    return tasks


def fsdd_tasks(data: Path, split: str) -> list[Task]:
    corpus = fsdd.prepare(data / "fsdd")
    train = corpus.split("train") + (corpus.split("valid") if split == "test" else [])
    test = corpus.split(split)
    names = [c.name for c in test]
    return [
        Task(digit, 0, [c for c in train if c.label == digit], test, _others(test, digit), names)
        for digit in fsdd.LABELS
    ]


def _others(clips: Sequence[corpora.Clip], label: str) -> Array:
    return np.array([clip.label != label for clip in clips])


def machine_tasks(data: Path, split: str) -> list[Task]:
    tasks = []
    for fold in range(3):
        first = 1000 * (fold + (100 if split == "valid" else 0))
        judged = range(first + TRAINED, first + TRAINED + JUDGED)
        for kind in machines.KINDS:
            train = machines.normals(kind, range(first, first + TRAINED), TAKES)
            test = machines.normals(kind, judged, TAKES, "test")
            test += machines.faulty(kind, judged, TAKES)
            odd = np.array([c.fault is not None for c in test])
            tasks.append(Task(kind, fold, train, test, odd, [c.group for c in test]))
    return tasks


CORPORA = {"esc10": esc10_tasks, "fsdd": fsdd_tasks, "synth_machine": machine_tasks}


def hear(clips: Iterable[corpora.Clip]) -> list[Clip]:
    """The clips' sound; each is decoded, or made, once a process."""
    return [_hear(clip) for clip in clips]


@functools.cache
def _hear(clip: corpora.Clip) -> Clip:
    recording = clip.source.load()
    return recording.waveform.numpy(), recording.sample_rate


def paired(tasks: Sequence[Task], ours: list[Array], other: list[Array]) -> dict[str, float]:
    """Mean AUC of one list of scores less that of another, with its 95 % interval.

    Arguments:
        ours, other: For each task, scores `(seeds, B)`.
    """
    rows = zip(tasks, ours, other, strict=True)
    return paired_auc([Case(task.odd, task.groups, a, b) for task, a, b in rows])


def run(
    tasks: Sequence[Task], corpus: str, names: Sequence[str], seeds: int, out: Path | None
) -> Results:
    """Scores of all methods on all tasks, by key; what `out` holds already is not computed."""
    results: Results = {} if out is None or not out.exists() else read_json(out)
    features = Features.remembered()
    for task, name, seed in [(t, n, s) for t in tasks for n in names for s in _seeds(n, seeds)]:
        key = _key(corpus, task, name, seed)
        if key in results:
            continue
        began = time.perf_counter()
        method = METHODS[name](features, seed).fit(hear(task.train))
        score = np.asarray(method.score(hear(task.test)), float)
        seconds = time.perf_counter() - began
        figures = {"auc": auc(task.odd, score), "pauc": pauc(task.odd, score)}
        results[key] = figures | {"score": score.tolist()}
        print(f"{key}: {results[key]['auc']:.3f} ({seconds:.1f} s)", file=sys.stderr)
        if out is not None:
            write_json(out, results)
    return results


def _seeds(name: str, seeds: int) -> range:
    return range(seeds if name in BY_SEED else 1)


def _key(corpus: str, task: Task, name: str, seed: int) -> str:
    return f"{corpus}/{task.key}/{name}/{seed}"


def summarise(
    tasks: Sequence[Task], corpus: str, names: Sequence[str], seeds: int, results: Results
) -> dict[str, Results]:
    """Of each method: mean `auc` and `pauc`, `auc` of each part, `less` (the first method's AUC
    less its own, with an interval).
    """

    def of(name: str, task: Task) -> list[Results]:
        return [results[_key(corpus, task, name, seed)] for seed in _seeds(name, seeds)]

    def scores(name: str) -> list[Array]:
        return [np.array([row["score"] for row in of(name, task)]) for task in tasks]

    def mean(name: str, what: str, part: str | None = None) -> float:
        chosen = [task for task in tasks if part in (None, task.part)]
        return float(np.mean([[row[what] for row in of(name, task)] for task in chosen]))

    return {
        name: {
            "auc": mean(name, "auc"),
            "pauc": mean(name, "pauc"),
            "parts": {task.part: mean(name, "auc", task.part) for task in tasks},
            "less": paired(tasks, scores(names[0]), scores(name)),
        }
        for name in names
    }


def measure(task: Task, name: str) -> Results:
    """Seconds to fit and to score a clip, and mebibytes, in this process."""
    train, test = hear(task.train), hear(task.test)
    before = peak_mib()
    seconds = _timed(name, train, test)
    if sum(seconds) < PATIENCE:
        seconds = _timed(name, train, test)
    return {
        "fit_s": seconds[0],
        "score_s": seconds[1] / len(test),
        "memory_mib": peak_mib(),
        "memory_added_mib": peak_mib() - before,
        "train": len(train),
        "test": len(test),
    }


def _timed(name: str, train: list[Clip], test: list[Clip]) -> tuple[float, float]:
    began = time.perf_counter()
    method = METHODS[name](Features(), 0).fit(train)
    fitted = time.perf_counter()
    method.score(test)
    return fitted - began, time.perf_counter() - fitted


def timings(corpus: str, names: Sequence[str], data: Path, split: str) -> dict[str, Results]:
    """`measure` of each method on a corpus's first task, each in a process of its own."""
    found = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.anomaly", corpus, "--data", str(data)]
        command += ["--split", split, "--measure", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(title: str, summary: dict[str, Results], speed: dict[str, Results]) -> None:
    first = next(iter(summary))
    print(f"\n{title}")
    print(
        f"{'':32}{'AUC':>7}{'pAUC':>7}   {first} less this (95 %)     fit s  ms/clip  memory MiB"
    )
    for name, row in summary.items():
        less = row["less"]
        difference = shown_gain(less)
        line = f"{name:32}{row['auc']:7.3f}{row['pauc']:7.3f}   "
        line += f"{'' if name == first else difference:27}"
        if name in speed:
            s = speed[name]
            line += f"{s['fit_s']:9.2f}{1000 * s['score_s']:9.1f}"
            line += f"{s['memory_mib']:7.0f} ({s['memory_added_mib']:+.0f})"
        print(line)
    for s in list(speed.values())[:1]:
        print(f"(seconds and memory: {s['train']} clips to fit, {s['test']} to score)")
    print(f"\n{'AUC of each':32}{''.join(f'{part[:10]:>11}' for part in summary[first]['parts'])}")
    for name, row in summary.items():
        print(f"{name:32}{''.join(f'{value:11.3f}' for value in row['parts'].values())}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpora", nargs="+", choices=CORPORA, metavar="CORPUS")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the corpora")
    parser.add_argument("--split", choices=("test", "valid"), default="test")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="of methods that depend on one")
    parser.add_argument("--folds", type=int, nargs="+", help="only these")
    parser.add_argument("--out", type=Path, help="JSON file to write and go on from")
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    names = options.methods
    for corpus in options.corpora:
        tasks = CORPORA[corpus](options.data, options.split)
        tasks = [t for t in tasks if options.folds is None or t.fold in options.folds]
        if options.measure is not None:
            print(json.dumps(measure(tasks[0], options.measure)))
            continue
        found = run(tasks, corpus, names, options.seeds, options.out)
        summary = summarise(tasks, corpus, names, options.seeds, found)
        speed = {} if options.no_timing else timings(corpus, names, options.data, options.split)
        if options.out is not None:
            found[f"{corpus}/{options.split}"] = {"summary": summary, "timing": speed}
            write_json(options.out, found)
        title = f"{corpus}, {options.split}: {len(tasks)} tasks, seeds: {options.seeds}; "
        title += f"autoencoder of DCASE 2020: {EPOCHS} epochs"
        table(title, summary, speed)


if __name__ == "__main__":
    main(arguments())
