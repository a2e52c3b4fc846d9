"""Log-mels of a corpus, computed once: a memory-mapped array, known by its settings and content.

    {key}.npy    (rows, M, T) float32, natural logarithms, not standardised
    {key}.json   what each clip gave: rows, seconds, rate, channels; or why it gave nothing

The key is a hash of the features' settings, the window, and every clip's name and content. The
JSON file is written last, and only a pair of both counts, so that a kill leaves nothing that could
be taken for a finished cache; what it leaves is gone on from (`growing`).
"""

from __future__ import annotations

__all__ = ["LogMels", "Reading", "cache_log_mels", "clip_windows", "distinct", "training_windows"]

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sance_audio import audio
from sance_audio.chunks import run_chunks, slices
from sance_audio.datasets.corpus import Clip, FileSource
from sance_audio.datasets.growing import GrowingArray, alone
from sance_audio.features import LogMel
from sance_audio.files import read_json, write_json
from sance_audio.streams import SILENCE_DBFS, count_windows, listen, parts_of

FORMAT = 1
ROUND, PART = 128, 8
"""Clips between two writes, and clips that a thread takes at a time."""
HELD_BYTES = 64 * 2**20
"""Bytes of the file that may stay in this process's memory once they have been read."""


@dataclass(frozen=True)
class Reading:
    """What a clip gave."""

    rows: int = 0
    """Windows in the array."""
    seconds: float = 0.0
    rate: int = 0
    """In Hz, the file's own."""
    channels: int = 0
    partial: str = ""
    """What is missing of a file that holds less than it promises."""
    silent: bool = False
    """Nothing but silence, which is not trained on: no rows."""
    empty: int = 0
    """Windows passed over because they are silent."""
    problem: str = ""
    """Why nothing could be used."""


