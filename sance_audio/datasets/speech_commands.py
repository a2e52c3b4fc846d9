"""Speech Commands v0.02: 105,829 clips of 35 words, some 2,600 speakers, 16 kHz mono, up to a
second; SC09 are the ten digits among them. The archive has 2.3 GB.

Layout: `{word}/{speaker}_nohash_{n}.wav`, `validation_list.txt` and `testing_list.txt`. Official
split: what the lists name is validated on and judged, the rest is trained on; a speaker's clips
all lie in one split. `_background_noise_/` is left out: minutes of noise, of no word and no
speaker, in no split.

Licence: CC BY 4.0. Source: https://www.tensorflow.org/datasets/catalog/speech_commands

References:
    Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition (Warden, 2018)
"""

from __future__ import annotations

__all__ = ["prepare", "DIGITS", "SAMPLE_RATE"]

import os
import re
from collections.abc import Collection
from pathlib import Path

from sance_audio import processes
from sance_audio.audio import shown
from sance_audio.datasets import trees
from sance_audio.datasets.archives import fetch
from sance_audio.datasets.corpus import Clip, Corpus, FileSource
from sance_audio.datasets.layout import listed, one_spelling, wrong_shape

SAMPLE_RATE = 16000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LICENCE = "CC BY 4.0"
ARCHIVE = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
CHECKSUM = "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
"""Of the archive, as torchaudio 2.11 publishes it (datasets/speechcommands.py). Not verified: the
archive could not be fetched where this was written.
"""
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
NOISE = "_background_noise_"
NESTED = ("", "speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02")
"""Where archives and torchaudio put it below the folder that is named."""
FILES = {"README.md", "LICENSE", *LISTS.values()}
NAME = re.compile(r"(\w+?)_nohash_\d+\.wav")
LINE = re.compile(r"[^/]+/[^/]+\.wav")


def prepare(
    root: str | Path | None = None,
    cache: str | Path = "data",
    *,
    words: Collection[str] | None = DIGITS,
) -> Corpus:
    """List the corpus.

    Arguments:
        root: A folder with the words' folders and the two lists. None downloads the corpus once
            into `cache`.
        cache: Where downloads are kept.
        words: Those wanted, in the order of the labels; all that are there when None.

    Raises:
        ValueError: no such folder, lists or words; a word in two spellings; a file in both lists.
    """
    root = _found(_download(Path(cache)) if root is None else Path(root))
    report = trees.Report(root)
    folders = {path.name: path for path in trees.folders(root, report)}
    if noise := folders.pop(NOISE, None):
        report.add(noise, "minutes of noise, of no word and in no split; left out")
    one_spelling(root, {name: len(os.listdir(path)) for name, path in folders.items()})
    labels = tuple(sorted(folders) if words is None else words)
    lacking = [word for word in labels if word not in folders]
    if lacking or not labels:
        raise _refusal(root, f"no folder of {listed(lacking) or 'any word'}")
    for path in sorted(root.iterdir()):
        if path.is_file() and path.name not in FILES:
            report.add(path, "no file of this corpus; left out")
    splits = _splits(root, None if words is None else {*labels}, report)
    held = {match[1]: s for n, s in splits.items() if (match := NAME.fullmatch(Path(n).name))}
    clips = [
        clip for word in labels for clip in _clips_of(word, folders[word], splits, held, report)
    ]
    there = {clip.name for clip in clips}
    for name in sorted(splits.keys() - there):
        report.add(root / name, f"{LISTS[splits[name]]} names it, it is not there")
    name = "sc09" if labels == DIGITS else "speech_commands"
    return Corpus(name, LICENCE, clips, labels, report.lines, rate=SAMPLE_RATE)


def _found(root: Path) -> Path:
    """The corpus's folder: the one that is named, or where an archive unpacks to below it."""
    for inside in NESTED:
        if all((root / inside / name).is_file() for name in LISTS.values()):
            return root / inside
    raise _refusal(root)


def _splits(root: Path, words: Collection[str] | None, report: trees.Report) -> dict[str, str]:
    """The split of each file `{word}/{name}` that a list names, of the words that are wanted."""
    named = {split: _lines(root / name, report) for split, name in LISTS.items()}
    both = sorted(named["valid"] & named["test"])
    if both:
        raise ValueError(
            f"{shown(root)}: expected each file in one list, found {len(both)} in "
            f"{' and '.join(LISTS.values())}: {listed(both)}; take both lists from the archive"
        )
    return {
        name: split
        for split, names in named.items()
        for name in names
        if words is None or name.partition("/")[0] in words
    }


def _lines(path: Path, report: trees.Report) -> set[str]:
    """What a list names."""
    try:
        lines = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{shown(path)}: expected a list of files, one a line, found none that can be read "
            f"({error}); take it from the archive"
        ) from error
    wrong = sorted(line for line in lines if not LINE.fullmatch(line))
    if wrong:
        report.add(path, f"{len(wrong)} lines are no {{word}}/{{name}}.wav: {listed(wrong)}")
    return lines - {*wrong}


def _clips_of(
    word: str, folder: Path, splits: dict[str, str], held: dict[str, str], report: trees.Report
) -> list[Clip]:
    """The clips of a word; a file in no list is trained on, unless its speaker is held out."""
    clips = []
    for path in trees.sounds(folder, report):
        name = f"{word}/{path.name}"
        match = NAME.fullmatch(path.name)
        if match is None:
            report.add(path, "expected a name {speaker}_nohash_{n}.wav; left out")
        elif name not in splits and match[1] in held:
            report.add(path, f"in no list, but {LISTS[held[match[1]]]} has its speaker; left out")
        else:
            clips.append(Clip(name, word, splits.get(name, "train"), FileSource(path)))
    return clips


def _refusal(root: Path, found: str = "") -> ValueError:
    expected = (
        f"Speech Commands v0.02, {{word}}/{{speaker}}_nohash_{{n}}.wav with "
        f"{' and '.join(LISTS.values())}"
    )
    return wrong_shape(root, expected, LICENCE, [ARCHIVE], found)


def _download(cache: Path) -> Path:
    return processes.on_main(
        lambda: fetch(ARCHIVE, cache, "speech_commands", CHECKSUM, keep=False)
    )
