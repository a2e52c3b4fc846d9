"""Checkpoints of a training run: written, read back, kept twice.

`state/latest.pt` is the last checkpoint and `state/previous.pt` the one before it, which a run
falls back to when the last is missing or damaged. Both are read with `weights_only`: they cannot
run code. At any moment, whatever is killed then, one of them is whole, and neither is ahead of
`metrics.jsonl`.

With several processes the main one writes, for all: the networks are the same everywhere, chains
and random states are each process's own.
"""

from __future__ import annotations

__all__ = ["RunFolder"]

import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sance_audio import processes
from sance_audio.config import TrainConfig
from sance_audio.files import append_jsonl, atomic, read_jsonl, sync, write_jsonl
from sance_audio.noise import OWN
from sance_audio.state import RunState

DATA = "model and data"
"""Name of their hash among a checkpoint's settings."""


class RunFolder:
    """The files that a run goes on from: `metrics.jsonl`, `state/latest.pt`, `state/previous.pt`.

    Arguments:
        run: The run's folder.
        config: Settings.
        identity: What else a resume must share with the run, by name.
        data: Hashes of model and data: the one that is kept, then those that older checkpoints
            may have in its place.

    Every process calls these methods together; the main one reads and writes.
    """

    def __init__(
        self,
        run: str | Path,
        config: TrainConfig,
        identity: dict[str, Any],
        data: tuple[str, ...],
    ):
        self.run, self.log_file = Path(run), Path(run) / "metrics.jsonl"
        self.latest = self.run / "state" / "latest.pt"
        self.previous = self.latest.with_stem("previous")
        self.settings = asdict(config) | identity | {DATA: data[0]}
        self.settings["processes"] = processes.count()
        self.data = data

    def resume(self, state: RunState) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Bring `state` to where the run stands.

        Returns:
            The rows of metrics up to there, and the state that a rollback would return to.

        Raises:
            ValueError: other settings, data or model, each named; no readable checkpoint.
        """
        saved, rows = processes.on_main(self._resume)
        if saved is None:
            return rows, state.capture()
        now, good = saved["now"], saved["good"]
        if not processes.is_main():
            own_now, own_good = saved["others"][processes.rank() - 1]
            now, good = _with_own(now, own_now), _with_own(good, own_good)
        state.restore(now)
        return rows, good

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to the metrics."""
        if processes.is_main():
            with self._intact():
                append_jsonl(self.log_file, row)

    def save(self, state: RunState, good: dict[str, Any], *, back: bool = False) -> None:
        """Make `state` the last checkpoint.

        Arguments:
            state: Where the run stands.
            good: What a rollback would return to.
            back: The state may be earlier than the checkpoints: those that it is earlier than go.

        Raises:
            OSError: the disk is full, or does not give back what was written; the checkpoints
                before are intact.
        """
        now = good if good["progress"] == asdict(state.progress) else state.capture()
        others = processes.gather((_own(now), _own(good)))[1:]
        saved = {"settings": self.settings, "now": now, "good": good, "others": others}
        processes.on_main(lambda: self._save(saved, back))

    def roll_back(self, state: RunState, good: dict[str, Any]) -> list[dict[str, Any]]:
        """Make `state`, which was taken back to `good`, the last checkpoint, then drop the rows
        of metrics beyond: in this order, so that a kill does not undo the rollback.
        """
        self.save(state, good, back=True)
        return processes.on_main(lambda: self._rewind(state.progress.step))

    def _rewind(self, step: int) -> list[dict[str, Any]]:
        """Rows of the metrics up to `step`; what lies beyond is dropped from the file."""
        rows = [row for row in read_jsonl(self.log_file) if row["step"] <= step]
        if [row["step"] for row in rows] != list(range(1, step + 1)):
            raise ValueError(
                f"{self.log_file}: does not hold steps 1 to {step} once each; use another --run"
            )
        with self._intact():
            write_jsonl(self.log_file, rows)
        return rows

    def _resume(self) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """The checkpoint to go on from, if any, and the metrics up to it."""
        for left in self.latest.parent.glob(".*.pt"):  # of a checkpoint that was killed
            left.unlink()
        if not (self.latest.exists() or self.previous.exists()):
            return None, self._rewind(0)
        try:
            saved = self._load(self.latest)
        except _Unreadable as latest:
            try:
                saved = self._load(self.previous)
            except _Unreadable as previous:
                raise ValueError(f"{latest}; {previous}; use another --run") from previous
            step = saved["now"]["progress"]["step"]
            print(f"{latest}: going on from {self.previous}, step {step}", file=sys.stderr)
            if self.latest.exists():  # out of the way: the next checkpoint must not replace
                os.replace(self.latest, self.latest.with_stem("damaged"))  # the whole one by it
        return saved, self._rewind(saved["now"]["progress"]["step"])

    def _load(self, path: Path) -> dict[str, Any]:
        """A checkpoint, checked against the settings of this call."""
        saved = _read(path)
        before, now = asdict(TrainConfig()) | saved["settings"], self.settings  # older: as usual
        if before.get(DATA) in self.data:  # the same, by an older hash
            before[DATA] = now[DATA]
        changed = [f"{k}: {before.get(k)} -> {now[k]}" for k in now if before.get(k) != now[k]]
        if changed:
            raise ValueError(
                f"{self.run} was started with other settings ({'; '.join(changed)}): "
                f"give those again, or another --run"
            )
        return saved

    def _save(self, saved: dict[str, Any], back: bool) -> None:
        """Write, read back, then rename: latest to previous, and the new file to latest."""
        step = saved["now"]["progress"]["step"]
        with self._intact():
            sync(self.log_file)
            sync(self.run)
            with atomic(self.latest) as new:
                with new.open("wb") as file:
                    torch.save(saved, file)
                _check(new, saved)
                if back and _step(self.previous) > step:
                    self.previous.unlink(missing_ok=True)
                if self.latest.exists() and not (back and _step(self.latest) > step):
                    os.replace(self.latest, self.previous)
            sync(self.latest.parent)

    @contextmanager
    def _intact(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = "no checkpoint was there yet"
            if self.latest.exists() or self.previous.exists():
                kept = "the previous checkpoint is intact"
            raise OSError(
                f"{error}; {kept}: put that right and give the same command again"
            ) from error


class _Unreadable(ValueError):
    """A checkpoint that is missing or damaged."""


def _read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its check sums tested, which `torch.load` does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise ValueError(f"wrong check sum of {broken}")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"settings", "now", "good", "others"} - saved.keys()
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
    except FileNotFoundError:
        raise _Unreadable(f"{path} is missing") from None
    except Exception as error:  # damage takes any form; the caller tells of it
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise _Unreadable(f"{path} is not a readable training state ({reason})") from error
    return saved


