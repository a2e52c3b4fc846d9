"""Any folder of recordings: audio files anywhere below it, of any rate and length.

Labels are the folders of the first level, where more than one of them holds recordings enough;
otherwise the corpus is unlabelled. A share of each class is held out, by file, so that no window
that is judged comes from a recording that was trained on. One or a few long recordings are cut in
time instead: their first part is trained on, their last is judged.

Licence: the user's own.
"""

from __future__ import annotations

__all__ = ["prepare", "Survey"]

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sance_audio import audio
from sance_audio.chunks import run_chunks, slices
from sance_audio.datasets.corpus import Clip, Corpus, FileSource

HELD_OUT = 0.15
"""Share of each class in the validation split, and as much in the test split."""
CALIBRATING = 48
"""Validation clips that a detector at 5 % false alarms needs; up to a quarter of the clips are
given for it.
"""
FEWEST = 5
"""Files of a class, or of an unlabelled folder, below which they cannot be split by file."""
PIECE, PIECES = 1.0, 40
"""Shortest piece of a recording cut in time, in seconds, and pieces that are aimed at."""
SHARES = {"train": 0.7, "valid": 0.85, "test": 1.0}
"""Where in time the splits of a recording end."""


@dataclass(frozen=True)
class Survey:
    """What the headers of the readable files say."""

    rates: np.ndarray
    """`(N,)`, in Hz."""
    seconds: np.ndarray
    """`(N,)`."""
    cut_in_time: bool
    """The splits are parts of the same recordings."""


def prepare(root: str | Path | None, *, windows: int = 64, seed: int = 0) -> tuple[Corpus, Survey]:
    """List the recordings below a folder.

    Arguments:
        root: The folder.
        windows: Windows of one recording that are trained on, at most.
        seed: Of the splits. A file's place depends on its name and its rank among the others.

    Raises:
        ValueError: no such folder, no audio in it, or too little of it.
    """
    if root is None:
        raise ValueError("--data DIR: name the folder of your recordings")
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"--data {root}: expected a folder of recordings, found no folder")
    paths = audio.find_audio([root])
    headers, problems = _headers(paths)
    if not headers:
        raise ValueError(f"{root}: none of {len(paths)} files can be read; {problems[0]}")
    seconds = {path: _seconds(path, info) for path, info in headers.items()}
    labels, classes = _classes(root, list(headers), problems)
    in_time = sum(map(len, classes.values())) < FEWEST
    if in_time:
        clips = _in_time(root, seconds)
    else:
        clips = [
            Clip(_name(root, path), label, split, FileSource(path))
            for label, members in classes.items()
            for path, split in _by_file(root, members, len(classes), seed)
        ]
    clips.sort(key=lambda clip: clip.name)
    used = [path for members in classes.values() for path in members]
    survey = Survey(
        np.array([headers[path].sample_rate for path in used]),
        np.array([seconds[path] for path in used]),
        in_time,
    )
    return Corpus(root.resolve().name, "the user's own", clips, labels, problems, windows), survey


def _headers(paths: list[Path]) -> tuple[dict[Path, audio.Info], list[str]]:
    """What each readable file says of itself, and why the others cannot be read."""

    def one(path: Path) -> audio.Info | str:
        try:
            return audio.info(path)
        except audio.AudioError as error:
            return str(error)

    parts = run_chunks(lambda part: [one(p) for p in paths[part]], slices(len(paths), 64))
    found = dict(zip(paths, (i for part in parts for i in part), strict=True))
    good = {path: info for path, info in found.items() if isinstance(info, audio.Info)}
    return good, [info for info in found.values() if isinstance(info, str)]


def _seconds(path: Path, info: audio.Info) -> float:
    """Duration of a file; where the header does not say, it is decoded."""
    frames = info.frames or len(audio.load(path).waveform)
    return frames / info.sample_rate


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _classes(
    root: Path, paths: list[Path], problems: list[str]
) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
    """Labels, and the files of each; one class named "" where there are no labels.

    Files of classes too small to be split are left out, and said to be.
    """
    classes: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        parts = path.relative_to(root).parts
        classes[parts[0] if len(parts) > 1 else root.resolve().name].append(path)
    large = {label: members for label, members in classes.items() if len(members) >= FEWEST}
    if len(large) < 2:
        return (), {"": paths}
    for label in sorted(classes.keys() - large.keys()):
        problems += [
            f"{path}: class {label!r} has {len(classes[label])} recordings, fewer than {FEWEST}"
            for path in classes[label]
        ]
    labels = tuple(sorted(large))
    return labels, {label: large[label] for label in labels}


def _by_file(root: Path, paths: list[Path], n_classes: int, seed: int) -> list[tuple[Path, str]]:
    """The split of each file of a class, in the order of a hash of its name."""

    def rank(path: Path) -> bytes:
        name = f"{seed}/{_name(root, path)}".encode(errors="surrogateescape")
        return hashlib.blake2b(name, digest_size=8).digest()

    n = len(paths)
    share = round(HELD_OUT * n)
    test = max(1, share)
    valid = max(1, share, min(math.ceil(CALIBRATING / n_classes), n // 4))
    splits = ["test"] * test + ["valid"] * valid + ["train"] * (n - test - valid)
    return list(zip(sorted(paths, key=rank), splits, strict=True))


def _in_time(root: Path, seconds: dict[Path, float]) -> list[Clip]:
    """Recordings cut into pieces; the first are trained on, the last judged."""
    total = sum(seconds.values())
    piece = max(PIECE, total / PIECES)
    clips = []
    for path, length in seconds.items():
        count = int(length / piece)
        for i in range(count):
            split = next(s for s, end in SHARES.items() if i < end * count)
            source = FileSource(path, i * piece, piece)
            clips.append(Clip(f"{_name(root, path)}@{i * piece:010.2f}s", "", split, source))
    counts = {split: sum(clip.split == split for clip in clips) for split in SHARES}
    if counts["train"] < 3 or not counts["valid"] or not counts["test"]:
        raise ValueError(
            f"{root}: {len(seconds)} recordings of {total:.1f} s in all are too few; give at "
            f"least {FEWEST} recordings, or one of {10 * PIECE:.0f} seconds"
        )
    return clips
