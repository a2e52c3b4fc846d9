"""A live stream: how long a block of one second takes, whether an hour of it fits, and whether it
says what the whole recording would.

    python -m benchmarks.streaming [DATA]

A detector is fitted to 32 clips of 5 s at 16 kHz (noise, since time does not depend on what is
heard) and hears an hour of a microphone in blocks of one second, on one core. Most blocks are only
kept; in every third or so a window becomes whole and is scored. With DATA, which holds esc10/,
each clip of ESC-10 is cut into random blocks, for a detector of each fold, and its windows' mean
score compared with the clip's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sance_audio import EnergyDetector, audio

RATE, SECONDS, FITTED, HOUR = 16_000, 5, 32, 3600


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    normals = 0.1 * rng.standard_normal((FITTED, RATE * SECONDS)).astype(np.float32)
    detector = EnergyDetector(calibration=0, sample_rate=RATE).fit(normals)
    an_hour(detector, rng)
    if len(sys.argv) > 1:
        against_batch(Path(sys.argv[1]) / "esc10" / "audio", rng)


def an_hour(detector: EnergyDetector, rng: np.random.Generator) -> None:
    """Time from a block's arrival until the stream asks for the next."""
    began, taken, resident = 0.0, [], []

    def microphone() -> Iterator[np.ndarray]:
        nonlocal began
        for second in range(HOUR):
            block = 0.1 * rng.standard_normal(RATE).astype(np.float32)
            began = time.perf_counter()
            yield block
            taken.append(time.perf_counter() - began)
            if second in (59, HOUR - 1):
                resident.append(_resident())

    windows = sum(1 for _ in detector.score_stream(microphone(), RATE))
    milliseconds = 1e3 * np.array(taken)
    scored = milliseconds[milliseconds > 10 * np.median(milliseconds)]
    print(
        f"an hour in blocks of a second: {windows} windows of {detector.window_:g} s\n"
        f"a block: median {np.median(milliseconds):.2f} ms, of those that complete a window "
        f"{np.median(scored):.1f} ms; 99 % {np.quantile(milliseconds, 0.99):.1f} ms, "
        f"longest {milliseconds.max():.1f} ms\n"
        f"the hour took {sum(taken):.1f} s: {HOUR / sum(taken):.0f} times real time\n"
        f"resident after a minute {resident[0]:.0f} MiB, after an hour {resident[1]:.0f} MiB"
    )


def _resident() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    (size,) = [line for line in status if line.startswith("VmRSS")]
    return int(size.split()[1]) / 1024


def against_batch(folder: Path, rng: np.random.Generator) -> None:
    """The largest difference, absolute and relative to max(1, |score|)."""
    paths = sorted(folder.iterdir())
    absolute, relative, clips = 0.0, 0.0, 0
    for fold in "12345":
        normals = [p for p in paths if p.stem.endswith("-0") and p.name[0] != fold]
        detector = EnergyDetector(calibration=0, sample_rate=RATE).fit(normals)
        for path in (p for p in paths if p.name[0] == fold):
            sound, clips = audio.load(path), clips + 1
            cuts = np.sort(rng.integers(0, len(sound.waveform), 40))
            blocks = np.split(sound.waveform.numpy(), cuts)
            found = detector.score_stream(blocks, sound.sample_rate)
            whole = float(detector.anomaly_score([path])[0])
            gap = abs(float(np.mean([w.anomaly_score for w in found])) - whole)
            absolute, relative = max(absolute, gap), max(relative, gap / max(1, abs(whole)))
    print(
        f"{clips} clips of ESC-10 in random blocks: scores differ from the whole clips' by at "
        f"most {absolute:.1e}, {relative:.1e} of themselves"
    )


if __name__ == "__main__":
    main()
