"""Scoring in several processes: rows in the order of the files, whatever happens to a process.

A worker is started afresh (spawn), has one thread and a detector of its own, and is given a few
files at a time. One that dies is replaced, and what it was at is tried again file by file: the
file at which a worker dies again gets a row that says so. Workers end with the process that
started them, however it ends; Ctrl-C is that process's to answer.
"""

from __future__ import annotations

__all__ = ["TASK", "scored_by_workers"]

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

Row = dict[str, Any]

TASK = 16
"""Files that a worker is given at once."""
AHEAD = 4
"""Tasks of each worker that may be begun before the first of them all is finished."""
STARTS = 3
"""Workers in a row that may die before they are ready."""
STARVED = 75
"""Exit status of a worker that found no memory."""


def scored_by_workers(
    run: str | Path,
    about: dict[str, Any],
    files: Iterable[Path],
    workers: int,
    tell: Callable[[str], None],
) -> Generator[list[Row], None, None]:
    """`scoring.scored_groups`, in `workers` processes; close it to end them.

    Arguments:
        run: Folder of the detector.
        about: `scoring.identity` of it.
        files: Memory does not grow with their number.
        workers: At least 1.
        tell: Takes what a person should know, in words.

    Raises:
        ValueError: workers cannot be started; another detector stands in the folder by now.
    """
    crew = _Crew(run, about, workers, tell)
    try:
        yield from crew.rows(iter(files))
        crew.dismiss()
    finally:
        crew.end()


@dataclass
class _Task:
    files: list[Path]
    rows: list[Row] = field(default_factory=list)
    """Not handed on yet."""
    found: int = 0
    """Files whose rows are finished."""
    alone: bool = False
    """Whether a worker has died at it, so that its files are given one at a time."""

    @property
    def done(self) -> bool:
        return self.found == len(self.files)

    def add(self, rows: list[Row]) -> None:
        self.rows += rows
        self.found += len(rows)


class _Worker:
    """A process, and what it is at."""

    def __init__(self, run: str | Path, about: dict[str, Any]):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, run, about), daemon=True)
        with _surroundings():
            self.process.start()
        theirs.close()
        self.ready = False
        self.task: _Task | None = None
        self.owed = 0
        """Rows that it has yet to give."""

    def give(self, task: _Task) -> None:
        """Send what is next of a task."""
        files = task.files[task.found : task.found + 1] if task.alone else task.files
        self.task, self.owed = task, len(files)
        with suppress(OSError):  # where it has died, that is seen when it is listened to
            self.connection.send(files)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


class _Crew:
    def __init__(
        self, run: str | Path, about: dict[str, Any], count: int, tell: Callable[[str], None]
    ):
        self.run, self.about, self.tell = run, about, tell
        self.workers: list[_Worker] = []
        self.waiting: deque[_Task] = deque()
        """Tasks that no worker is at."""
        self.died_at_start = 0
        self.count = count

    def rows(self, files: Iterator[Path]) -> Iterator[list[Row]]:
        """Rows in the order of the files."""
        for _ in range(self.count):
            self.workers.append(_Worker(self.run, self.about))
        order: deque[_Task] = deque()
        tasks = (_Task(some) for some in iter(lambda: list(islice(files, TASK)), []))
        while True:
            for task in islice(tasks, AHEAD * self.count - len(order)):
                order.append(task)
                self.waiting.append(task)
            for worker in self.workers:
                if worker.ready and worker.task is None and self.waiting:
                    worker.give(self.waiting.popleft())
            if not order:
                return
            first = order[0]
            if first.rows:
                rows, first.rows = first.rows, []
                yield rows
            if first.done:
                order.popleft()
            else:
                self._listen()

    def _listen(self) -> None:
        """Wait for what a worker has to say."""
        heard = wait([worker.connection for worker in self.workers])
        for i, worker in enumerate(self.workers):
            if worker.connection in heard:
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    self._bury(worker)
                    self.workers[i] = _Worker(self.run, self.about)
                else:
                    self._take(worker, kind, value)

    def _take(self, worker: _Worker, kind: str, value: Any) -> None:
        if kind == "ready":
            worker.ready, self.died_at_start = True, 0
        elif kind == "mistake":
            raise ValueError(value)
        elif kind == "error":
            raise RuntimeError(f"in a worker:\n{value}")
        elif worker.task is not None:
            worker.task.add(value)
            worker.owed -= len(value)
            if worker.task.done:
                worker.task = None
            elif worker.owed == 0:
                worker.give(worker.task)

    def _bury(self, worker: _Worker) -> None:
        """What a dead worker leaves is tried again; the file that it died at alone is given up."""
        worker.process.join(5.0)
        worker.end()
        why, task = _cause(worker.process.exitcode), worker.task
        if not worker.ready:
            self.died_at_start += 1
            if self.died_at_start >= STARTS:
                raise ValueError(
                    f"{STARTS} workers in a row died while they started ({why}); give fewer "
                    f"--workers, or free memory"
                )
        if task is None:
            return
        if not task.alone:
            self.tell(f"a worker died ({why}); its files are tried again one by one")
        else:
            file = task.files[task.found]
            task.add([{"path": str(file), "notes": f"not scored: its worker died twice ({why})"}])
        task.alone = True
        if not task.done:
            self.waiting.appendleft(task)

    def dismiss(self) -> None:
        """Let workers end by themselves."""
        ready = [worker for worker in self.workers if worker.ready]
        for worker in ready:
            with suppress(OSError):
                worker.connection.send([])
        for worker in ready:
            worker.process.join(1.0)

    def end(self) -> None:
        for worker in self.workers:
            worker.end()


def _cause(code: int | None) -> str:
    if code == STARVED:
        return "out of memory"
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name}: killed, perhaps for want of memory" if name == "SIGKILL" else name


@contextmanager
def _surroundings() -> Iterator[None]:
    """What a new process finds: one thread for every library, and Ctrl-C held back."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    one["LOCAL_WORLD_SIZE"] = str(os.cpu_count() or 1)  # its share of the cores: one
    before = {key: os.environ.get(key) for key in one}
    if sys.platform != "win32":
        resource_tracker.ensure_running()  # starting it would let Ctrl-C through again
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(one)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _work(connection: Connection, run: str | Path, about: dict[str, Any]) -> None:
    """What a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        try:
            _serve(connection, run, about)
        except (EOFError, ConnectionError):
            raise
        except (ValueError, OSError) as error:
            connection.send(("mistake", str(error)))
        except Exception as error:
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                os._exit(STARVED)
            connection.send(("error", traceback.format_exc()))


def _serve(connection: Connection, run: str | Path, about: dict[str, Any]) -> None:
    import torch

    from sance_audio.detection import EnergyDetector
    from sance_audio.scoring import identity, scored_groups

    torch.set_num_threads(1)
    detector = EnergyDetector.from_pretrained(run)
    if identity(run, detector) != about:
        raise ValueError(f"{run}: its detector was changed in the meantime; start again")
    connection.send(("ready", None))
    while files := connection.recv():
        for rows in scored_groups(detector, files):
            connection.send(("rows", rows))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