class LogMels:
    """Rows of a cached array as standardised log-mels; in memory only while they are used.

    Arguments:
        path: The array, `(rows, M, T)`.
        rows: Which of its rows, `(N,)`, in the order wanted.
        features: Standardises them.
    """

    def __init__(self, path: Path, rows: np.ndarray, features: LogMel):
        self.path, self.rows, self.features = path, rows, features
        self.array = np.load(path, mmap_mode="r")
        self.held = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Size of the rows in memory."""
        return len(self) * self.array[:1].nbytes

    def log_mels(self, index: slice | Tensor) -> Tensor:
        """Log-mels `(n, M, T)`, not standardised, of rows named by a slice or indices `(n,)`."""
        where = self.rows[index if isinstance(index, slice) else index.cpu().numpy()]
        self._ask_for(where)
        out = torch.from_numpy(np.ascontiguousarray(self.array[where]))
        self.held += out.nbytes
        if self.held > HELD_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self.array._mmap.madvise(mmap.MADV_DONTNEED)
            self.held = 0
        return out

    def _ask_for(self, where: np.ndarray) -> None:
        """Have the system fetch all these rows `(n,)` from the disk side by side: found missing
        page by page they would be waited for one after the other.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        order = np.unique(where)
        size, page = self.array[:1].nbytes, mmap.PAGESIZE
        for run in np.split(order, np.flatnonzero(np.diff(order) > 1) + 1) if len(order) else ():
            start = self.array.offset + int(run[0]) * size
            end = self.array.offset + (int(run[-1]) + 1) * size
            start -= start % page
            self.array._mmap.madvise(mmap.MADV_WILLNEED, start, end - start)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Standardised log-mels `(n, 1, M, T)`."""
        mean, std = self.features.mean.cpu(), self.features.std.cpu()
        return self.log_mels(index).sub_(mean).div_(std).unsqueeze(1)  # a copy of its own


def distinct(clips: Sequence[Clip]) -> tuple[list[Clip], list[str], list[str]]:
    """Clips without repetitions, their digests, and a line on each repetition left out.

    Of clips with the same content the one in the test split stays, then validation, then training:
    nothing that is judged has been trained on.
    """

    def digest(clip: Clip) -> str:
        try:
            return clip.source.digest()
        except audio.AudioError as error:
            return f"unreadable {clip.name}: {error}"

    parts = run_chunks(lambda part: [digest(c) for c in clips[part]], slices(len(clips), PART))
    digests = [d for part in parts for d in part]
    order = {split: i for i, split in enumerate(("test", "valid", "train"))}
    first: dict[str, int] = {}
    for i in sorted(range(len(clips)), key=lambda i: (order.get(clips[i].split, 3), i)):
        first.setdefault(digests[i], i)
    kept = sorted(first.values())
    repeated = [
        f"{clip.name} ({clip.split}): the same sound as {other.name} ({other.split})"
        for i, clip in enumerate(clips)
        if (other := clips[first[digests[i]]]) is not clip
    ]
    return [clips[i] for i in kept], [digests[i] for i in kept], repeated


def cache_log_mels(
    clips: Sequence[Clip],
    digests: Sequence[str],
    features: LogMel,
    frames: int,
    folder: str | Path,
    *,
    peak: float | None = None,
    windows: int = 1,
) -> tuple[Path, list[Reading]]:
    """Log-mels of all readable clips, read from `folder` where they are there already.

    Arguments:
        clips: In the order of the array's rows.
        digests: Of their contents, from `distinct`.
        features: Gives rate and settings; fitted or not.
        frames: Frames T of a window.
        folder: Where the cache lies.
        peak: As `audio.windows`.
        windows: Windows a clip gives at most.

    Returns:
        The array's path, and what each clip gave.
    """
    named = [(clip.name, digest) for clip, digest in zip(clips, digests, strict=True)]
    recipe = [FORMAT, features.settings, frames, peak, windows, named]
    key = hashlib.blake2b(json.dumps(recipe).encode(errors="surrogatepass"), digest_size=12)
    path = Path(folder) / f"{key.hexdigest()}.npy"
    about = path.with_suffix(".json")
    found = _found(path, about, clips)
    if found is not None:
        return path, found
    with alone(path):
        found = _found(path, about, clips)  # by a process that was waited for
        if found is None:
            about.unlink(missing_ok=True)
            found = _build(path, clips, features, frames, peak, windows)
            write_json(about, [asdict(reading) for reading in found])
    return path, found


def _build(
    path: Path,
    clips: Sequence[Clip],
    features: LogMel,
    frames: int,
    peak: float | None,
    windows: int,
) -> list[Reading]:
    """Write the array, from where a killed process has left it."""

    def read(part: slice) -> tuple[bytes, list[Reading]]:
        pairs = [_read(clip, features, frames, peak, windows) for clip in clips[part]]
        return torch.cat([x for x, _ in pairs]).numpy().tobytes(), [r for _, r in pairs]

    array = GrowingArray(path, (features.n_mels, frames))
    try:
        for batch in _rounds(len(array.given), len(clips)):
            rows, readings = zip(*run_chunks(read, batch), strict=True)
            array.append(rows, [asdict(reading) for some in readings for reading in some])
        array.finish()
    finally:
        array.close()
    return [Reading(**given) for given in array.given]


def _found(path: Path, about: Path, clips: Sequence[Clip]) -> list[Reading] | None:
    """What the clips gave, where the cache is whole; None where it is to be made (again).

    A clip that could not be read is tried again: what kept it may have gone (memory, open files, a
    disk). The rest of a damaged cache is worth nothing.
    """
    if not (path.exists() and about.exists()):
        return None
    try:
        readings = [Reading(**reading) for reading in read_json(about)]
        rows = len(np.load(path, mmap_mode="r"))
    except (ValueError, TypeError, OSError):
        return None
    if rows != sum(reading.rows for reading in readings) or len(readings) != len(clips):
        return None
    for clip, reading in zip(clips, readings, strict=True):
        if reading.problem:
            try:
                clip.source.load()
                return None
            except audio.AudioError:
                pass
    return readings


def _rounds(done: int, n: int) -> list[list[slice]]:
    """Parts of the clips from `done` on, in rounds: what one gives is held in memory together."""
    from tqdm import tqdm

    parts = [slice(done + p.start, done + p.stop) for p in slices(n - done, PART)]
    rounds = [parts[part] for part in slices(len(parts), ROUND // PART)]
    hidden = True if n - done < 10 * ROUND else None  # None: hidden where nobody watches
    about: dict[str, Any] = {"unit_scale": ROUND, "initial": done // ROUND, "disable": hidden}
    about |= {"total": done // ROUND + len(rounds)}
    return tqdm(rounds, desc="features", unit="clip", **about)


def _read(
    clip: Clip, features: LogMel, frames: int, peak: float | None, windows: int
) -> tuple[Tensor, Reading]:
    """Log-mels `(rows, M, T)` of a clip's windows, and what it gave."""
    nothing = torch.zeros(0, features.n_mels, frames)
    try:
        chosen, reading = clip_windows(
            clip, features.sample_rate, features.length(frames), peak, windows
        )
    except audio.AudioError as error:
        return nothing, Reading(problem=str(error))
    if reading.silent:
        return nothing, replace(reading, rows=0)
    return features.log_mel(chosen), reading


