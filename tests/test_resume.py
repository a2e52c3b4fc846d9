"""What a run goes on from: kills at any moment, damaged checkpoints, full disks.

Run as a program, this file is a training that kills itself, or meets a limit, at a given place.
"""

import errno
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_model
from test_training import CONFIG, data, run, weights

from sance_audio import checkpoint, files, loop, train, training
from sance_audio.checkpoint import RunFolder
from sance_audio.files import append_jsonl, read_jsonl
from sance_audio.noise import SelfNoise
from sance_audio.state import RunState

LONG = replace(CONFIG, checkpoint_every=2, per_component=2, pool=2)


# A training in a process of its own


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def strike(owner: Any, name: str, at: int, when: Callable[..., bool], before: bool) -> None:
    """Kill this process before or after the `at`-th call of `owner.name` for which `when`."""
    whole, seen = getattr(owner, name), [0]

    def struck(*args: Any, **kwargs: Any) -> Any:
        seen[0] += when(*args)
        if seen[0] == at and before:
            die()
        result = whole(*args, **kwargs)
        if seen[0] == at:
            die()
        return result

    setattr(owner, name, struck)


def die_half_way_through_save(at: int) -> None:
    """Kill this process when half of the `at`-th checkpoint is written."""
    whole, seen = torch.save, [0]

    def half(value: Any, file: Any) -> None:
        seen[0] += 1
        if seen[0] < at:
            return whole(value, file)
        buffer = io.BytesIO()
        whole(value, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        die()

    torch.save = half


def prepare_fault(site: str, at: int) -> None:
    """Plant the fault `site` in this process."""
    if site == "half a checkpoint":
        die_half_way_through_save(at)
    elif site == "before a fsync":
        strike(os, "fsync", at, lambda *_: True, before=True)
    elif site == "between the renames":
        strike(os, "replace", at, lambda _, to: Path(to).name == "previous.pt", before=False)
    elif site == "half a row":
        torn = files._line

        def half(row: Any) -> bytes:
            return torn(row) if row["step"] < at else torn(row)[:40]

        files._line = half
        strike(checkpoint, "append_jsonl", 1, lambda _, row: row["step"] == at, before=False)
    elif site.startswith("limit"):
        limit_files(at, in_the_row=site == "limit in a row")


def limit_files(at: int, in_the_row: bool) -> None:
    """From the row `at` on, no file may be larger: than half that row needs, or 30 kB."""
    original = checkpoint.append_jsonl

    def append(path: Path, row: dict[str, Any]) -> None:
        if row["step"] == at:
            size = path.stat().st_size + 100 if in_the_row else 30_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        original(path, row)

    checkpoint.append_jsonl = append


def child(folder: str, interval: str, site: str, at: str) -> int:
    torch.set_num_threads(1)
    prepare_fault(site, int(at))
    pause = (lambda step, *_: time.sleep(0.05 if step < 11 else 600),) if site == "slow" else ()
    config = replace(LONG, interval=int(interval))
    try:
        train(small_model(trained=False), *data(), config, folder, callbacks=pause, progress=False)
    except OSError as error:
        print(error)
        return 3
    return 0


def start(folder: Path, interval: int, site: str, at: int = 0) -> subprocess.Popen:
    command = [sys.executable, __file__, folder, interval, site, at]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)


def states(folder: Path) -> dict[str, int]:
    """The step of each checkpoint that a resume could read."""
    return {
        path.stem: checkpoint._read(path)["now"]["progress"]["step"]
        for path in sorted((folder / "state").glob("[!.]*.pt"))
    }


def assert_sound(folder: Path) -> None:
    """Whole checkpoints, none ahead of the metrics, each step there once."""
    steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert all(step <= len(steps) for step in states(folder).values())


# Kills


