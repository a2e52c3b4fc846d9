"""Any folder of recordings: audio files anywhere below it, of any rate and length.

Labels are the folders of the first level, where more than one of them holds recordings enough;
otherwise the corpus is unlabelled. A share of each class is held out, by file, so that no window
that is judged comes from a recording that was trained on. One or a few long recordings are cut in
time instead: their first part is trained on, their last is judged.

Licence: the user's own.
"""

from __future__ import annotations

__all__ = ["prepare", "Survey"]

import functools
import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sance_audio import audio
from sance_audio.chunks import run_chunks, slices
from sance_audio.datasets.corpus import Clip, Corpus, FileSource
from sance_audio.datasets.layout import one_spelling
from sance_audio.files import read_json

HELD_OUT = 0.15
"""Share of each class in the validation split, and as much in the test split."""
CALIBRATING = 48
"""Validation clips that a detector at 5 % false alarms needs; up to a quarter of the clips are
given for it.
"""
FEWEST, FEWEST_ALONE = 6, 8
"""Files of a class, and of an unlabelled folder, below which they cannot be split by file."""
TOP = "(top)"
"""Class of files that lie beside the folders that give the labels."""
OTHER_SUFFIXES = {".m4a", ".aac", ".wma", ".mp4", ".m4b", ".webm", ".amr", ".mka", ".ape"}
"""Sound that libsndfile does not decode."""
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
        ValueError: no such folder, no audio in it, or too little of it; a label in two spellings.
    """
    if root is None:
        raise ValueError("--data DIR: name the folder of your recordings")
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"--data {root}: expected a folder of recordings, found no folder")
    problems: list[str] = []
    paths = _no_runs(root, audio.find_audio([root]), problems)
    problems += _undecodable(root)
    headers = _headers(paths, problems)
    if not headers:
        raise ValueError(f"{root}: none of {len(paths)} files can be used; {problems[0]}")
    paths = _once(root, list(headers), problems)
    labels, classes = _classes(root, paths, problems)
    in_time = not labels and len(paths) < FEWEST_ALONE
    if in_time:
        clips = _in_time(root, {path: headers[path][1] for path in paths}, problems)
    else:
        splits = _by_file(root, classes, seed)
        clips = [
            Clip(_name(root, path), label, splits[path], FileSource(path))
            for label, members in classes.items()
            for path in members
        ]
    clips.sort(key=lambda clip: clip.name)
    used = [headers[path] for members in classes.values() for path in members]
    rates, seconds = (np.array(column) for column in zip(*used, strict=True))
    survey = Survey(rates, seconds, in_time)
    name = audio.shown(root.resolve().name)
    return Corpus(name, "the user's own", clips, labels, problems, windows), survey


def _no_runs(root: Path, paths: list[Path], problems: list[str]) -> list[Path]:
    """Paths that lie in no run folder: what a model wrote is no recording."""

    @functools.cache
    def run_of(folder: Path) -> Path | None:
        if folder != root.parent and (folder / "config.json").is_file():
            try:
                if "recipe" in read_json(folder / "config.json"):
                    return folder
            except (ValueError, TypeError):
                pass
        return None if folder in (root, folder.parent) else run_of(folder.parent)

    runs = sorted({run for path in paths if (run := run_of(path.parent)) is not None})
    problems += [
        f"{audio.shown(run)}: the folder of a run; what it made is no data" for run in runs
    ]
    return [path for path in paths if run_of(path.parent) is None]


def _undecodable(root: Path) -> list[str]:
    """Files that hold sound in formats that cannot be decoded here."""
    return [
        f"{audio.shown(Path(folder, name))}: cannot be decoded here; convert it to WAV or FLAC"
        for folder, _, names in os.walk(root)
        for name in sorted(names)
        if Path(name).suffix.lower() in OTHER_SUFFIXES
        and not any(part.startswith(".") for part in Path(folder, name).relative_to(root).parts)
    ]


def _headers(paths: list[Path], problems: list[str]) -> dict[Path, tuple[int, float]]:
    """Rate and duration of each readable file; the others are added to `problems`."""

    def one(path: Path) -> tuple[int, float] | str:
        try:
            info = audio.info(path)
            # where the header does not say how long it is, it is decoded
            frames = info.frames or len(audio.load(path).waveform)
            return info.sample_rate, frames / info.sample_rate
        except audio.AudioError as error:
            return str(error)

    parts = run_chunks(lambda part: [one(p) for p in paths[part]], slices(len(paths), 64))
    found = dict(zip(paths, (i for part in parts for i in part), strict=True))
    problems += [reason for reason in found.values() if isinstance(reason, str)]
    return {path: header for path, header in found.items() if not isinstance(header, str)}


def _once(root: Path, paths: list[Path], problems: list[str]) -> list[Path]:
    """Files of equal content once, before they are divided."""
    parts = run_chunks(
        lambda part: [FileSource(p).digest() for p in paths[part]], slices(len(paths), 64)
    )
    first: dict[str, Path] = {}
    for path, digest in zip(paths, (d for part in parts for d in part), strict=True):
        other = first.setdefault(digest, path)
        if other is not path:
            problems.append(f"{_name(root, path)}: the same file as {_name(root, other)}")
    return list(first.values())


def _name(root: Path, path: Path) -> str:
    return audio.shown(path.relative_to(root).as_posix())


def _classes(
    root: Path, paths: list[Path], problems: list[str]
) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
    """Labels, and the files of each; one class named "" where there are no labels.

    Files of classes too small to be split are left out, and said to be.

    Raises:
        ValueError: a label in two spellings.
    """
    classes: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        parts = path.relative_to(root).parts
        classes[audio.shown(parts[0]) if len(parts) > 1 else TOP].append(path)
    one_spelling(root, {label: len(members) for label, members in classes.items()})
    large = {label: members for label, members in classes.items() if len(members) >= FEWEST}
    if len(large) < 2:
        return (), {"": paths}
    for label in sorted(classes.keys() - large.keys()):
        problems += [
            f"{_name(root, path)}: class {label!r} has {len(classes[label])} recordings, fewer "
            f"than {FEWEST}"
            for path in classes[label]
        ]
    labels = tuple(sorted(large))
    return labels, {label: large[label] for label in labels}


def _by_file(root: Path, classes: dict[str, list[Path]], seed: int) -> dict[Path, str]:
    """The split of each file: shares of each class, in the order of a hash of the name."""

    def rank(path: Path) -> bytes:
        name = f"{seed}/{path.relative_to(root).as_posix()}".encode(errors="surrogateescape")
        return hashlib.blake2b(name, digest_size=8).digest()

    alone = len(classes) == 1
    test = {c: max(1 + alone, round(HELD_OUT * len(m))) for c, m in classes.items()}
    valid = {c: max(2 + alone, round(HELD_OUT * len(m))) for c, m in classes.items()}
    spare = {c: max(0, len(m) // 4 - valid[c]) for c, m in classes.items()}
    lacking = min(CALIBRATING - sum(valid.values()), sum(spare.values()))
    for c in sorted(classes, key=lambda c: -spare[c]):  # the large ones give more
        if lacking > 0:
            given = min(spare[c], -(-lacking * spare[c] // sum(spare.values())))
            valid[c], spare[c], lacking = valid[c] + given, 0, lacking - given
    splits: dict[Path, str] = {}
    for c, members in classes.items():
        kinds = ["test"] * test[c] + ["valid"] * valid[c]
        kinds += ["train"] * (len(members) - len(kinds))
        splits |= dict(zip(sorted(members, key=rank), kinds, strict=True))
    return splits


def _in_time(root: Path, seconds: dict[Path, float], problems: list[str]) -> list[Clip]:
    """Recordings cut into pieces; the first are trained on, the last judged."""
    total = sum(seconds.values())
    piece = max(PIECE, total / PIECES)
    clips = []
    for path, length in seconds.items():
        count = int(length / piece)
        if count <= FEWEST:  # seven pieces are five, one and one
            problems.append(f"{_name(root, path)}: {length:.1f} s are too short to be cut in time")
            continue
        for i in range(count):
            split = next(s for s, end in SHARES.items() if i < end * count)
            source = FileSource(path, i * piece, piece)
            clips.append(Clip(f"{_name(root, path)}@{i * piece:010.2f}s", "", split, source))
    if not clips:
        raise ValueError(
            f"{root}: {len(seconds)} recordings of {total:.1f} s in all are too few; give at "
            f"least {FEWEST_ALONE} recordings, or one of {10 * PIECE:.0f} seconds"
        )
    return clips
