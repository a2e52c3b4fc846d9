"""How fast clips are scored on one core, beside PyOD's AudioAE, in turn in one process.

    python -m benchmarks.scoring

32 clips of 5 s at 16 kHz are fitted, 20 scored a round; noise, since time does not depend on what
is heard. The process is kept on one core.
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.anomaly import METHODS
from benchmarks.anomaly_peers import Features
from benchmarks.timing import alternate

RATE, SECONDS = 16_000, 5
FITTED, SCORED, ROUNDS = 32, 20, 15
OURS, PEER = "ours", "AudioAE (PyOD)"


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    def clips(n: int) -> list[tuple[np.ndarray, int]]:
        waves = 0.1 * rng.standard_normal((n, RATE * SECONDS))
        return [(wave.astype(np.float32), RATE) for wave in waves]

    methods = {name: METHODS[name](Features(), 0).fit(clips(FITTED)) for name in (OURS, PEER)}

    def score(name: str) -> None:  # new clips, so that no peer finds features that it has kept
        methods[name].score(clips(SCORED))

    runs: dict[str, Callable[[], object]] = {n: functools.partial(score, n) for n in methods}
    seconds = alternate(runs, ROUNDS)
    for name, taken in seconds.items():
        each = statistics.median(taken) / SCORED
        print(f"{name}: {1e3 * each:.2f} ms a clip, {SECONDS / each:.0f} times real time")
    ratios = [a / b for a, b in zip(seconds[OURS], seconds[PEER], strict=True)]
    print(f"{OURS} / {PEER}, round by round: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