@pytest.mark.parametrize("interval", [1, 3])
def test_a_run_killed_again_and_again_ends_with_the_weights_of_the_unbroken_one(
    tmp_path, interval
):
    chance, folder = random.Random(interval), tmp_path / "broken"
    inside = [
        ("half a checkpoint", chance.choice([2, 3])),
        ("before a fsync", chance.choice([7, 9])),
    ]
    kills = [chance.choice(inside)]
    kills += [("half a row", chance.choice([5, 6])), ("between the renames", 1), ("slow", 0)]
    for site, at in kills:
        started = start(folder, interval, site, at)
        if site == "slow":
            before = len(read_jsonl(folder / "metrics.jsonl"))
            target, patience = before + chance.choice([1, 2, 3]), time.monotonic() + 60
            while len(read_jsonl(folder / "metrics.jsonl")) < target:
                assert time.monotonic() < patience, "the child makes no progress"
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.05))
            started.kill()
        started.communicate()
        assert started.returncode == -signal.SIGKILL, site
        assert_sound(folder)
        if site == "between the renames":
            assert set(states(folder)) == {"previous"}
    config = replace(LONG, interval=interval)
    resumed, rows = run(tmp_path, config, "broken")
    unbroken, all_rows = run(tmp_path, config, "unbroken")
    assert torch.equal(weights(resumed), weights(unbroken))
    assert rows == all_rows
    assert read_jsonl(folder / "metrics.jsonl") == all_rows
    assert sorted(p.name for p in (folder / "state").iterdir()) == ["latest.pt", "previous.pt"]


def small_state() -> RunState:
    g, model = torch.Generator().manual_seed(0), small_model()
    noise = SelfNoise(model.density, model.shape, steps=1, generator=g)
    network = model.density.network
    return RunState(network, network, torch.optim.Adam(network.parameters()), noise, g)


def moved_to(state: RunState, step: int) -> dict[str, Any]:
    state.progress.step = step
    with torch.no_grad():
        for p in state.stateful["network"].parameters():
            p.fill_(step)
    return state.capture()


def checkpoints(folder: Path, kept: list[int]) -> tuple[RunFolder, RunState]:
    """A run with rows up to the last of the steps `kept`, each of which was a checkpoint."""
    state, run_folder = small_state(), RunFolder(folder, CONFIG, {}, ("hash",))
    run_folder.resume(state)
    for step in range(1, kept[-1] + 1):
        run_folder.log({"step": step})
        if step in kept:
            run_folder.save(state, moved_to(state, step))
    return run_folder, state


def die_at_call(point: int) -> None:
    """Kill this process before the `point`-th of all calls that change what is on the disk."""
    seen = [0]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            if seen[0] == point:
                die()
            return original(*args, **kwargs)

        return call

    for owner, name in [(os, "replace"), (os, "fsync"), (Path, "unlink"), (torch, "save")]:
        setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize(
    ("kept", "back"), [([4, 8], None), ([4, 8], 2), ([4, 8], 6), ([4, 8], 8), ([4], 2), ([8], 9)]
)
def test_a_kill_at_any_point_of_a_checkpoint_or_a_rollback_leaves_a_sound_run(
    tmp_path, kept, back
):
    """The process is killed before its first system call of the save, then the second, ..."""
    last = kept[-1]
    for point in range(1, 100):
        folder = tmp_path / str(point)
        run_folder, state = checkpoints(folder, kept)
        for step in range(last + 1, last + 3):
            run_folder.log({"step": step})
        pid = os.fork()
        if pid == 0:
            die_at_call(point)
            if back is None:
                run_folder.save(state, moved_to(state, last + 2))
            else:
                good = moved_to(state, back)
                state.progress.rollbacks = 1
                run_folder.roll_back(state, good)
            os._exit(0)
        survived = os.waitpid(pid, 0)[1] == 0
        assert_sound(folder)
        assert states(folder), point
        resumed = small_state()
        rows, _ = RunFolder(folder, CONFIG, {}, ("hash",)).resume(resumed)
        step = resumed.progress.step
        assert len(rows) == step
        assert step in {last, last + 2 if back is None else back}
        network = resumed.stateful["network"]
        assert all(bool((p == step).all()) for p in network.parameters())
        assert not list((folder / "state").glob(".*")), "what a kill has left is cleared away"
        assert_sound(folder)
        if survived:
            break
    assert survived
    assert point > 5
    assert step == (last + 2 if back is None else back)


# Rollbacks


