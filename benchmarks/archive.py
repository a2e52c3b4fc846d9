"""An archive of short files scored from the command line: speed and memory by the number of
workers, and whether a run that was killed three times ends as one that was not.

    python -m benchmarks.archive [--files 10000] [--folder DIR]

Half are WAV, half FLAC, 0.5 to 1.5 s of noise at 16 kHz; the detector is of the smoke preset. With
--folder, files stay there and are used again.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

RATE, NORMALS, KILLS = 16_000, 40, 3


class Done(NamedTuple):
    """What a run took."""

    seconds: float
    scored_seconds: float
    """From the first row on."""
    main_mib: float
    """Largest memory of its own that the process that writes was seen with."""
    worker_mib: float
    """Of the largest worker."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = args.folder or Path(name)
        few = sounds(home / "few", max(1, args.files // 10), 1)
        many, normals = sounds(home / "many", args.files, 0), sounds(home / "normals", NORMALS, 2)
        run = home / "run"
        if not run.exists():
            detect = ["detect", normals, "--run", run, "--preset", "smoke"]
            subprocess.run(command(*detect), check=True, stdout=subprocess.DEVNULL)
        print(f"{'':30}{'files/s':>9}{'s in all':>10}{'MiB, main':>11}{'MiB, worker':>13}")
        digests = set()
        for workers in (1, 2):
            for folder, count in ((few, max(1, args.files // 10)), (many, args.files)):
                out = home / f"{workers}.csv"
                done = scored(run, folder, out, workers)
                print(
                    f"{count:6} files, {workers} worker{'s' * (workers > 1):15}"
                    f"{count / done.scored_seconds:9.0f}{done.seconds:10.1f}"
                    f"{done.main_mib:11.0f}{done.worker_mib:13.0f}"
                )
            digests.add(digest(out))
        print(f"rows of 1 and 2 workers are equal to the byte: {len(digests) == 1}")
        out = home / "killed.csv"
        kept = killed(run, many, out, args.files)
        digests.add(digest(out))
        print(
            f"killed with {', '.join(map(str, kept))} rows on disk, then finished; equal to the "
            f"byte: {len(digests) == 1}"
        )
        if len(digests) > 1:
            sys.exit(1)


def sounds(folder: Path, count: int, seed: int) -> Path:
    """A folder of short files; as it is where it is there."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        wave = 0.1 * rng.standard_normal(int(rng.integers(RATE // 2, 3 * RATE // 2)))
        soundfile.write(folder / f"{i:06d}.{'flac' if i % 2 else 'wav'}", wave, RATE)
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "sance_audio", *map(str, words)]


def start(run: Path, folder: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    words = command("score", run, folder, "--out", out, "--workers", workers)
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def scored(run: Path, folder: Path, out: Path, workers: int) -> Done:
    """Score a folder, watching what it takes."""
    out.unlink(missing_ok=True)
    part, began, first = part_of(out), time.perf_counter(), 0.0
    process = start(run, folder, out, workers)
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for number in (process.pid, *children(process.pid)):
            peaks[number] = max(peaks.get(number, 0.0), own_mib(number))
        if not first and rows_in(part):
            first = time.perf_counter()
        time.sleep(0.05)
    end = time.perf_counter()
    if process.returncode:
        raise RuntimeError(f"scoring {folder} ended with status {process.returncode}")
    main_mib = peaks.pop(process.pid)
    return Done(end - began, end - (first or began), main_mib, max(peaks.values(), default=0.0))


def killed(run: Path, folder: Path, out: Path, count: int) -> list[int]:
    """Score a folder, killed at random moments and started again; rows that were on disk then."""
    out.unlink(missing_ok=True)
    part, kept = part_of(out), []
    for at in sorted(random.sample(range(1, 9 * count // 10), KILLS)):
        process = start(run, folder, out, 2)
        while rows_in(part) < at and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept.append(rows_in(part))
    if start(run, folder, out, 2).wait():
        raise RuntimeError(f"scoring {folder} did not end well")
    return kept


def part_of(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def rows_in(part: Path) -> int:
    """Finished rows."""
    try:
        return max(0, part.read_bytes().count(b"\r\n") - 1)
    except FileNotFoundError:
        return 0


def children(number: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    except OSError:
        return []


def own_mib(number: int) -> float:
    """Memory that a process holds but for the libraries it maps, which count as they happen to be
    in the system's cache and are read once more when it ends. From Linux's /proc; 0 elsewhere.
    """
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
