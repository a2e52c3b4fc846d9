"""NSynth: 305,979 notes of 1,006 instruments, 16 kHz mono, four seconds: a key held for three, one
of release. Unpacked it has some 39 GB; the archive of the training split is most of that.

Layout: `nsynth-{train,valid,test}/examples.json` and, beside it, the notes in
`audio/{family}_{source}_{instrument}-{pitch}-{velocity}.wav`. Official split: the three folders;
no instrument of the first is in the others.

Licence: CC BY 4.0. Source: https://magenta.tensorflow.org/datasets/nsynth

References:
    Neural Audio Synthesis of Musical Notes with WaveNet Autoencoders (Engel et al., 2017)
"""

from __future__ import annotations

__all__ = ["prepare", "LABELLED", "SOURCES", "SAMPLE_RATE"]

import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from sance_audio import processes
from sance_audio.audio import shown
from sance_audio.datasets import trees
from sance_audio.datasets.archives import fetch
from sance_audio.datasets.corpus import Clip, Corpus, FileSource
from sance_audio.datasets.layout import once, one_spelling, wrong_shape

SAMPLE_RATE = 16000
SOURCES = ("acoustic", "electronic", "synthetic")
LABELLED = ("family", "pitch", "none")
LICENCE = "CC BY 4.0"
SPLITS = ("train", "valid", "test")
ARCHIVE = (
    "https://storage.googleapis.com/magentadata/datasets/nsynth/nsynth-{split}.jsonwav.tar.gz"
)
CHECKSUM = None
"""Of the archives. Not verified: they could not be fetched where this was written, and none is
published.
"""
FEWEST = 8
"""Notes of a label to train on, below which it is left out."""
NAME = re.compile(r"([a-z_]+)_(acoustic|electronic|synthetic)_\d{3}-(\d{3})-\d{3}")
LAYOUT = "nsynth-{train,valid,test}/examples.json and audio/*.wav"


class Note(NamedTuple):
    """What `examples.json` says of a note."""

    family: str
    source: str
    pitch: int
    """A MIDI number."""


def prepare(
    root: str | Path | None = None,
    cache: str | Path = "data",
    *,
    labels: str = "family",
    sources: Collection[str] = SOURCES,
) -> Corpus:
    """List the corpus.

    Arguments:
        root: A folder with `nsynth-train/`, `nsynth-valid/` and `nsynth-test/`. None downloads
            them once into `cache`.
        cache: Where downloads are kept.
        labels: "family" (of the instrument), "pitch" (`060` is middle C), or "none".
        sources: How the instruments sound: some of `SOURCES`.

    Raises:
        ValueError: no such folder; an `examples.json` that is cut short or of another form; a
            note that is named twice; a family in two spellings; no note of these sources.
    """
    if labels not in LABELLED:
        raise ValueError(f"labels={labels!r}: expected one of {', '.join(LABELLED)}")
    if not sources or not set(sources) <= set(SOURCES):
        raise ValueError(f"sources={tuple(sources)}: expected some of {', '.join(SOURCES)}")
    root = _download(Path(cache)) if root is None else Path(root)
    folders = {split: _folder(root, split) for split in SPLITS}
    report = trees.Report(root)
    notes = {split: _notes(folder / "examples.json") for split, folder in folders.items()}
    once(root, [name for found in notes.values() for name, _ in found])
    one_spelling(root, Counter(note.family for found in notes.values() for _, note in found))
    clips = [
        clip
        for split, folder in folders.items()
        for clip in _clips_of(folder, split, dict(notes[split]), labels, sources, report)
    ]
    names, clips = _large_enough(clips, report)
    if not clips:
        raise ValueError(
            f"{shown(root)}: expected notes of the sources {', '.join(sources)}, {FEWEST} of a "
            f"label to train on, found none; ask for other sources"
        )
    kept = () if labels == "none" else names
    return Corpus("nsynth", LICENCE, clips, kept, report.lines, rate=SAMPLE_RATE)


