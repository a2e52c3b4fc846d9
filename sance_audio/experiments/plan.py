"""The plan of an experiment and its diary: how many runs, how long they take, what each came to.

A run's time is counted in gradients of the energy for one row, which dominate it; what one takes
is measured on this machine, in one thread, before the first run.
"""

from __future__ import annotations

__all__ = ["Diary"]

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sance_audio.chunks import cores
from sance_audio.config import TrainConfig
from sance_audio.experiments.jobs import Job, run_jobs
from sance_audio.experiments.runs import ALONG
from sance_audio.model import AudioEBM

Results = dict[str, Any]
STARTING = 8.0
"""Seconds that a process takes to start, about."""


class Diary:
    """Prints the plan, then a line for each run that a process has finished.

    The settings of a job are those of `perform`: `train`, `evaluate`, `generation_steps`,
    `annealing`, `sets` and `points`.

    Arguments:
        model: The one that the runs train; it draws a few clips here.
        at_once: Runs side by side; one for each core when 0.
    """

    def __init__(self, model: AudioEBM, at_once: int = 0):
        self.side_by_side = at_once or cores()
        self.gradient, self.components = (
            _seconds_of_a_gradient(model),
            model.reference.n_components,
        )
        self.expected, self.done, self.began = 0.0, 0.0, time.monotonic()

    def seconds(self, job: Job) -> float:
        """What a run should take. In a step, each row that the network is trained on costs two
        gradients, data and noise alike; each that it is only computed on, less.
        """
        settings = job.settings
        config = TrainConfig(**settings["train"])
        batch = config.per_component * self.components
        pool = config.pool_groups * batch
        per_step = 4.0 * batch + 0.2 * pool * (config.interval > 1)
        if config.noise in ("self", "pcd"):
            per_step += pool * config.langevin_steps / config.interval
        judging = settings["evaluate"] * settings["generation_steps"]
        judging *= settings["sets"] + ALONG * settings["points"]
        judging += 24 * self.components * settings["annealing"] * bool(settings["points"])
        return STARTING + self.gradient * (config.steps * per_step + judging)

    def plan(self, arms: int, choosing: Sequence[Job], reported: Sequence[Job]) -> None:
        """Say what is to come: runs that rates are chosen by, and runs that are reported."""
        self.expected = sum(map(self.seconds, [*choosing, *reported]))
        minutes = self.expected / self.side_by_side / 60
        print(
            f"{arms} arms: {len(choosing)} runs to choose rates, {len(reported)} to report; "
            f"{len(choosing) + len(reported)} in all, {self.side_by_side} at once, "
            f"about {minutes:.0f} minutes at this machine's speed of now",
            flush=True,
        )

    def run(
        self, jobs: Sequence[Job], folder: Path, command: Callable[[Job], list[str]]
    ) -> dict[str, Results]:
        """As `run_jobs`, with a line for each; those that were finished before take no time."""
        finished = [job for job in jobs if (folder / job.name / "result.json").exists()]
        self.expected -= sum(map(self.seconds, finished))
        return run_jobs(jobs, folder, command, at_once=self.side_by_side, say=self.write)

    def write(self, job: Job, result: Results, left: int) -> None:
        """A line on a finished run, of which `left` more are to come in this stage."""
        self.done += self.seconds(job)
        ahead = max(0.0, self.expected - self.done) / self.done
        minutes = (time.monotonic() - self.began) / 60
        kid = "diverged" if result["kid"] is None else f"KID x1000 {1000 * result['kid']:.1f}"
        print(
            f"{job.name}: {kid}, {result['seconds'] or 0:.0f} s; {left} to go here, about "
            f"{minutes * ahead:.0f} minutes left in all",
            flush=True,
        )


def _seconds_of_a_gradient(model: AudioEBM) -> float:
    """Of one row, in one thread: the least of several tries, since other work only adds."""
    took, rows, steps = [], list(range(16)), 10
    for _ in range(5):
        began = time.perf_counter()
        model.draw([0] * len(rows), rows, steps=steps)
        took.append(time.perf_counter() - began)
    return min(took) / (len(rows) * steps)
