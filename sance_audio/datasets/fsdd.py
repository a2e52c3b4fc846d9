"""Free Spoken Digit Dataset: ten digits, six speakers, 3,000 clips, 8 kHz mono, 0.14 to 2.28 s.

Layout: `recordings/{digit}_{speaker}_{index}.wav`. Official split: index 0-4 test, 5-49 train; of
the latter, 5-9 are held out here for validation.

Licence: CC BY-SA 4.0. Source: https://github.com/Jakobovski/free-spoken-digit-dataset
"""

from __future__ import annotations

__all__ = ["prepare", "LABELS", "SAMPLE_RATE"]

import re
from pathlib import Path

from sance_audio.datasets.corpus import Clip, Corpus, from_file

SAMPLE_RATE = 8000
LABELS = tuple("0123456789")
ARCHIVE = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
CHECKSUM = None
"""Of the archive. Not verified: it could not be fetched where this was written, and none is
published.
"""
CLIPS = 3000
NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)\.wav")


def prepare(root: str | Path | None = None, cache: str | Path = "data") -> Corpus:
    """List the corpus.

    Arguments:
        root: A folder with `recordings/`. None downloads the corpus once into `cache`.
        cache: Where downloads are kept.

    Raises:
        ValueError: no such folder, or no recordings in it.
    """
    root = _download(Path(cache)) if root is None else Path(root)
    folder = root / "recordings"
    if not folder.is_dir():
        raise ValueError(
            f"{root}: expected a folder with recordings/{{digit}}_{{speaker}}_{{index}}.wav "
            f"(the Free Spoken Digit "
            f"Dataset), found {'no recordings/ in it' if root.is_dir() else 'nothing there'}"
        )
    clips, problems = [], []
    for path in sorted(folder.iterdir()):
        match = NAME.fullmatch(path.name)
        if match is None:
            problems.append(f"{path}: not named as a recording of this corpus; left out")
            continue
        digit, _speaker, index = match.groups()
        split = "test" if int(index) < 5 else "valid" if int(index) < 10 else "train"
        clips.append(Clip(f"recordings/{path.name}", digit, split, from_file(path)))
    if not clips:
        raise ValueError(f"{folder}: holds no file named {{digit}}_{{speaker}}_{{index}}.wav")
    return Corpus("fsdd", "CC BY-SA 4.0", clips, LABELS, problems)


def _download(cache: Path) -> Path:
    import pooch

    try:
        files = pooch.retrieve(
            ARCHIVE,
            known_hash=CHECKSUM,
            path=cache,
            fname="fsdd.zip",
            processor=pooch.Unzip(),
            progressbar=True,
        )
    except Exception as error:  # pooch raises whatever the network stack beneath it raises
        raise ValueError(
            f"could not download the Free Spoken Digit Dataset ({error}); fetch it by hand and "
            f"pass --data DIR"
        ) from error
    found = [Path(f) for f in files if Path(f).parent.name == "recordings"]
    clips = [f for f in found if NAME.fullmatch(f.name)]
    if len(clips) != CLIPS:
        raise ValueError(
            f"{cache / 'fsdd.zip'}: expected {CLIPS} recordings in it, found {len(clips)}; delete "
            f"it and try again, or pass --data DIR"
        )
    return clips[0].parent.parent