@pytest.mark.parametrize(
    ("every", "left"), [(3, {"latest": 5}), (4, {"latest": 5, "previous": 4})]
)
def test_after_a_rollback_no_checkpoint_is_ahead_of_the_metrics(
    tmp_path, monkeypatch, every, left
):
    original, seen = RunFolder.roll_back, []

    def look(self, state, good):
        before = states(self.run)
        rows = original(self, state, good)
        seen.append((before["latest"], states(self.run), len(rows)))
        return rows

    monkeypatch.setattr(loop, "GOOD_EVERY", 5)
    monkeypatch.setattr(RunFolder, "roll_back", look)
    poisoned(monkeypatch, [10])
    run(tmp_path, replace(CONFIG, checkpoint_every=every))
    assert seen == [(9 // every * every, left, 5)]
    assert_sound(tmp_path / "run")


def poisoned(monkeypatch: pytest.MonkeyPatch, at: list[int], done: int = 0) -> None:
    """The loss is NaN at the draws `at`, of which `done` lie behind."""
    original, count = training.rows_on, [done]

    def rows(*args: Any) -> torch.Tensor:
        count[0] += 1
        return original(*args) * (torch.nan if count[0] in at else 1.0)

    monkeypatch.setattr(training, "rows_on", rows)


def test_a_resumed_run_rolls_back_to_where_the_unbroken_one_does(tmp_path, monkeypatch):
    """What a rollback returns to was captured at step 6, before the checkpoint at step 8."""

    class Killed(Exception):
        pass

    def kill(step, row, model):
        if step == 9:
            raise Killed

    monkeypatch.setattr(loop, "GOOD_EVERY", 6)
    with monkeypatch.context() as patch:
        poisoned(patch, [9])
        whole, rows = run(tmp_path, name="whole")
    with pytest.raises(Killed):
        run(tmp_path, name="broken", callbacks=(kill,))
    with monkeypatch.context() as patch:
        poisoned(patch, [9], done=8)
        resumed, again = run(tmp_path, name="broken")
    assert "back to step 6" in rows[6]["rollback"]
    assert again == rows
    assert torch.equal(weights(resumed), weights(whole))


# Damage


class Malice:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def flip(path: Path) -> None:
    """One bit of the largest tensor, which `torch.load` does not notice."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + len(largest.filename) + largest.file_size // 2 + 64] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a flipped bit": flip,
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Malice())),
    "a state with code": lambda path: torch.save({"settings": {}, "now": Malice()}, path),
    "another file": lambda path: torch.save([1, 2], path),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, list]:
    folder = tmp_path_factory.mktemp("finished")
    model, rows = run(folder)
    return folder / "run", weights(model), rows


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(
    tmp_path, finished, capfd, monkeypatch, damage
):
    whole, expected, all_rows = finished
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(tmp_path)
    DAMAGE[damage](folder / "state" / "latest.pt")
    capfd.readouterr()
    state = {"previous": 8}

    def look(step, row, model):
        readable = dict(states_of(folder, ("latest", "previous")))
        assert readable == state or step == 12, "the damaged one does not replace the whole one"

    model, rows = run(tmp_path, callbacks=(look,))
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert "latest.pt is " in told[0]
    assert told[0].endswith("previous.pt, step 8")
    assert not (tmp_path / "ran").exists()
    assert torch.equal(weights(model), expected)
    assert rows == all_rows
    assert states_of(folder, ("latest", "previous")) == {"latest": 12, "previous": 8}


def states_of(folder: Path, names: tuple[str, ...]) -> dict[str, int]:
    found = {name: folder / "state" / f"{name}.pt" for name in names}
    return {
        name: checkpoint._read(path)["now"]["progress"]["step"]
        for name, path in found.items()
        if path.exists()
    }


def test_two_damaged_checkpoints_are_one_clear_error(tmp_path, finished):
    shutil.copytree(finished[0], tmp_path / "run")
    DAMAGE["cut"](tmp_path / "run" / "state" / "latest.pt")
    DAMAGE["a flipped bit"](tmp_path / "run" / "state" / "previous.pt")
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "run" / "state").iterdir())
    with pytest.raises(ValueError, match=r"latest\.pt .* not a readable training state") as error:
        run(tmp_path)
    assert "wrong check sum" in str(error.value)
    assert "another --run" in str(error.value)
    assert before == sorted(
        (p.name, p.read_bytes()) for p in (tmp_path / "run" / "state").iterdir()
    )


def test_a_disk_that_does_not_give_back_what_was_written_is_an_error(tmp_path, monkeypatch):
    run_folder, state = checkpoints(tmp_path, [4, 8])
    whole_save = torch.save

    def lossy(value: Any, file: Any) -> None:
        whole_save(value | {"now": value["now"] | {"generator": torch.zeros(5056).byte()}}, file)

    monkeypatch.setattr(torch, "save", lossy)
    run_folder.log({"step": 9})
    with pytest.raises(OSError, match=r"does not give back.*previous checkpoint is intact"):
        run_folder.save(state, moved_to(state, 9))
    assert states(tmp_path) == {"latest": 8, "previous": 4}
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["latest.pt", "previous.pt"]


# A full disk


@pytest.mark.parametrize(
    ("site", "at", "name", "kept"),
    [
        ("limit", 1, "latest.pt", {}),
        ("limit", 5, "latest.pt", {"latest": 4, "previous": 2}),
        ("limit in a row", 4, "metrics.jsonl", {"latest": 2}),
    ],
)
def test_a_refused_write_is_one_error_and_the_run_goes_on_when_there_is_room(
    tmp_path, site, at, name, kept
):
    folder = tmp_path / "run"
    refused = start(folder, 1, site, at)
    said = refused.communicate()[0]
    assert refused.returncode == 3, said
    assert len(said.splitlines()) == 1
    assert f"{name} cannot be written" in said
    assert os.strerror(errno.EFBIG) in said
    assert ("the previous checkpoint is intact" in said) == bool(kept)
    assert states(folder) == kept
    assert sorted(p.name for p in (folder / "state").glob("*")) == [f"{k}.pt" for k in kept]
    assert_sound(folder)
    assert (folder / "metrics.jsonl").read_bytes().endswith(b"}\n"), "no half row"
    assert len(read_jsonl(folder / "metrics.jsonl")) == at + (at % 2) - (name != "latest.pt")
    resumed, rows = run(tmp_path, LONG)
    unbroken, all_rows = run(tmp_path, LONG, "unbroken")
    assert torch.equal(weights(resumed), weights(unbroken))
    assert rows == all_rows


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system of its own")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk but for `leave` bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(file.seek(0, os.SEEK_END) - leave)
    return filler


def test_a_full_disk_at_a_checkpoint(tmp_path, small_disk):
    def full(step, row, model):
        if step == 9:
            fill(small_disk, leave=16384)

    with pytest.raises(OSError, match="the disk is full") as error:
        run(small_disk, callbacks=(full,))
    assert "latest.pt" in str(error.value)
    assert "the previous checkpoint is intact" in str(error.value)
    folder = small_disk / "run"
    assert states(folder) == {"latest": 8, "previous": 4}
    assert sorted(p.name for p in (folder / "state").iterdir()) == ["latest.pt", "previous.pt"]
    assert len(read_jsonl(folder / "metrics.jsonl")) == 12
    (small_disk / "filler").unlink()
    resumed, rows = run(small_disk)
    unbroken, all_rows = run(tmp_path)
    assert torch.equal(weights(resumed), weights(unbroken))
    assert rows == all_rows


def test_a_full_disk_in_the_middle_of_a_row_leaves_no_half_of_it(small_disk):
    log = small_disk / "log.jsonl"
    append_jsonl(log, {"step": 1})
    fill(small_disk, leave=4096)
    with pytest.raises(OSError, match=r"log\.jsonl cannot be written: the disk is full"):
        append_jsonl(log, {"step": 2, "note": "x" * 10_000})
    assert log.read_bytes() == b'{"step": 1}\n'
    with pytest.raises(OSError, match="the disk is full"), files.atomic(log) as temporary:
        temporary.write_bytes(bytes(10_000))
    assert log.read_bytes() == b'{"step": 1}\n'
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "log.jsonl"]
    (small_disk / "filler").unlink()
    append_jsonl(log, {"step": 2})
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]


def test_a_library_s_own_error_of_a_full_disk_is_told_the_same_way(small_disk):
    from safetensors.torch import save_file

    fill(small_disk, leave=8192)
    with (
        pytest.raises(OSError, match=r"model\.safetensors cannot be written: the disk is full"),
        files.atomic(small_disk / "model.safetensors") as temporary,
    ):
        save_file({"x": torch.zeros(100_000)}, temporary)
    assert [p.name for p in small_disk.iterdir()] == ["filler"]


if __name__ == "__main__":
    sys.exit(child(*sys.argv[1:]))
