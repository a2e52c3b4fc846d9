"""ESC-50: 2,000 clips of environmental sounds, 50 classes of 40, 5 s, 44.1 kHz; and ESC-10, the
400 clips of ten of these classes that its authors marked as the easy ones.

Layout: `audio/{fold}-{clip}-{take}-{target}.wav` (or .ogg, .flac) and `meta/esc50.csv` with the
columns filename, fold, target, category, esc10, src_file, take. Five folds; clips cut from one
source recording (`src_file`) lie in one fold, so that no fold knows the recordings of another.

Licence: ESC-50 CC BY-NC 3.0, ESC-10 CC BY 3.0. Source: https://github.com/karolpiczak/ESC-50

References:
    ESC: Dataset for environmental sound classification (Piczak, 2015)
"""

from __future__ import annotations

__all__ = ["prepare", "listing", "FoldClip", "FOLDS", "SAMPLE_RATE"]

import csv
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from sance_audio import processes
from sance_audio.datasets.archives import fetch
from sance_audio.datasets.corpus import Clip, Corpus, FileSource
from sance_audio.datasets.layout import once, one_spelling, wrong_shape
from sance_audio.datasets.trees import found_in, name_of

SAMPLE_RATE = 44100
FOLDS = (1, 2, 3, 4, 5)
ARCHIVE = "https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"
CHECKSUM = None
"""Of the archive: GitHub packs it anew, so that none can be published."""
COLUMNS = {"filename", "fold", "target", "category", "esc10", "src_file", "take"}
NAME = re.compile(r"([1-5])-([^-]+)-([^-]+)-([0-9]+)\.(wav|ogg|flac)")
SUFFIXES = (".wav", ".ogg", ".flac")


@dataclass(frozen=True)
class FoldClip(Clip):
    """A clip that says what it may not be separated from."""

    fold: int = 0
    """1 to 5."""
    group: str = ""
    """The source recording that it was cut from."""


def prepare(
    root: str | Path | None = None,
    cache: str | Path = "data",
    *,
    esc10: bool = False,
    test: Collection[int] = (5,),
    valid: Collection[int] = (4,),
) -> Corpus:
    """List the corpus, divided by folds; each clip is a `FoldClip`.

    Arguments:
        root: A folder with `audio/` and `meta/`. None downloads the corpus once into `cache`.
        cache: Where downloads are kept.
        esc10: Only the ten classes of ESC-10.
        test, valid: Folds that are judged and validated on; the others are trained on.

    Raises:
        ValueError: as `listing`; folds that do not exist, that are in both splits, or that leave
            nothing to train on.
    """
    held = [*test, *valid]
    if not set(held) < set(FOLDS) or len(set(held)) < len(held):
        raise ValueError(
            f"test={tuple(test)} and valid={tuple(valid)}: expected folds of {FOLDS}, each once, "
            f"that leave at least one to train on"
        )
    splits = dict.fromkeys(FOLDS, "train") | dict.fromkeys(valid, "valid")
    splits |= dict.fromkeys(test, "test")
    root = _root(root, cache)
    clips = listing(root, esc10=esc10)
    name, licence = ("esc10", "CC BY 3.0") if esc10 else ("esc50", "CC BY-NC 3.0")
    labels = tuple(sorted({clip.label for clip in clips}))
    divided: list[Clip] = [replace(c, split=splits[c.fold]) for c in clips]
    return Corpus(name, licence, divided, labels, _unlisted(root), rate=SAMPLE_RATE)


def listing(
    root: str | Path | None = None, cache: str | Path = "data", *, esc10: bool = False
) -> list[FoldClip]:
    """All clips, in the order of their names, with category, fold and source; in no split.

    Raises:
        ValueError: no metadata, or not this corpus's; files missing that it names (all are
            counted and named); a file named twice; a category in two spellings; a source whose
            clips lie in several folds.
    """
    root = _root(root, cache)
    meta = root / "meta" / "esc50.csv"
    rows = _rows(meta)
    once(meta, [row["filename"] for row in rows])
    one_spelling(meta, Counter(row["category"] for row in rows))
    _one_fold_a_source(meta, rows)
    rows = [row for row in rows if row["esc10"] == "True" or not esc10]
    if not rows:
        raise ValueError(f"{meta}: expected clips marked as ESC-10, found none; leave out esc10")
    files = [_file(root / "audio", row["filename"]) for row in rows]
    _all_there(root, [row["filename"] for row, file in zip(rows, files, strict=True) if not file])
    clips = [
        FoldClip(
            f"audio/{file.name}",
            row["category"],
            "",
            FileSource(file),
            int(row["fold"]),
            row["src_file"],
        )
        for row, file in zip(rows, files, strict=True)
        if file
    ]
    return sorted(clips, key=lambda clip: clip.name)


