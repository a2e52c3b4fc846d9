"""Corpora of machine sounds: clips of one machine's sections (individuals, or settings), in order
or odd, from one of two domains.

`mimii`, `toyadmos` and `dcase` list their corpora as a `Listing` of `SectionClip`s.
"""

from __future__ import annotations

__all__ = ["DOMAINS", "Listing", "SectionClip"]

from dataclasses import dataclass, field

from sance_audio.datasets.corpus import Clip

DOMAINS = ("source", "target")


@dataclass(frozen=True)
class SectionClip(Clip):
    """A clip of a machine. Its label is "normal", "anomaly", or "" where nobody says; its split
    "train", "test" (labelled), "evaluation" (unlabelled) or "supplemental".
    """

    machine: str = ""
    """As its folder is named: "fan", "ToyCar"."""
    section: str = ""
    """Two digits, or whatever tells its machine from others of the kind: "00", "case1"."""
    domain: str = ""
    """One of `DOMAINS`; "" where there are none, or nobody says."""
    attributes: str = ""
    """How it was recorded, as its name says; "" where it does not."""


@dataclass
class Listing:
    """The clips of a corpus, in the order of their names, and the files that are none of it."""

    name: str
    """Of the corpus, with its year or signal-to-noise ratio: "DCASE 2022 task 2"."""
    licence: str
    clips: list[SectionClip]
    problems: list[str] = field(default_factory=list)
    """Foreign files, each with what was expected of it; they are reported, not read."""

    @property
    def machines(self) -> tuple[str, ...]:
        """Kinds of machines, in order."""
        return tuple(sorted({clip.machine for clip in self.clips}))

    def of(self, machine: str, section: str | None = None, split: str = "") -> list[SectionClip]:
        """The clips of one machine, of one of its sections, in one split, where asked for."""
        return [
            clip
            for clip in self.clips
            if clip.machine == machine
            and section in (None, clip.section)
            and split in ("", clip.split)
        ]
