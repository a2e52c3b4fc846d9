"""Free Spoken Digit Dataset: ten digits, six speakers, 3,000 clips, 8 kHz mono, 0.14 to 2.28 s.

Layout: `recordings/{digit}_{speaker}_{index}.wav`. Official split: index 0-4 test, 5-49 train; of
the latter, 5-9 are held out here for validation.

Licence: CC BY-SA 4.0. Source: https://github.com/Jakobovski/free-spoken-digit-dataset
"""

from __future__ import annotations

__all__ = ["prepare", "By", "LABELS", "SAMPLE_RATE"]

import re
from pathlib import Path
from typing import Literal

from sance_audio import processes
from sance_audio.datasets.archives import fetch
from sance_audio.datasets.corpus import Clip, Corpus, FileSource
from sance_audio.datasets.layout import wrong_shape

SAMPLE_RATE = 8000
LICENCE = "CC BY-SA 4.0"
LABELS = tuple("0123456789")
By = Literal["digit", "speaker"]
"""What clips are labelled by: what is said, or who says it."""
ARCHIVE = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
CHECKSUM = None
"""Of the archive. Not verified: it could not be fetched where this was written, and none is
published.
"""
CLIPS = 3000
NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)\.wav")


def prepare(
    root: str | Path | None = None, cache: str | Path = "data", by: By = "digit"
) -> Corpus:
    """List the corpus. The clips, their order and their splits are the same however labelled.

    Arguments:
        root: A folder with `recordings/`. None downloads the corpus once into `cache`.
        cache: Where downloads are kept.
        by: Labels: the ten digits, or the speakers that are there, in alphabetical order.

    Raises:
        ValueError: no such folder, or no recordings in it; another kind of label.
    """
    if by not in ("digit", "speaker"):
        raise ValueError(f"clips are labelled by digit or by speaker, found {by!r}")
    root = _download(Path(cache)) if root is None else Path(root)
    folder = root / "recordings"
    if not folder.is_dir():
        raise wrong_shape(
            root,
            "a folder with recordings/{digit}_{speaker}_{index}.wav (the Free Spoken Digit "
            "Dataset)",
            LICENCE,
            [ARCHIVE],
        )
    clips, problems = [], []
    for path in sorted(folder.iterdir()):
        match = NAME.fullmatch(path.name)
        if match is None:
            problems.append(f"{path}: not named as a recording of this corpus; left out")
            continue
        digit, speaker, index = match.groups()
        split = "test" if int(index) < 5 else "valid" if int(index) < 10 else "train"
        label = digit if by == "digit" else speaker
        clips.append(Clip(f"recordings/{path.name}", label, split, FileSource(path)))
    if not clips:
        raise ValueError(f"{folder}: holds no file named {{digit}}_{{speaker}}_{{index}}.wav")
    labels = LABELS if by == "digit" else tuple(sorted({clip.label for clip in clips}))
    return Corpus("fsdd", LICENCE, clips, labels, problems, rate=SAMPLE_RATE)


def _download(cache: Path) -> Path:
    folder = processes.on_main(lambda: fetch(ARCHIVE, cache, "fsdd", CHECKSUM))
    clips = [path for path in folder.glob("*/recordings/*") if NAME.fullmatch(path.name)]
    if len(clips) != CLIPS:
        raise ValueError(
            f"{folder}: expected {CLIPS} recordings below it, found {len(clips)}; delete it and "
            f"try again, or pass --data DIR"
        )
    return clips[0].parent.parent
