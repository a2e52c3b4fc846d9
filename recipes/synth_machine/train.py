"""Faults of machines, from normal sounds alone: fans, pumps and valves made by the package.

    python recipes/synth_machine/train.py --run runs/synth_machine --preset cpu

Nothing is downloaded. A detector of each kind of machine is fitted to takes in order of some
recordings; other recordings are judged, in order and with faults. Takes of one recording share
machine, room and microphone, and stay together. The detectors stand in RUN/fan, RUN/pump and
RUN/valve: `sance-audio score RUN/pump PATH`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

from sance_audio import TrainConfig
from sance_audio.datasets import machines
from sance_audio.datasets.corpus import Clip
from sance_audio.detection.conformal import needed
from sance_audio.options import RunOptions
from sance_audio.ranking import shown_gain
from sance_audio.recipe import launch
from sance_audio.screening import (
    ROWS,
    Judged,
    Task,
    conclude,
    false_alarms,
    figures,
    judge,
    less,
    refuse_several,
)
from sance_audio.workflow import connect, start


@dataclass(frozen=True)
class MachineOptions(RunOptions):
    """Options of the recipe of synthesised machines."""

    run: Path = Path("runs/synth_machine")
    """Run folder. The same command again goes on, machine by machine."""
    train: tyro.conf.Suppress[TrainConfig] = field(default_factory=TrainConfig)
    recordings: int = 48
    """Recordings of each machine that are fitted and calibrated on; all are in order."""
    judged: int = 20
    """Recordings of each machine that are judged."""
    takes: int = 6
    """Clips of each recording: in order, and as many with faults of those judged."""
    alpha: float = 0.05
    """False-alarm rate; lower ones need more recordings."""
    show: int = 6
    """Oddest, and most ordinary, clips of each machine on the page."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"--alpha is a false-alarm rate between 0 and 1, found {self.alpha}")
        least = {"seed": 0, "recordings": needed(self.alpha) + 2, "judged": 1, "takes": 3}
        for name, value in (least | {"show": 0}).items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name} must be at least {value}, found {getattr(self, name)}")


PRESETS = {
    "smoke": MachineOptions(preset="smoke", recordings=8, judged=2, takes=3, alpha=0.25, show=1),
    "cpu": MachineOptions(preset="cpu"),
    "gpu": MachineOptions(preset="gpu", recordings=200, judged=100),
}
HEADER = ["machine", "fault", "AUC", "pAUC", "AUC, reference only", "pAUC, reference only"]
HEADER += ["ours - reference (95 %)", "false alarms"]


def main(options: MachineOptions) -> None:
    refuse_several()
    start(options, "synth_machine", connect(options))
    judged = []
    for kind in machines.KINDS:
        one = judge(
            task(kind, options), options, sound, alpha=options.alpha, show=options.show, save=True
        )
        print(f"{kind}: {one['fitted']} clips in order fitted, {len(one['names'])} judged")
        judged.append(one)
    caption = f"{options.recordings} recordings in order fitted, {options.judged} others judged"
    results = {"machines": {one["part"]: of_machine(one, options.alpha) for one in judged}}
    rows = [row for one in judged for row in lines(one, options.alpha)]
    rows.append(line("mean", "all", judged, None, options.alpha))
    table = (caption, HEADER, rows)
    conclude("synth_machine", options, judged, table, results, options.alpha)


def task(kind: str, options: MachineOptions) -> Task:
    """Recordings of one machine, none both fitted and judged; each run seed has its own."""
    first = 10_000 * options.seed
    last = first + options.recordings
    train = machines.normals(kind, range(first, last), options.takes)
    others = range(last, last + options.judged)
    test = machines.normals(kind, others, options.takes, "test")
    test += machines.faulty(kind, others, options.takes)
    groups = [[clip.group for clip in clips] for clips in (train, test)]
    sorts = [clip.fault or "" for clip in test]
    return Task(kind, kind, train, groups[0], test, sorts, groups[1])


def sound(clip: Clip) -> tuple[np.ndarray, int]:
    recording = clip.source.load()
    return recording.waveform.numpy(), recording.sample_rate


def of_machine(one: Judged, alpha: float) -> dict[str, object]:
    """The figures of one machine."""
    faults = {fault: figures([one], fault) for fault in machines.FAULTS[one["part"]]}
    figured = {"all": figures([one]), "faults": faults, "ours_less_reference": less([one])}
    return figured | {"false_alarms": false_alarms([one], alpha)}


def lines(one: Judged, alpha: float) -> list[list[str]]:
    """Rows of the table: each fault of a machine, then all of them."""
    kind = one["part"]
    rows = [line(kind, fault, [one], fault, alpha) for fault in machines.FAULTS[kind]]
    return [*rows, line(kind, "all", [one], None, alpha)]


def line(name: str, fault: str, judged: list[Judged], sort: str | None, alpha: float) -> list[str]:
    found = figures(judged, sort)
    cells = [f"{found[row][what]:.3f}" for row in ROWS for what in ("auc", "pauc")]
    if sort is not None:
        return [name, fault, *cells, "-", "-"]
    gain, flagged = less(judged), false_alarms(judged, alpha)
    return [name, fault, *cells, shown_gain(gain), f"{100 * (flagged or 0.0):.1f} %"]


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
