"""From a corpus to a model about to be trained: features, a report on what was read, a reference.

Nothing is dropped in silence. What was left out, read in part, repeated, padded, cut, resampled or
mixed down is counted, and listed by name in `preparation.json`.
"""

from __future__ import annotations

__all__ = ["Material", "prepare", "build"]

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sance_audio import audio, processes
from sance_audio.datasets import Clip, Corpus, FileSource
from sance_audio.datasets.cache import (
    LogMels,
    Reading,
    cache_log_mels,
    clip_windows,
    distinct,
)
from sance_audio.energy import ReferencedEnergy
from sance_audio.features import LogMel
from sance_audio.files import read_json, write_json
from sance_audio.model import AudioEBM
from sance_audio.networks import (
    LEVEL_SIZES,
    SIZES,
    NoiseConditionalEnergy,
    ResidualEnergy,
)
from sance_audio.options import Options, Results
from sance_audio.reference import GaussianReference

PEAK = 0.5
"""Peak that clips are scaled to, so that level is no evidence; generated ones have room above it.
"""
SPLITS = ("train", "valid", "test")
IN_MEMORY = 128 * 2**20
"""Bytes of log-mels of a split, up to which they are held in memory."""
LISTED = 10
"""Lines printed of each kind of problem; all stand in preparation.json."""


@dataclass
class Material:
    """A corpus as the model sees it, by split."""

    clips: dict[str, list[Clip]]
    """Those that could be read, repetitions left out."""
    x: dict[str, Tensor | LogMels]
    """`(N, 1, M, T)`, standardised log-mels: of each clip one row, or several one after the other.
    """
    owner: dict[str, Tensor]
    """`(N,)`, the clip of each row."""
    y: dict[str, Tensor]
    """`(N,)`, class indices."""
    windows: int
    """Rows that a clip has at most."""
    facts: Results
    """What `preparation.json` holds."""

    def some(self, split: str, most: int) -> tuple[Tensor, Tensor]:
        """Log-mels of a split `(n, 1, M, T)`, at most so many, and which rows they are `(n,)`:
        all in order, or a fixed random choice.
        """
        n = len(self.y[split])
        rows = torch.arange(n)
        if n > most:
            rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most].sort()[0]
        return self.x[split][rows], rows

    def wave(
        self, split: str, clip: int, sample_rate: int, seconds: float | None = None
    ) -> Tensor:
        """The waveform `(N,)` of a clip, or of its first seconds, at one rate, read anew."""
        source = self.clips[split][clip].source
        if seconds is not None and isinstance(source, FileSource) and source.whole:
            source = FileSource(source.path, 0.0, seconds)
        recording = source.load()
        wave = audio.resample(recording.waveform, recording.sample_rate, sample_rate)
        return wave if seconds is None else wave[: round(seconds * sample_rate)]

    def window(self, split: str, row: int, model: AudioEBM) -> Tensor:
        """The sound `(window,)` of a row."""
        owner = self.owner[split]
        clip = int(owner[row])
        first = int((owner == clip).nonzero()[0])
        chosen, _ = clip_windows(
            self.clips[split][clip], model.sample_rate, model.window, model.peak, self.windows
        )
        return chosen[row - first]

    def chosen_clips(self, split: str, most: int) -> list[int]:
        """Clips of a split, at most so many: all in order, or a fixed random choice."""
        n = len(self.clips[split])
        if n <= most:
            return list(range(n))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        return order[:most].sort()[0].tolist()


