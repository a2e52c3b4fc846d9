"""What every corpus gives: clips with labels and splits, and their waveforms at one rate."""

from __future__ import annotations

__all__ = ["Clip", "Corpus"]

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sance_audio import audio


@dataclass(frozen=True)
class Clip:
    """One recording."""

    name: str
    """Unique within the corpus; a path below its root, for files."""
    label: str
    split: str
    """"train", "valid" or "test"; "odd" for sounds of no class, kept for anomaly detection."""
    load: Callable[[], tuple[Tensor, int]] = field(repr=False, compare=False)
    """Gives the waveform `(N,)` and its rate in Hz."""


@dataclass
class Corpus:
    """Clips, in a fixed order, and what went wrong while reading them."""

    name: str
    licence: str
    clips: list[Clip]
    labels: tuple[str, ...]
    problems: list[str] = field(default_factory=list)

    def split(self, split: str) -> list[Clip]:
        return [clip for clip in self.clips if clip.split == split]

    def waveforms(self, split: str, sample_rate: int) -> tuple[list[Tensor], list[Clip]]:
        """All readable clips of a split at one rate; the others are added to `problems`.

        Raises:
            ValueError: not one clip of the split could be read.
        """
        waves, read = [], []
        for clip in self.split(split):
            try:
                wave, rate = clip.load()
            except audio.AudioError as error:
                self.problems.append(str(error))
                continue
            waves.append(audio.resample(wave, rate, sample_rate))
            read.append(clip)
        if not waves:
            raise ValueError(
                f"{self.name}: no readable clip in the {split} split ({len(self.problems)} failed)"
            )
        return waves, read

    def index(self, clips: list[Clip]) -> list[int]:
        """Class index of each clip, -1 for one of no class."""
        order = {label: i for i, label in enumerate(self.labels)}
        return [order.get(clip.label, -1) for clip in clips]


def from_file(path: Path) -> Callable[[], tuple[Tensor, int]]:
    """A loader for one file."""
    return lambda: audio.read(path)