def _step(path: Path) -> float:
    """The step of a checkpoint; infinity when it cannot be read."""
    try:
        return _read(path)["now"]["progress"]["step"]
    except _Unreadable:
        return float("inf")


def _check(new: Path, saved: dict[str, Any]) -> None:
    """Raise OSError unless the disk gives back `saved` from `new`, to the bit."""
    sync(new)
    if hasattr(os, "posix_fadvise"):  # from the disk itself, not from what is still in memory
        with new.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        same = _same(_read(new), saved)
    except _Unreadable:
        same = False
    if not same:
        raise OSError(f"{new.parent}: the disk does not give back the checkpoint written to it")


def _same(a: Any, b: Any) -> bool:
    """Whether two trees of dictionaries, lists, tensors and plain values are equal to the bit."""
    if isinstance(b, Tensor):
        same = isinstance(a, Tensor) and (a.shape, a.dtype) == (b.shape, b.dtype)
        return same and torch.equal(_bytes(a), _bytes(b))
    if isinstance(b, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return repr(a) == repr(b)


def _bytes(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8)


def _own(state: dict[str, Any]) -> dict[str, Any]:
    """What of a captured state is this process's own: chains, pool and random state."""
    noise = {k: v for k, v in state["noise"].items() if k in OWN}
    noise = {k: v if v is None else v.cpu() for k, v in noise.items()}
    return {"noise": noise, "generator": state["generator"]}


def _with_own(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return state | own | {"noise": state["noise"] | own["noise"]}