def prepare(
    corpus: Corpus,
    features: LogMel,
    options: Options,
    *,
    frames: int | None = None,
    fitted: bool = False,
) -> Material:
    """Log-mels of a corpus, from the cache where they are there; prints a report and writes
    `preparation.json` into the run.

    Arguments:
        corpus: Its splits "train", "valid" and "test".
        features: Fitted here on the training split, unless they are `fitted`.
        options: Run folder, cache, frames.
        frames: Frames of a window, where it is not `options.frames`.
        fitted: The features are a trained model's; the corpus must be the one it was trained on.

    Raises:
        ValueError: a split without a readable clip; a class without training clips; another
            corpus, or another division of it, than the run's.
    """
    frames = options.frames if frames is None else frames
    listed = [clip for split in SPLITS for clip in corpus.split(split)]
    clips, digests, repeated = processes.on_main(lambda: distinct(listed))
    folder = options.cache or options.run / "features"
    path, readings = processes.on_main(
        lambda: cache_log_mels(
            clips, digests, features, frames, folder, peak=PEAK, windows=corpus.windows
        )
    )
    facts = _facts(corpus, clips, readings, repeated, features, frames)
    facts["corpus"] = _identity(clips, digests, readings)
    _compare(facts, options.run)
    if processes.is_main() and not fitted:
        write_json(options.run / "preparation.json", facts)
        _report(corpus.name, facts)
    material = _material(corpus, clips, path, readings, features, facts)
    if not fitted:
        train = LogMels(path, _rows(clips, readings)["train"][0], features)
        features.fit(train.log_mels(slice(i, i + 1024)) for i in range(0, len(train), 1024))
    for split, x in material.x.items():
        if isinstance(x, LogMels) and x.nbytes <= IN_MEMORY:
            material.x[split] = x[:]
    return material


def build(
    material: Material, corpus: Corpus, features: LogMel, options: Options
) -> tuple[AudioEBM, Tensor]:
    """An untrained model: the reference fitted to the training rows, the network at its start.

    Returns:
        The model, and the component of each training row `(N,)`.
    """
    reference, components = GaussianReference.fit(
        material.x["train"],
        material.y["train"],
        components=options.components,
        rank=options.rank,
        sigma=options.sigma,
        seed=options.seed,
    )
    if options.truncation and len(corpus.labels) < 2:
        raise ValueError(
            f"--truncation {options.truncation:g}: needs two labels or more to tell apart, found "
            f"{len(corpus.labels)}; leave it out"
        )
    network = _network(reference, material.x["train"][:1], options)
    model = AudioEBM(
        features,
        ReferencedEnergy(reference, network, options.train.temperature),
        corpus.labels,
        frames=options.frames,
        sigma=options.sigma,
        peak=PEAK,
        step_size=options.train.step_size,
        cap=options.train.cap,
        steps=options.generation_steps,
        sampling_temperature=options.sampling_temperature,
        truncation=options.truncation,
    )
    if processes.is_main():
        weights = sum(p.numel() for p in network.parameters())
        print(f"{reference.n_components} Gaussian components; {weights} parameters")
    return model, components


def _network(reference: GaussianReference, x: Tensor, options: Options) -> Any:
    """The network at its start, for log-mels like x `(1, 1, M, T)`."""
    torch.manual_seed(options.seed)
    if options.levels:
        return NoiseConditionalEnergy.of(
            reference,
            sigma=options.sigma,
            sigma_max=options.sigma_max,
            levels=options.levels,
            **LEVEL_SIZES[options.network],
        )
    size = SIZES[options.network]
    positions = ResidualEnergy(reference.n_components, **size).map(x).numel()
    torch.manual_seed(options.seed)
    return ResidualEnergy(reference.n_components, **size, positions=positions)


def _identity(clips: Sequence[Clip], digests: Sequence[str], readings: Sequence[Reading]) -> str:
    """A hash of what was read: every sound, its label and its split, whatever its name."""
    every = zip(clips, digests, readings, strict=True)
    lines = sorted(f"{digest} {c.split} {c.label}" for c, digest, r in every if r.rows)
    return hashlib.sha256("\n".join(lines).encode(errors="replace")).hexdigest()


def _compare(facts: Results, run: Path) -> None:
    """Raise ValueError unless the corpus is the one that the run was trained on."""
    path = run / "preparation.json"
    known = read_json(path) if path.exists() else {}
    if known.get("corpus", facts["corpus"]) != facts["corpus"]:
        raise ValueError(
            f"--data: not the corpus that {run} was started with, or not divided as it was "
            f"({known.get('clips')} clips then, {facts['clips']} now), so that clips trained on "
            f"could be judged as new ones: name the same folder with the same files, or another "
            f"--run"
        )


def _rows(
    clips: Sequence[Clip], readings: Sequence[Reading]
) -> dict[str, tuple[np.ndarray, list[int]]]:
    """By split: its rows of the array, and the readable clips that they belong to, in order."""
    ends = np.cumsum([reading.rows for reading in readings])
    out = {}
    for split in SPLITS:
        mine = [i for i, c in enumerate(clips) if c.split == split and readings[i].rows]
        rows = [np.arange(ends[i] - readings[i].rows, ends[i]) for i in mine]
        out[split] = np.concatenate(rows) if rows else np.arange(0), mine
    return out


