"""Environmental sounds, ESC-50 or ESC-10, by its own folds: one class against the rest, or clips.

    python recipes/esc50/train.py --task anomaly --esc10 --data DIR --run runs/esc10
    python recipes/esc50/train.py --task generate --esc10 --data DIR --run runs/esc10-clips

anomaly: for each class and each fold, a detector is fitted to the class's clips of the other
folds, and judges all clips of the fold: those of the class are normal, all others odd. 32 clips
are too few to calibrate false-alarm rates with and to learn from, so that there are scores and no
p-values.

generate: a model of all classes learns from windows of a second of folds 1 to 3; fold 4 calibrates
its detector, fold 5 judges what it generates. Folds never share a source recording.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sance_audio import LogMel, TrainConfig, recipe, screening
from sance_audio.anomalies import detect
from sance_audio.assessment import classify, evaluate, examples
from sance_audio.audio import file_label, resample
from sance_audio.datasets import Corpus, esc50
from sance_audio.datasets.corpus import Clip
from sance_audio.datasets.esc50 import FoldClip
from sance_audio.options import SMOKE, Options
from sance_audio.preparation import build, prepare
from sance_audio.ranking import shown_gain
from sance_audio.screening import ROWS, Judged, Task, figures, judge, less
from sance_audio.workflow import connect, fit, start

TASKS = ("anomaly", "generate")
CLASS = 40
"""Clips of a class."""
RATE = 16000
"""Hz, that is listened at."""


WINDOWS = 5
"""Of a second, that a clip is trained on, at most; silent ones are passed over."""


@dataclass(frozen=True)
class EscOptions(Options):
    """Options of the recipe of environmental sounds. Those of training and of clips, which both
    tasks list, are of the task generate.
    """

    run: Path = Path("runs/esc50")
    """Run folder. The same command again goes on, class by class or step by step."""
    task: str = "anomaly"
    """anomaly: one class against the rest. generate: a model of all classes, and its clips."""
    esc10: bool = False
    """Only the ten classes of ESC-10."""
    folds: tuple[int, ...] = esc50.FOLDS
    """Of the task anomaly: folds that are judged, each with detectors fitted to the other four."""
    show: int = 2
    """Of the task anomaly: oddest, and most ordinary, clips of each class on the page, of the
    first fold judged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise ValueError(
                f"--task {self.task}: there is no such task; there is {', and '.join(TASKS)}"
            )
        if not self.folds or set(self.folds) - set(esc50.FOLDS):
            raise ValueError(f"--folds are some of 1 2 3 4 5, found {self.folds}")
        if self.show < 0:
            raise ValueError(f"--show must be at least 0, found {self.show}")


PRESETS = {
    "smoke": EscOptions(**SMOKE, folds=(1,), show=1),
    "cpu": EscOptions(
        preset="cpu",
        components=2,
        train=TrainConfig(steps=700, per_component=2, langevin_steps=10, sample_every=350),
        evaluate=400,
        clips=30,
    ),
    "gpu": EscOptions(
        preset="gpu",
        components=2,
        network="gpu",
        train=TrainConfig(steps=8000, per_component=4),
        evaluate=1000,
        clips=50,
    ),
}
HEADER = ["class", "AUC", "pAUC", "AUC, reference only", "pAUC, reference only"]
HEADER += ["ours - reference (95 %)"]


def main(options: EscOptions) -> None:
    device = connect(options)
    if options.task == "generate":
        generate(options, device)
    else:
        screening.refuse_several()
        find_odd(options, device)


def corpus(options: EscOptions) -> Corpus:
    return replace(esc50.prepare(options.data, esc10=options.esc10), windows=WINDOWS)


def generate(options: EscOptions, device: torch.device) -> None:
    sounds = corpus(options)
    start(options, "esc50", device)
    features = LogMel(RATE, n_fft=1024, hop_length=256, n_mels=64, f_min=20.0, floor=5e-5)
    material = prepare(sounds, features, options)
    model, components = build(material, sounds, features, options)
    model.to(device)

    results = fit(model, material, components, options)
    results["evaluation"], ours = evaluate(
        model, classify(model, material, options), material, options
    )
    results["examples"] = examples(model, material, options, ours)
    results["anomalies"] = detect(model, material, options)
    recipe.conclude("esc50", results, options)


def find_odd(options: EscOptions, device: torch.device) -> None:
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
    screening.conclude("esc50", options, judged, (caption, HEADER, rows), results)


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
    return [name, *cells, shown_gain(gain)]


if __name__ == "__main__":
    recipe.launch(main, PRESETS, __doc__)