def clip_windows(
    clip: Clip, rate: int, length: int, peak: float | None, most: int
) -> tuple[Tensor, Reading]:
    """Windows `(W, length)` at `rate` Hz that a clip is trained on, as `training_windows` chooses
    them, and what the clip gave. However long a file is, no more of it is held than these.

    Raises:
        AudioError: as `audio.load`.
    """
    if isinstance(clip.source, FileSource) and clip.source.whole:
        sound = listen(clip.source.path, rate, length, peak)
        chosen, empty = _chosen(sound.parts, count_windows(sound.samples, length), most)
        found = sound.seconds, sound.sample_rate, sound.channels, sound.partial, sound.silent
    else:
        wave, own_rate, channels, partial = clip.source.load()
        level = 20 * float(wave.square().mean().sqrt().clamp_min(1e-12).log10())
        found = len(wave) / own_rate, own_rate, channels, partial, level < SILENCE_DBFS
        wave = audio.resample(wave, own_rate, rate)
        chosen, empty = training_windows(wave, length, peak, most)
    return chosen, Reading(len(chosen), *found, empty)


def training_windows(
    wave: Tensor, length: int, peak: float | None, most: int
) -> tuple[Tensor, int]:
    """Windows `(W, length)` of a clip `(N,)` to train on, and how many silent ones are left out.

    The first alone, for `most` of 1; otherwise up to `most`, spread over the clip, that do not
    overlap (but for the last, which ends where the clip does) and are not silent: digital silence
    between sounds would be learnt as a sound of its own. A clip that is silent throughout gives
    one.
    """
    return _chosen(lambda: parts_of(wave, length, peak), count_windows(len(wave), length), most)


def _chosen(parts: Callable[[], Iterable[Tensor]], count: int, most: int) -> tuple[Tensor, int]:
    """As `training_windows`, of `count` windows that overlap by a half."""
    apart = list(range(0, count, 2))
    if most > 1:
        square = torch.cat([part.square().mean(1) for part in parts()])
        loud = [i for i in apart if square[i] > 10 ** (SILENCE_DBFS / 10)]
    else:
        loud = apart
    wanted = [loud[i] for i in _spread(len(loud), most)] or [0]
    chosen, seen = [], 0
    for part in parts():
        chosen += [part[i - seen] for i in wanted if seen <= i < seen + len(part)]
        seen += len(part)
        if len(chosen) == len(wanted):
            break
    return torch.stack(chosen), len(apart) - len(loud)


def _spread(n: int, most: int) -> list[int]:
    """At most `most` of n places, evenly spread from the first.

    >>> _spread(3, 5), _spread(10, 4), _spread(10, 1)
    ([0, 1, 2], [0, 2, 5, 7], [0])
    """
    return list(range(n)) if n <= most else [i * n // most for i in range(most)]