def _folder(root: Path, split: str) -> Path:
    """Of a split; an archive unpacked into a folder of its own name is one deeper."""
    name = f"nsynth-{split}"
    for folder in (root / name, root / name / name):
        if (folder / "examples.json").is_file() and (folder / "audio").is_dir():
            return folder
    urls = [ARCHIVE.format(split=s) for s in SPLITS]
    lacking = f"no {name}/ with both in it ({trees.found_in(root)})" if root.is_dir() else ""
    raise wrong_shape(root, f"NSynth, {LAYOUT}", LICENCE, urls, lacking)


def _notes(path: Path) -> list[tuple[str, Note]]:
    """The notes that `examples.json` names, in its order; a name may come twice."""
    remedy = "unpack its archive again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_compact)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{shown(path)}: expected a whole JSON file of notes, found {path.stat().st_size} "
            f"bytes that are cut short or damaged ({error}); {remedy}"
        ) from error
    pairs = found if isinstance(found, list) else [found]
    wrong = sum(not (isinstance(p, tuple) and isinstance(p[-1], Note)) for p in pairs)
    if wrong or not pairs:
        raise ValueError(
            f"{shown(path)}: expected notes with instrument_family_str, instrument_source_str and "
            f"pitch, found {wrong} of {len(pairs)} entries without; {remedy}"
        )
    return pairs


def _compact(pairs: list[tuple[str, Any]]) -> Any:
    """A note as little more than its label: there are 289,205 of them in one file."""
    known = dict(pairs)
    try:
        family, source, pitch = (
            known[f"instrument_{key}_str"] if key != "pitch" else known[key]
            for key in ("family", "source", "pitch")
        )
        return Note(str(family), str(source), int(pitch))
    except (KeyError, TypeError, ValueError):
        return pairs


def _clips_of(
    folder: Path,
    split: str,
    notes: dict[str, Note],
    labels: str,
    sources: Collection[str],
    report: trees.Report,
) -> list[Clip]:
    """The notes of a split that are there, are named, and are of the sources."""
    files = {path.stem: path for path in trees.sounds(folder / "audio", report)}
    for stem in sorted(files.keys() - notes.keys()):
        report.add(files[stem], "examples.json does not name it; left out")
    clips = []
    for name, note in sorted(notes.items()):
        match = NAME.fullmatch(name)
        file = folder / "audio" / f"{name}.wav"
        if match is None or (match[1], match[2], int(match[3])) != note:
            report.add(file, f"examples.json says {', '.join(map(str, note))}; left out")
        elif name not in files:
            report.add(file, "examples.json names it, it is not there")
        elif note.source in sources:
            label = {"family": note.family, "pitch": f"{note.pitch:03d}", "none": ""}[labels]
            clip_name = trees.name_of(report.root, files[name])
            clips.append(Clip(clip_name, label, split, FileSource(files[name])))
    return clips


def _large_enough(clips: list[Clip], report: trees.Report) -> tuple[tuple[str, ...], list[Clip]]:
    """Labels with notes enough to train on, and their clips; the others are reported."""
    counts = Counter(clip.label for clip in clips if clip.split == "train")
    labels = tuple(sorted(label for label, count in counts.items() if count >= FEWEST))
    for clip in clips:
        if clip.label not in labels:
            report.add(
                report.root / clip.name,
                f"{clip.label!r} has {counts[clip.label]} notes to train on, fewer than {FEWEST}",
            )
    return labels, [clip for clip in clips if clip.label in labels]


def _download(cache: Path) -> Path:
    def all_three() -> None:
        for split in SPLITS:
            url, name = ARCHIVE.format(split=split), f"nsynth-{split}"
            fetch(url, cache / "nsynth", name, CHECKSUM, keep=False)

    processes.on_main(all_three)
    return cache / "nsynth"