def _material(
    corpus: Corpus,
    clips: Sequence[Clip],
    path: Path,
    readings: Sequence[Reading],
    features: LogMel,
    facts: Results,
) -> Material:
    material = Material({}, {}, {}, {}, corpus.windows, facts)
    for split, (rows, mine) in _rows(clips, readings).items():
        if not mine:
            failed = len(facts["left_out"])
            raise ValueError(
                f"{corpus.name}: no readable clip in the {split} split ({failed} left out)"
            )
        material.clips[split] = [clips[i] for i in mine]
        material.x[split] = LogMels(path, rows, features)
        counts = torch.tensor([readings[i].rows for i in mine])
        material.owner[split] = torch.arange(len(mine)).repeat_interleave(counts)
        material.y[split] = torch.tensor(corpus.index(material.clips[split]))[
            material.owner[split]
        ]
    missing = [label for i, label in enumerate(corpus.labels) if i not in material.y["train"]]
    if missing:
        raise ValueError(f"{corpus.name}: no training clip of {', '.join(missing)}")
    return material


def _facts(
    corpus: Corpus,
    clips: Sequence[Clip],
    readings: Sequence[Reading],
    repeated: list[str],
    features: LogMel,
    frames: int,
) -> Results:
    """What was read and what was not, with the names of whatever was not as it should be."""
    window = features.length(frames) / features.sample_rate
    good = [(c, r) for c, r in zip(clips, readings, strict=True) if r.rows]
    long = [(c, r) for c, r in good if r.seconds > window]
    return {
        "clips": {s: sum(c.split == s for c, _ in good) for s in SPLITS},
        "rows": {s: sum(r.rows for c, r in good if c.split == s) for s in SPLITS},
        "not_chosen": corpus.not_chosen,
        "seconds": sum(r.seconds for _, r in good),
        "window_seconds": window,
        "sample_rate": features.sample_rate,
        "padded": sum(r.seconds < window for _, r in good),
        "longer_than_window": len(long),
        "seconds_unused": sum(max(0.0, r.seconds - r.rows * window) for _, r in long),
        "silent_windows": sum(r.empty for _, r in good),
        "resampled": sum(r.rate != features.sample_rate for _, r in good),
        "mixed_down": sum(r.channels > 1 for _, r in good),
        "left_out": [*corpus.problems, *(r.problem for r in readings if r.problem)],
        "repeated": repeated,
        "read_in_part": [f"{c.name}: {r.partial}" for c, r in good if r.partial],
        "silent": [c.name for c, r in zip(clips, readings, strict=True) if r.silent],
        "other_rate": [
            f"{c.name}: {r.rate} Hz, where the corpus has {corpus.rate}; resampled"
            for c, r in good
            if corpus.rate not in (None, r.rate)
        ],
    }


def _report(name: str, facts: Results) -> None:
    """Counts on standard output; names of what was not as it should be on standard error."""
    counts = ", ".join(f"{n} {split}" for split, n in facts["clips"].items())
    rows = sum(facts["rows"].values())
    print(f"{name}: {counts} clips, {facts['seconds'] / 60:.1f} minutes, {rows} windows")
    if facts["not_chosen"]:
        print(f"  a part of the corpus: {facts['not_chosen']} further clips were not chosen")
    print(
        f"  of {facts['window_seconds']:.2f} s at {facts['sample_rate']} Hz: {facts['padded']} "
        f"clips padded, {facts['longer_than_window']} longer ({facts['seconds_unused']:.0f} s of "
        f"them unused), {facts['silent_windows']} silent windows passed over, "
        f"{facts['resampled']} resampled, {facts['mixed_down']} mixed down"
    )
    kinds = {
        "left_out": "left out",
        "repeated": "left out as repetitions",
        "read_in_part": "read in part",
        "silent": "left out as silent",
        "other_rate": "of another rate than documented",
    }
    print("  " + ", ".join(f"{len(facts[key])} {words}" for key, words in kinds.items()))
    for key, words in kinds.items():
        for line in facts[key][:LISTED]:
            print(f"{words}: {line}", file=sys.stderr)
        if len(facts[key]) > LISTED:
            more = len(facts[key]) - LISTED
            print(f"{words}: {more} more, all in preparation.json", file=sys.stderr)
