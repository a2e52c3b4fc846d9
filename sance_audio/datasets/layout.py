"""What listings of corpora share: what they say of a folder of another shape, of labels in two
spellings, of names that come twice.
"""

from __future__ import annotations

__all__ = ["wrong_shape", "one_spelling", "once", "listed"]

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sance_audio.audio import shown
from sance_audio.datasets.trees import found_in

NAMED = 8
"""Names that a message holds, at most."""


def wrong_shape(
    root: Path, expected: str, licence: str, urls: Sequence[str], found: str = ""
) -> ValueError:
    """The error of a folder that is not laid out as a corpus is; it says how to come by one.

    Arguments:
        root: The folder.
        expected: What should be in it, and of which corpus.
        licence: Of the corpus.
        urls: Of its archives.
        found: What is there instead; its content when left out.
    """
    return ValueError(
        f"{shown(root)}: expected {expected}, found {found or found_in(root)}; leave out --data "
        f"to download it ({licence}), or fetch and unpack it yourself: "
        f"{' && '.join(f'curl -L -C - -O {url}' for url in urls)}"
    )


def one_spelling(where: str | Path, labels: Mapping[str, int]) -> None:
    """Raise ValueError for labels that differ in letters' case, spaces or underscores alone: two
    classes would be made of one.

    Arguments:
        where: Named in the message.
        labels: Clips of each.
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        plain = unicodedata.normalize("NFKC", label).casefold()
        spellings[" ".join(re.split(r"[\s_]+", plain)).strip()].append(label)
    several = [found for found in spellings.values() if len(found) > 1]
    if several:
        told = "; ".join(
            " and ".join(f"{shown(label)!r} ({labels[label]} clips)" for label in found)
            for found in several
        )
        raise ValueError(
            f"{shown(Path(where))}: expected each label in one spelling, found {told}; give clips "
            f"of one kind one label, and others names that differ in more"
        )


def once(where: str | Path, names: Iterable[str]) -> None:
    """Raise ValueError for names that come more than once."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"{shown(Path(where))}: expected each name once, found {len(twice)} more than once: "
            f"{listed(twice)}; delete the lines that are wrong, or take the file from the archive"
        )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(shown, names[:NAMED])) + more