def _root(root: str | Path | None, cache: str | Path) -> Path:
    """The corpus's folder, downloaded where none is named."""
    root = _download(Path(cache)) if root is None else Path(root)
    if not (root / "meta" / "esc50.csv").is_file():
        found = f"no meta/esc50.csv in it ({found_in(root)})" if root.is_dir() else ""
        licence = "ESC-50 CC BY-NC 3.0, ESC-10 CC BY 3.0"
        expected = "a folder with meta/esc50.csv and audio/ (ESC-50)"
        raise wrong_shape(root, expected, licence, [ARCHIVE], found)
    return root


def _unlisted(root: Path) -> list[str]:
    """A line on each file beside the clips that the metadata does not name."""
    named = {Path(row["filename"]).stem for row in _rows(root / "meta" / "esc50.csv")}
    return [
        f"{name_of(root, path)}: meta/esc50.csv does not name it; left out"
        for path in sorted((root / "audio").iterdir())
        if path.stem not in named or path.suffix not in SUFFIXES
    ]


def _rows(meta: Path) -> list[dict[str, str]]:
    """The lines of the metadata, each checked against the name of its file."""
    with meta.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lacking = COLUMNS - set(reader.fieldnames or ())
        if lacking:
            raise ValueError(
                f"{meta}: expected the columns {', '.join(sorted(COLUMNS))}, found none named "
                f"{', '.join(sorted(lacking))}; take the file from the archive of ESC-50"
            )
        rows = list(reader)
    wrong = [
        row["filename"]
        for row in rows
        if (match := NAME.fullmatch(row["filename"] or "")) is None
        or (match[1], match[3], match[4]) != (row["fold"], row["take"], row["target"])
    ]
    if wrong or not rows:
        raise ValueError(
            f"{meta}: expected lines whose filename is {{fold}}-{{clip}}-{{take}}-{{target}}.wav, "
            f"as their columns say, found {len(wrong)} of {len(rows)} that are not: "
            f"{', '.join(map(str, wrong))}; take the file from the archive of ESC-50"
        )
    return rows


def _one_fold_a_source(meta: Path, rows: list[dict[str, str]]) -> None:
    folds: dict[str, set[str]] = {}
    for row in rows:
        folds.setdefault(row["src_file"], set()).add(row["fold"])
    torn = sorted(source for source, found in folds.items() if len(found) > 1)
    if torn:
        raise ValueError(
            f"{meta}: expected the clips of a source in one fold, found {len(torn)} sources in "
            f"several: {', '.join(torn)}; what is judged would have been trained on. Take the "
            f"file from the archive of ESC-50"
        )


def _file(folder: Path, name: str) -> Path | None:
    """A clip's file, whichever way it is encoded."""
    named = folder / name
    paths = (named, *(named.with_suffix(suffix) for suffix in SUFFIXES))
    return next((path for path in paths if path.is_file()), None)


def _all_there(root: Path, missing: list[str]) -> None:
    if missing:
        raise ValueError(
            f"{root / 'audio'}: {len(missing)} files are missing that meta/esc50.csv names: "
            f"{', '.join(missing)}; unpack the archive again, or delete their lines there"
        )


def _download(cache: Path) -> Path:
    folder = processes.on_main(lambda: fetch(ARCHIVE, cache, "esc50", CHECKSUM))
    found = sorted(folder.glob("*/meta/esc50.csv"))
    if not found:
        raise ValueError(
            f"{folder}: expected ESC-50 below it, found no meta/esc50.csv; delete it and try "
            f"again, or pass --data DIR"
        )
    return found[0].parent.parent
