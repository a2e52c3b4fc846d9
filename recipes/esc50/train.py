"""One class of environmental sounds against the rest: ESC-50, or ESC-10, by its own folds.

    python recipes/esc50/train.py --task anomaly --esc10 --data DIR --run runs/esc10

For each class and each fold, a detector is fitted to the class's clips of the other folds, and
judges all clips of the fold: those of the class are normal, all others odd. Folds never share a
source recording. 32 clips are too few to calibrate false-alarm rates with and to learn from, so
that there are scores and no p-values.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

from sance_audio import TrainConfig
from sance_audio.audio import file_label, resample
from sance_audio.datasets import esc50
from sance_audio.datasets.corpus import Clip
from sance_audio.datasets.esc50 import FoldClip
from sance_audio.options import RunOptions
from sance_audio.recipe import launch
from sance_audio.screening import (
    ROWS,
    Judged,
    Task,
    conclude,
    figures,
    judge,
    less,
    refuse_several,
)
from sance_audio.workflow import connect, start

TASKS = ("anomaly",)
CLASS = 40
"""Clips of a class."""
RATE = 16000
"""Hz, that is listened at."""


@dataclass(frozen=True)
class EscOptions(RunOptions):
    """Options of the recipe of environmental sounds."""

    run: Path = Path("runs/esc50")
    """Run folder. The same command again goes on, class by class."""
    train: tyro.conf.Suppress[TrainConfig] = field(default_factory=TrainConfig)
    task: str = "anomaly"
    """anomaly: one class against the rest."""
    data: Path | None = None
    """Folder of the corpus, with audio/ and meta/; downloaded when left out."""
    esc10: bool = False
    """Only the ten classes of ESC-10."""
    folds: tuple[int, ...] = esc50.FOLDS
    """Folds that are judged, each with detectors fitted to the other four."""
    show: int = 2
    """Oddest, and most ordinary, clips of each class on the page, of the first fold judged."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"--task {self.task}: there is no such task; there is anomaly")
        if not self.folds or set(self.folds) - set(esc50.FOLDS):
            raise ValueError(f"--folds are some of 1 2 3 4 5, found {self.folds}")
        for name in ("seed", "show"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be at least 0, found {getattr(self, name)}")


PRESETS = {
    "smoke": EscOptions(preset="smoke", folds=(1,), show=1),
    "cpu": EscOptions(preset="cpu"),
    "gpu": EscOptions(preset="gpu"),
}
HEADER = ["class", "AUC", "pAUC", "AUC, reference only", "pAUC, reference only"]
HEADER += ["ours - reference (95 %)"]


def main(options: EscOptions) -> None:
    refuse_several()
    device = connect(options)
    clips = esc50.listing(options.data, esc10=options.esc10)
    start(options, "esc50", device)
    by_label: dict[str, list[Judged]] = {label: [] for label in sorted({c.label for c in clips})}
    for fold in options.folds:
        # Test clips are listened to by the detectors of all classes: decoded once a fold.
        hear = functools.lru_cache(sum(c.fold == fold for c in clips) + CLASS)(sound)
        show = options.show if fold == options.folds[0] else 0
        for label, found in by_label.items():
            one = judge(task(clips, label, fold), options, hear, calibration=0.0, show=show)
            found.append(one)
            print(f"fold {fold}, {label}: AUC {figures([one])['ours']['auc']:.3f}", flush=True)
    judged = [one for found in by_label.values() for one in found]
    rows = [line(label.replace("_", " "), found) for label, found in by_label.items()]
    rows.append(line("mean", judged))
    name = "ESC-10" if options.esc10 else "ESC-50"
    caption = f"{name}, one class against the rest, folds {', '.join(map(str, options.folds))}"
    results = {
        "task": options.task,
        "corpus": name,
        "folds": options.folds,
        "classes": {label: figures(found) for label, found in by_label.items()},
        "mean": figures(judged),
    }
    conclude("esc50", options, judged, (caption, HEADER, rows), results)


def task(clips: Sequence[FoldClip], label: str, fold: int) -> Task:
    """Fit to a class's clips of the other folds, judge the fold."""
    train = [c for c in clips if c.fold != fold and c.label == label]
    test = [c for c in clips if c.fold == fold]
    sorts = ["" if c.label == label else c.label for c in test]
    groups = [[c.group for c in some] for some in (train, test)]
    return Task(f"{file_label(label)}/{fold}", label, train, groups[0], test, sorts, groups[1])


def sound(clip: Clip) -> tuple[np.ndarray, int]:
    recording = clip.source.load()
    return resample(recording.waveform, recording.sample_rate, RATE).numpy(), RATE


def line(name: str, judged: Sequence[Judged]) -> list[str]:
    found, gain = figures(judged), less(judged)
    cells = [f"{found[row][what]:.3f}" for row in ROWS for what in ("auc", "pauc")]
    interval = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    return [name, *cells, interval]


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
