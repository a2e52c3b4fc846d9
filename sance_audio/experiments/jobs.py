"""Jobs: runs side by side, each in a process of its own, each with one thread."""

from __future__ import annotations

__all__ = ["Job", "run_jobs", "read_job", "finish"]

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from sance_audio.chunks import cores
from sance_audio.files import read_json, write_json

Results = dict[str, Any]
POLL = 0.05
"""Seconds between looks at the running processes."""


@dataclass(frozen=True)
class Job:
    """One run of an experiment."""

    name: str
    """Of its folder."""
    settings: Results
    """All that decides its result, JSON-like."""


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    command: Callable[[Job], list[str]],
    *,
    at_once: int = 0,
    say: Callable[[Job, Results, int], None] = lambda job, result, left: None,
) -> dict[str, Results]:
    """Results of the jobs by name, those that were done before included.

    Each process computes with one thread, on its own part of the machine's cores. One that is
    killed from outside is started once more.

    Arguments:
        jobs: What to run, in this order.
        folder: Of the jobs' folders.
        command: The command line of a job's process, which calls `read_job` and `finish`.
        at_once: Processes side by side; one for each core when 0.
        say: Called with each job that a process has finished, its result, and how many are left.

    Raises:
        ValueError: a job that stands there with other settings; jobs whose processes failed, once
            all others are done.
    """
    results = {job.name: done for job in jobs if (done := _done(folder / job.name, job))}
    waiting = deque(job for job in jobs if job.name not in results)
    running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
    failed: dict[str, int] = {}
    again: set[str] = set()
    try:
        while waiting or running:
            while waiting and len(running) < (at_once or cores()):
                job = waiting.popleft()
                running[job.name] = (job, _begin(folder / job.name, command(job)))
            for job, process in list(running.values()):
                if process.poll() is None:
                    continue
                del running[job.name]
                result = _done(folder / job.name, job) if process.returncode == 0 else None
                if result is None:
                    if process.returncode < 0 and job.name not in again:  # killed from outside
                        again.add(job.name)
                        waiting.appendleft(job)
                    else:
                        failed[job.name] = process.returncode
                    continue
                results[job.name] = result
                say(job, result, len(waiting) + len(running))
            time.sleep(POLL)
    finally:  # an interrupt leaves no process behind
        for _, process in running.values():
            process.terminate()
            process.wait()
    if failed:
        name, code = next(iter(failed.items()))
        log = folder / name / "log.txt"
        lines = log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "nothing was printed"
        raise ValueError(
            f"{len(failed)} of {len(jobs)} runs failed, the first with status {code}: {last} "
            f"({log}); put that right and give the same command again"
        )
    return results


def _done(folder: Path, job: Job) -> Results | None:
    """The result of a finished job; the settings of one that is not are written down."""
    path = folder / "job.json"
    if path.exists():
        before = read_json(path)
        changed = [k for k in {*before, *job.settings} if before.get(k) != job.settings.get(k)]
        if changed:
            raise ValueError(
                f"{folder}: was run with another {', '.join(sorted(changed))}; delete that folder "
                f"to run it anew, or name another --run"
            )
    else:
        write_json(path, job.settings)
    return read_json(folder / "result.json") if (folder / "result.json").exists() else None


def _begin(folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """A process that writes into the folder's log and computes with one thread."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "LOCAL_WORLD_SIZE": str(_machine_cores()),  # its share of them: see chunks.cores
    }
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _machine_cores() -> int:
    """Cores of this machine that the process may use, whatever a launcher has said."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_job(folder: Path) -> Job:
    """The job whose folder it is, in the job's own process.

    The process ends with the one that started it: two must not work in one folder.

    Raises:
        ValueError: no such job.
    """
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return Job(folder.name, read_json(folder / "job.json"))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def finish(folder: Path, result: Mapping[str, Any]) -> None:
    """Write down a job's result, JSON-like: it is done."""
    write_json(folder / "result.json", dict(result))
