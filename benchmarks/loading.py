"""Corpora larger than memory: what a cache of log-mels takes to build and to read, and what share
of a training step on a CPU the reading is.

    python -m benchmarks.loading [--clips 100000] [--steps 60] [--folder DIR]

The clips are a second long, 16 kHz, made in memory from a few recordings of noise, each its own.
The build is killed at a third and gone on from. A training step is that of the cpu presets: 64
bands, 64 frames, 40 components. With --folder, the cache stays there and is used again.
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sance_audio import TrainConfig, audio, train
from sance_audio.datasets import Clip
from sance_audio.datasets.cache import LogMels, cache_log_mels, clip_windows
from sance_audio.energy import ReferencedEnergy
from sance_audio.features import LogMel
from sance_audio.model import AudioEBM
from sance_audio.networks import SIZES, ResidualEnergy
from sance_audio.preparation import PEAK
from sance_audio.reference import GaussianReference

RATE, FRAMES, COMPONENTS = 16_000, 64, 40
NOISE = torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 0.3, (16, RATE)).astype("f4"))
HOME = Path(__file__).parents[1]
LIMIT_MIB, LIMIT_SHARE = 2048, 0.05


@dataclass(frozen=True)
class Made:
    """A recording of noise, rolled and faded as no other is."""

    number: int

    def load(self) -> audio.Recording:
        kind, shift = self.number % len(NOISE), self.number // len(NOISE)
        fade = torch.linspace(1, (self.number % 97) / 97, RATE)
        return audio.Recording(NOISE[kind].roll(shift) * fade, RATE, 1)

    def digest(self) -> str:
        return str(self.number)


class Timed:
    """Rows of a cache, and the seconds that each reading of them took.

    Arguments:
        rows: As `train` takes them.
        cold: The system forgets what it holds of the file before each reading.
    """

    def __init__(self, rows: LogMels | Tensor, cold: bool = False):
        self.rows, self.cold, self.seconds = rows, cold, 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        if self.cold and isinstance(self.rows, LogMels):
            forget(self.rows)
        began = time.perf_counter()
        found = self.rows[index]
        self.seconds = time.perf_counter() - began
        return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--build", action="store_true", help="only build: for the runs it starts")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        if args.build:
            cache(folder, args.clips)
            return
        peaks = [built(folder, args.clips)]
        path = cache(folder, args.clips)
        read(path, args.clips)
        share = trained(path, args.clips, args.steps)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    print(f"peak memory of this process, which read and trained: {peaks[1]:.0f} MiB resident")
    if share > LIMIT_SHARE or max(peaks) > LIMIT_MIB:
        sys.exit(1)


def features() -> LogMel:
    return LogMel(RATE, n_fft=1024, hop_length=256, n_mels=64, f_min=20.0, floor=5e-5)


def cache(folder: Path, count: int) -> Path:
    clips = [Clip(f"{i:06d}", "", "train", Made(i)) for i in range(count)]
    digests = [clip.source.digest() for clip in clips]
    return cache_log_mels(clips, digests, features(), FRAMES, folder, peak=PEAK)[0]


def built(folder: Path, count: int) -> float:
    """Build, in processes of their own, of which one is killed; their peak memory in MiB."""
    if list(folder.glob("*.npy")):
        return 0.0
    words = [sys.executable, "-m", "benchmarks.loading", "--build", "--clips", str(count)]
    words += ["--folder", str(folder)]
    process = subprocess.Popen(words, cwd=HOME)
    while done(folder) < count // 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept, began = done(folder), time.perf_counter()
    subprocess.run(words, cwd=HOME, check=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    print(
        f"building: killed with {kept} of {count} clips on the disk; the other {count - kept} in "
        f"{seconds:.0f} s, {(count - kept) / seconds:.0f} clips/s; peak {peak:.0f} MiB resident"
    )
    return peak


def done(folder: Path) -> int:
    """Clips of an unfinished build that are on the disk."""
    logs = list(folder.glob(".*.part.jsonl"))
    return sum(log.read_bytes().count(b'"rows"') for log in logs)


def read(path: Path, count: int) -> None:
    """Every row once in order, and as many in any order; some are made anew and compared."""
    rows, mel = LogMels(path, np.arange(count), features()), features()
    for name, order in (
        ("in order", torch.arange(count)),
        ("in any order", torch.randperm(count)),
    ):
        forget(rows)
        began = time.perf_counter()
        for part in order.split(64):
            rows.log_mels(part)
        seconds = time.perf_counter() - began
        print(f"reading all rows {name}, from the disk: {count / seconds:.0f} clips/s")
    some = range(0, count, max(1, count // 200))
    for i in some:
        clip = Clip("", "", "train", Made(i))
        wave, _ = clip_windows(clip, RATE, mel.length(FRAMES), PEAK, 1)
        if not torch.equal(rows.log_mels(torch.tensor([i])), mel.log_mel(wave)):
            raise RuntimeError(f"row {i} is not the log-mel of its clip")
    print(f"{len(some)} rows made anew are equal to the bit")


def trained(path: Path, count: int, steps: int) -> float:
    """Medians of a step and of the reading in it, of runs in turn; the largest share."""
    mel = features()
    rows = LogMels(path, np.arange(count), mel)
    mel.fit(rows.log_mels(slice(i, i + 1024)) for i in range(0, min(count, 8192), 1024))
    few = rows[: min(count, 8192)]
    kinds = torch.arange(count) % COMPONENTS
    reference, _ = GaussianReference.fit(few, kinds[: len(few)], components=1)
    contestants: dict[str, Timed] = {
        "memory": Timed(few),
        "cache": Timed(rows),
        "cache, cold": Timed(rows, cold=True),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in range(3):
        for name, x in contestants.items():
            found[name] += steps_of(x, reference, mel, kinds[: len(x)], steps, turn)
    print(f"\n{'training from':24}{'ms a step':>12}{'ms reading':>12}{'share':>9}")
    shares = []
    for name, pairs in found.items():
        step, reading = (statistics.median(column) for column in zip(*pairs, strict=True))
        shares.append(statistics.median(b / a for a, b in pairs))
        print(f"{name:24}{1e3 * step:12.1f}{1e3 * reading:12.3f}{100 * shares[-1]:8.2f}%")
    return max(shares)


def steps_of(
    x: Timed, reference: GaussianReference, mel: LogMel, kinds: Tensor, steps: int, turn: int
) -> list[tuple[float, float]]:
    """Seconds of each step of a short run, and of the reading in it."""
    torch.manual_seed(turn)
    network = ResidualEnergy(reference.n_components, **SIZES["cpu"])
    model = AudioEBM(mel, ReferencedEnergy(reference, network), (), frames=FRAMES)
    ends: list[tuple[float, float]] = []

    def step_ends(*_: Any) -> None:
        ends.append((time.perf_counter(), x.seconds))

    config = TrainConfig(steps=steps, langevin_steps=10, checkpoint_every=10**6, sample_every=0)
    with tempfile.TemporaryDirectory() as run:
        train(model, x, kinds, config, run, callbacks=(step_ends,), progress=False)
    return [(b[0] - a[0], b[1]) for a, b in itertools.pairwise(ends)]


def forget(rows: LogMels) -> None:
    """Let this process, and then the system, forget what they hold of the file, where they can be
    asked to.
    """
    if hasattr(mmap, "MADV_DONTNEED") and hasattr(os, "posix_fadvise"):
        rows.array._mmap.madvise(mmap.MADV_DONTNEED)
        with rows.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
