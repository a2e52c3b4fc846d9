"""What every corpus gives: clips with labels and splits, in a fixed order, and where their sound
comes from.
"""

from __future__ import annotations

__all__ = ["Clip", "Corpus", "Source", "FileSource"]

import functools
import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from sance_audio import audio


class Source(Protocol):
    """Where a clip's sound comes from: read when it is needed, known by its content."""

    def load(self) -> audio.Recording:
        """The sound, at its own rate. Raises `audio.AudioError`."""

    def digest(self) -> str:
        """A string that differs where the sound does. Raises `audio.AudioError`."""


@dataclass(frozen=True)
class FileSource:
    """A file, or a part of one, or one of its channels."""

    path: Path
    start: float = 0.0
    """In seconds."""
    seconds: float | None = None
    """Length; up to the end of the file when None."""
    channel: int | None = None
    """From 0; all are mixed down when None."""

    @property
    def whole(self) -> bool:
        """Whether it is the whole file, with all its channels."""
        return self.start == 0 and self.seconds is None and self.channel is None

    def load(self) -> audio.Recording:
        return audio.load(self.path, self.start, self.seconds, self.channel)

    def digest(self) -> str:
        """A hash of the file's bytes, of the part and of the channel."""
        try:
            about = self.path.stat()
            whole = _hash(self.path, about.st_mtime_ns, about.st_size)
        except OSError as error:
            raise audio.AudioError(
                f"{audio.shown(self.path)}: cannot be read ({error.strerror})"
            ) from error
        part = "" if self.start == 0 and self.seconds is None else f"/{self.start}+{self.seconds}"
        return whole + part + ("" if self.channel is None else f"#{self.channel}")


@functools.cache
def _hash(path: Path, *_state: int) -> str:
    """Of a file's bytes; remembered as long as its time and size stay."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Clip:
    """One recording."""

    name: str
    """Unique within the corpus; a path below its root, for files."""
    label: str
    split: str
    """"train", "valid" or "test"; "odd" for sounds of no class, kept for anomaly detection."""
    source: Source = field(repr=False)


@dataclass
class Corpus:
    """Clips, in a fixed order, and what went wrong while listing them."""

    name: str
    licence: str
    clips: list[Clip]
    labels: tuple[str, ...]
    """Names of the classes; `()` for an unlabelled corpus."""
    problems: list[str] = field(default_factory=list)
    """Files that were left out, each with the reason."""
    windows: int = 1
    """Windows of the model's length that a clip is trained on, at most: the first, or several
    spread over it.
    """
    rate: int | None = None
    """In Hz, that its files have by its documentation; None where they may have any."""
    not_chosen: int = 0
    """Clips that `some` passed over."""

    def split(self, split: str) -> list[Clip]:
        return [clip for clip in self.clips if clip.split == split]

    def index(self, clips: list[Clip]) -> list[int]:
        """Class index of each clip: -1 for one of no class, 0 throughout an unlabelled corpus."""
        order = {label: i for i, label in enumerate(self.labels)}
        return [order.get(clip.label, -1) if self.labels else 0 for clip in clips]

    def some(self, most: int) -> Corpus:
        """Of each label at most so many training clips, and of each other split a fifth as many:
        the first in the order of a hash of their names, so that a larger choice holds a smaller.
        The whole corpus for 0.
        """
        if most == 0:
            return self

        def rank(clip: Clip) -> bytes:
            return hashlib.blake2b(clip.name.encode(errors="replace"), digest_size=8).digest()

        taken: Counter[tuple[str, str]] = Counter()
        kept = set()
        for clip in sorted(self.clips, key=rank):
            kind = clip.split, clip.label
            if taken[kind] < (most if clip.split == "train" else -(-most // 5)):
                taken[kind] += 1
                kept.add(clip.name)
        clips = [clip for clip in self.clips if clip.name in kept]
        return replace(self, clips=clips, not_chosen=len(self.clips) - len(clips))
