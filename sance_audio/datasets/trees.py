"""Folders of machine sounds as they are unpacked: what is looked for in them, what is foreign."""

from __future__ import annotations

__all__ = [
    "Report",
    "name_of",
    "sounds",
    "folders",
    "below",
    "chosen",
    "refuse_untrainable",
    "held_out",
    "found_in",
]

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sance_audio.audio import shown
from sance_audio.datasets.sections import SectionClip

DEEPEST = 5
"""Folders between the one that is given and a machine's, at most."""
NAMED = 8
"""Entries of a folder that a message names."""


class Report:
    """Foreign files below a root, each with what was expected of it."""

    def __init__(self, root: Path):
        self.root = root
        self._lines: dict[str, None] = {}

    def add(self, path: Path, reason: str) -> None:
        """Add a line; once, however often the file is come upon."""
        self._lines[f"{name_of(self.root, path)}: {reason}"] = None

    @property
    def lines(self) -> list[str]:
        return list(self._lines)


def name_of(root: Path, path: Path) -> str:
    """A path below a root, for a message or as a clip's name."""
    return shown(path.relative_to(root).as_posix()) if path != root else shown(root.name)


def folders(folder: Path, report: Report) -> list[Path]:
    """Folders in a folder, in order; those that archives and systems leave behind, and links that
    lead back up, are reported.
    """
    found = []
    for path in sorted(path for path in _listed(folder, report) if path.is_dir()):
        if _litter(path.name):
            report.add(path, "left behind by another system; no part of the corpus")
        elif path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
            report.add(path, "a link to a folder that it lies in; not followed")
        else:
            found.append(path)
    return found


def sounds(folder: Path, report: Report) -> Iterator[Path]:
    """WAV files in a folder, in order; whatever else lies there is reported."""
    for path in sorted(_listed(folder, report)):
        if _litter(path.name):
            report.add(path, "left behind by another system; no part of the corpus")
        elif path.is_dir():
            report.add(path, "expected recordings, found a folder")
        elif path.suffix.lower() != ".wav":
            report.add(path, "expected recordings named *.wav, found another file")
        else:
            yield path


def _litter(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _listed(folder: Path, report: Report) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        report.add(folder, f"cannot be read ({error.strerror})")
        return []


def below(
    folder: Path, holding: re.Pattern[str], report: Report, depth: int = DEEPEST
) -> list[Path]:
    """Folders that hold one whose name matches: this one, or else those below it."""
    if not folder.is_dir():
        return []
    inside = folders(folder, report)
    if any(holding.fullmatch(path.name) for path in inside):
        return [folder]
    if depth == 0:
        return []
    return [path for part in inside for path in below(part, holding, report, depth - 1)]


def chosen(root: Path, found: Collection[str], wanted: Collection[str] | None) -> set[str]:
    """The machines to list, all that were found unless some are wanted.

    Raises:
        ValueError: one that is not there.
    """
    lacking = sorted(set(wanted or ()) - set(found))
    if lacking:
        raise ValueError(
            f"{shown(root)}: expected the machines {', '.join(lacking)}, found "
            f"{', '.join(sorted(found))}; ask for some of these, or unpack the others beside them"
        )
    return set(found if wanted is None else wanted)


def refuse_untrainable(root: Path, clips: Sequence[SectionClip]) -> None:
    """Raise ValueError for machines that have no clip to train on."""
    trained = {clip.machine for clip in clips if clip.split == "train"}
    idle = sorted({clip.machine for clip in clips} - trained)
    if idle:
        counts = ", ".join(
            f"{machine} ({sum(c.machine == machine for c in clips)} clips)" for machine in idle
        )
        raise ValueError(
            f"{shown(root)}: expected normal clips to train on for every machine, found none for "
            f"{counts}; unpack the training archive of these too, or ask for other machines"
        )


def held_out(normals: int, anomalies: int) -> int:
    """How many normals of a section, the first by name, are judged with its anomalies: as many
    as these, as long as half of the normals remain.

    >>> held_out(10, 3), held_out(10, 8)
    (3, 5)
    """
    return min(anomalies, normals // 2)


def found_in(root: Path) -> str:
    """For a message: what a folder holds."""
    if not root.is_dir():
        return "a file" if root.exists() else "nothing there"
    names = sorted(os.listdir(root))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(map(shown, names[:NAMED])) or 'an empty folder'}{more}"
