"""Many files: rows that go on where a run stopped, the same from any number of workers."""

import csv
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hostile import fails
from test_scoring import PEAK_MEMORY, read_rows

from sance_audio import EnergyDetector, cli, resumed, scored_page, workers
from sance_audio.resumed import ResumedRows
from sance_audio.scoring import COLUMNS, NUMBERS, Row

RATE = 8000
ABOUT = {"detector": "d", "model": None}
LINUX = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples)


@pytest.fixture(scope="module")
def detector() -> EnergyDetector:
    clips = [(noise(4000, seed), RATE) for seed in range(24)]
    return EnergyDetector(preset="smoke", alpha=0.2).fit(clips)


@pytest.fixture(scope="module")
def run(detector, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    detector.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """300 files, of which some are long, some stereo, and some no sound; a name of two lines."""
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(300):
        n, kind = 1000 + 37 * i, "flac" if i % 2 else "wav"
        soundfile.write(folder / f"{i:04d}.{kind}", noise(n, i), RATE)
    soundfile.write(folder / "0010.wav", noise(20 * RATE), RATE)
    soundfile.write(folder / "0020.wav", np.stack([noise(9000)] * 2, 1), 2 * RATE)
    for name in ("0030.wav", "0200.wav", "0299.flac"):
        (folder / name).write_text("no sound")
    (folder / "0040.wav").rename(folder / '0040 two\nlines, and a "quote".wav')
    (folder / "0050.wav").rename(folder / "0050 caf\udce9.wav")
    return folder


@pytest.fixture(scope="module")
def unbroken(run, sounds, tmp_path_factory) -> bytes:
    """What one run in one process writes."""
    out = tmp_path_factory.mktemp("unbroken") / "scores.csv"
    cli.main(["score", str(run), str(sounds), "--out", str(out)])
    return out.read_bytes()


# The log


@pytest.fixture(scope="module")
def no_waiting() -> Iterator[None]:
    """For the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def row_of(path: Path) -> Row:
    """A row that depends on the path alone."""
    name = str(path)
    value = float(np.random.default_rng(list(name.encode("utf-8", "surrogatepass"))).normal())
    row: Row = {"path": name, "notes": 'a note, "quoted"' if value > 1 else ""}
    return row | ({} if value < -1 else {"anomaly_score": value, "duration_seconds": abs(value)})


NAMES = ["a.wav", 'q"uote.wav', "two\r\nlines.wav", '"\r\n', ", ,", "caf\udce9.wav", "é 😀", "\n"]
NAMES += [r"caf\udce9.wav", "a.wav", " space ", "\r", "a\nb"]


def rows_of(out: Path, names: list[str], about: dict | None = None) -> ResumedRows:
    return ResumedRows(out, COLUMNS, NUMBERS, about or ABOUT, [Path(name) for name in names])


def finish(out: Path, names: list[str], most: int | None = None) -> bytes:
    """Write what is left, or some of it and then break off."""
    try:
        with rows_of(out, names) as rows:
            for i, path in enumerate(rows.left()):
                if i == most:
                    raise KeyboardInterrupt
                rows.append([row_of(path)])
            expected = [row_of(Path(name)) for name in names]
            assert list(rows.read()) == expected
    except KeyboardInterrupt:
        return b""
    assert [p.name for p in out.parent.glob(f"{out.name}*")] == [out.name]
    return out.read_bytes()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_cut_at_any_byte_it_ends_as_if_nothing_had_happened(tmp_path, no_waiting, suffix):
    whole = finish(tmp_path / f"whole.{suffix}", NAMES)
    out = tmp_path / f"x.{suffix}"
    assert finish(out, NAMES, len(NAMES) - 1) == b""
    part, said = (Path(f"{out}{end}") for end in (".part", ".part.json"))
    log, about = part.read_bytes(), said.read_bytes()
    for size in range(0, len(log) + 1, 1 if suffix == "csv" else 7):
        part.write_bytes(log[:size])
        said.write_bytes(about)
        assert finish(out, NAMES) == whole, size


def test_a_damaged_row_and_what_follows_are_made_again(tmp_path):
    whole, out = finish(tmp_path / "whole.csv", NAMES), tmp_path / "x.csv"
    finish(out, NAMES, 9)
    part = tmp_path / "x.csv.part"
    log = part.read_bytes()
    for at in range(log.index(b"\r\n") + 2, len(log) - 9, 11):
        part.write_bytes(log[:at] + bytes(9) + log[at + 9 :])
        with rows_of(out, NAMES) as rows:
            assert rows.count < 9
            assert rows.cut > 9
            rows.append(row_of(path) for path in list(rows.left()))
        assert out.read_bytes() == whole
        finish(out, NAMES, 9)


lists = st.lists(st.sampled_from(NAMES), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(st.tuples(lists, st.integers(0, 6)), max_size=4), last=lists)
@pytest.mark.usefixtures("no_waiting")
def test_files_may_come_and_go_between_the_runs(tmp_path_factory, steps, last):
    """The file is that of one run over the last list, whatever the lists before were; unless they
    have nothing in common, and then nothing is touched.
    """
    folder = tmp_path_factory.mktemp("lists")
    out = folder / "x.csv"
    whole = finish(folder / "whole.csv", last)
    for names, most in [*steps, (last, None)]:
        before = {p.name: p.read_bytes() for p in folder.glob("x.csv*")}
        try:
            found = finish(out, names, most)
        except ValueError as error:
            refused = "none is of a file asked for" in str(error)
            assert refused
            assert {p.name: p.read_bytes() for p in folder.glob("x.csv*")} == before
            return
        if found:
            out.unlink()
    assert found == whole


def test_rows_of_gone_files_are_counted(tmp_path):
    out = tmp_path / "x.csv"
    finish(out, NAMES, 5)
    with rows_of(out, NAMES[2:]) as rows:
        assert (rows.earlier, rows.count, rows.gone) == (5, 4, 1), "a.wav is asked for once more"
        rows.append(row_of(path) for path in list(rows.left()))
    assert [row["path"] for row in read_rows(out)][:2] == NAMES[2:4]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"detector": "e"}, "rows of another detector (found d, expected e)"),
        ({"model": "m"}, "rows of another model (found None, expected m)"),
    ],
)
def test_rows_of_something_else_are_left_alone(tmp_path, change, words):
    out = tmp_path / "x.csv"
    finish(out, NAMES, 5)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with (
        pytest.raises(ValueError, match="delete it") as caught,
        rows_of(out, NAMES, ABOUT | change),
    ):
        pass
    assert words in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    other = ResumedRows(out, COLUMNS[1:], NUMBERS, ABOUT, [])
    with pytest.raises(ValueError, match="columns are others"), other:
        pass
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", ["", "path,energy\r\n", "my notes\n", "p", "[" * 10**5])
@pytest.mark.parametrize("name", ["x.csv.part", "x.csv.part.json"])
def test_a_stranger_s_file_is_left_alone(tmp_path, name, content):
    out = tmp_path / "x.csv"
    (tmp_path / name).write_bytes(content.encode())
    if name.endswith(".part") and not content:
        assert finish(out, NAMES)
        return
    with pytest.raises(ValueError, match=r"move it away|delete it"), rows_of(out, NAMES):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == content.encode()


def test_what_is_left_of_a_finished_run_is_in_nobody_s_way(tmp_path):
    """Killed between its last two deeds."""
    out = tmp_path / "x.csv"
    finish(out, NAMES, 5)
    (tmp_path / "x.csv.part").rename(out)
    with rows_of(out, NAMES, ABOUT | {"detector": "e"}) as rows:
        rows.append(row_of(path) for path in list(rows.left()))
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def test_an_interrupt_while_rows_are_recalled_loses_none(tmp_path, monkeypatch):
    out = tmp_path / "x.csv"
    finish(out, NAMES, 8)
    before = (tmp_path / "x.csv.part").read_bytes()
    parse, calls = resumed.parse_record, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return parse(*arguments)

    monkeypatch.setattr(resumed, "parse_record", interrupted)
    with pytest.raises(KeyboardInterrupt), rows_of(out, NAMES):
        pass
    assert (tmp_path / "x.csv.part").read_bytes() == before


def test_a_disk_that_fills_at_the_very_end_loses_no_row(tmp_path, monkeypatch):
    whole, out = finish(tmp_path / "whole.parquet", NAMES), tmp_path / "x.parquet"

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("sance_audio.parquet.write", full)
        with pytest.raises(OSError, match=f"{len(NAMES)} finished rows kept in"):
            finish(out, NAMES)
    assert not out.exists()
    with rows_of(out, NAMES) as rows:
        assert list(rows.left()) == []
    assert out.read_bytes() == whole


def test_one_process_at_a_time(run, sounds, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    with rows_of(out, NAMES) as rows:
        rows.append([row_of(Path(NAMES[0]))])
        before = (tmp_path / "scores.csv.part").read_bytes()
        error = fails(capsys, "score", run, sounds, "--out", out)
        assert "another process is writing it" in error
        assert (tmp_path / "scores.csv.part").read_bytes() == before
        rows.append(row_of(path) for path in list(rows.left()))
    assert len(read_rows(out)) == len(NAMES)


# What may be written over


def test_what_stands_there_is_written_over_only_if_it_is_ours(run, sounds, tmp_path, capsys):
    from pyarrow import parquet, table

    (tmp_path / "mine.csv").write_text("name,age\nx,3\n")
    (tmp_path / "notes.csv").write_bytes(b"\xff\xfe no text")
    (tmp_path / "fake.parquet").write_text("no table")
    parquet.write_table(table({"name": ["x"]}), tmp_path / "mine.parquet")
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    for path in before:
        error = fails(capsys, "score", run, sounds, "--out", path)
        assert "was not written by this command" in error
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_relative_paths_are_of_one_folder(run, tmp_path, capsys, monkeypatch):
    """The same name in another folder is another file, whose row nobody may be given."""
    out, rest = tmp_path / "x.csv", ["score", str(run), "a.wav", "--out", str(tmp_path / "x.csv")]
    for i, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", noise(4000, i), RATE)
    monkeypatch.chdir(tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(ResumedRows, "_finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            cli.main(rest)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "two")
    assert "rows of another folder of relative paths" in fails(capsys, *rest)
    monkeypatch.chdir(tmp_path / "one")
    cli.main(rest)
    assert len(read_rows(out)) == 1


def test_parquet_without_its_library(run, sounds, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    error = fails(capsys, "score", run, sounds, "--out", tmp_path / "x.parquet")
    assert "pip install 'sance-audio[parquet]'" in error
    assert list(tmp_path.iterdir()) == []


def test_parquet_holds_what_the_csv_does(run, sounds, unbroken, tmp_path, monkeypatch):
    from pyarrow import parquet

    monkeypatch.setattr("sance_audio.parquet.GROUP", 100)
    out = tmp_path / "x.parquet"
    for _ in range(2):  # one of ours is replaced
        cli.main(["score", str(run), str(sounds), "--out", str(out)])
    found = parquet.read_table(out)
    kinds = {f.name: str(f.type) for f in found.schema}
    assert kinds == {c: "double" if c in NUMBERS else "string" for c in COLUMNS}
    assert parquet.ParquetFile(out).num_row_groups == 3
    expected = list(csv.DictReader(unbroken.decode().splitlines(keepends=True)))
    for row, texts in zip(found.to_pylist(), expected, strict=True):
        typed = {k: float(v) if k in NUMBERS and v else v or None for k, v in texts.items()}
        assert row == typed
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_mistakes(run, sounds, tmp_path, capsys):
    out = ("--out", tmp_path / "x.csv")
    assert "--workers must be at least 1" in fails(
        capsys, "score", run, sounds, *out, "--workers", 0
    )
    assert "no PATH was given" in fails(capsys, "score", run, *out)
    assert list(tmp_path.iterdir()) == []


# A run that is broken off


def command(run: Path, sounds: Path, out: Path, *more: object, times: int = 1) -> list[str]:
    """`times` as many files, by naming the folder so often."""
    start = [sys.executable, "-m", "sance_audio", "score", run, *times * [sounds], "--out", out]
    return [str(word) for word in [*start, *more]]


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(true: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def children(process: subprocess.Popen) -> list[int]:
    """Numbers of the processes that it has started, workers and what watches over them."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in found.split()]


def alive(number: int) -> bool:
    try:
        stat = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_killed_three_times_it_ends_as_if_nothing_had_happened(run, sounds, unbroken, tmp_path):
    out, part = tmp_path / "scores.csv", tmp_path / "scores.csv.part"
    moments = random.Random(int.from_bytes(os.urandom(4)))
    sizes = sorted(moments.randrange(len(unbroken) * 7 // 10) for _ in range(3))
    for at, number in zip(sizes, (1, 2, 2), strict=True):
        while True:
            with started(command(run, sounds, out, "--workers", number)) as process:
                until(lambda at=at: size(part) >= max(at, 100) or out.exists())
                process.send_signal(signal.SIGKILL)
                process.wait()
            if not out.exists():
                break
            out.unlink()  # it was faster than the kill
    kept = part.read_bytes().count(b"\r\n")
    page = tmp_path / "page.html"
    done = subprocess.run(
        command(run, sounds, out, "--workers", 2, "--page", page, "--show", 1),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert kept > 3, sizes
    assert "going on after" in done.stderr
    assert out.read_bytes() == unbroken, sizes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "scores.csv"]
    shown = page.read_text()
    assert "297 recordings, scored by" in shown
    assert "3 could not be read" in shown
    assert "297 files scored, 3 could not be read" in done.stdout


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_run(run, sounds, tmp_path, number):
    """Ctrl-C reaches all processes of a terminal."""
    out, part = tmp_path / "scores.csv", tmp_path / "scores.csv.part"
    with started(command(run, sounds, out, "--workers", 2, times=4)) as process:
        until(lambda: size(part) > 1000)
        others = children(process)
        assert len(others) >= 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, error = process.communicate(timeout=20)
        until(lambda: not any(map(alive, others)), 5)
    if number == signal.SIGKILL:
        assert process.returncode == -number
        return
    assert process.returncode == 128 + number
    rows = len(read_rows_of(part))
    assert error.strip() == f"sance-audio: interrupted; {rows} finished rows kept in {part}"


def read_rows_of(part: Path) -> list[dict[str, str]]:
    """Of a log, whose paths are bytes."""
    with part.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@LINUX
def test_a_worker_that_is_killed_costs_nothing(run, sounds, unbroken, tmp_path):
    out, part = tmp_path / "scores.csv", tmp_path / "scores.csv.part"
    with started(command(run, sounds, out, "--workers", 2)) as process:
        until(lambda: size(part) > 1000)
        os.kill(max(children(process)), signal.SIGKILL)
        _, error = process.communicate(timeout=90)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert out.read_bytes() == unbroken


POISON = """
import os, signal, sys
from sance_audio import EnergyDetector, cli

listen, how = EnergyDetector.listen, sys.argv[1]

def poisoned(self, path):
    if path.name.startswith("0007"):
        if how == "memory":
            raise MemoryError
        os.kill(os.getpid(), getattr(signal, how))
    return listen(self, path)

EnergyDetector.listen = poisoned
if __name__ == "__main__":
    cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("SIGKILL", "SIGKILL: killed, perhaps"),
        pytest.param("memory", "out of memory", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_kills_its_worker_costs_one_row(run, sounds, unbroken, tmp_path, how, why):
    script, out = tmp_path / "poisoned.py", tmp_path / "scores.csv"
    script.write_text(POISON)
    words = command(run, sounds, out, "--workers", 2)[3:]
    done = subprocess.run(
        [sys.executable, script, how, *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"a worker died ({why}" in done.stderr
    assert "296 files scored, 4 could not be read" in done.stdout
    expected = csv.DictReader(unbroken.decode().splitlines(keepends=True))
    for row, other in zip(read_rows(out), expected, strict=True):
        if Path(row["path"]).name.startswith("0007"):
            assert f"not scored: its worker died twice ({why}" in row["notes"]
            assert row["anomaly_score"] == ""
        else:
            assert row == other


def test_workers_that_cannot_start_are_one_line(run, sounds, tmp_path):
    script, out = tmp_path / "unguarded.py", tmp_path / "scores.csv"
    script.write_text("import os, sys\nif __name__ != '__main__': os._exit(3)\n" + POISON)
    done = subprocess.run(
        [sys.executable, script, "", *command(run, sounds, out, "--workers", 2)[3:]],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "3 workers in a row died while they started (exit status 3)" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["unguarded.py"]


def test_a_worker_refuses_another_detector(run, sounds, tmp_path):
    files = sorted(sounds.iterdir())[:20]
    about = {"detector": "another", "model": None}
    with pytest.raises(ValueError, match="changed in the meantime"):
        list(workers.scored_by_workers(run, about, files, 1, print))


def test_the_page_of_a_resumed_run_shows_all(run, sounds, tmp_path, monkeypatch, capsys):
    """Rows that are read back are to the bit those that were written."""
    shown = []
    section = scored_page.section

    def watched(detector, found, *arguments, **settings):
        shown.append(found)
        return section(detector, found, *arguments, **settings)

    monkeypatch.setattr(scored_page, "section", watched)
    files = [str(path) for path in sorted(sounds.iterdir())[25:60]]
    page = ["--page", str(tmp_path / "page.html"), "--show", "1"]
    for name, most in (("whole", 99), ("broken", 20)):
        words = ["score", str(run), *files, "--out", str(tmp_path / f"{name}.csv"), *page]
        with monkeypatch.context() as patch:
            append, count = ResumedRows.append, [0]

            def breaking(self, rows, append=append, count=count, most=most):
                for row in rows:
                    if count[0] == most:
                        raise KeyboardInterrupt
                    append(self, [row])
                    count[0] += 1

            patch.setattr(ResumedRows, "append", breaking)
            if name == "broken":
                with pytest.raises(SystemExit):
                    cli.main(words)
            else:
                cli.main(words)
        if name == "broken":
            cli.main(words)
            assert "going on after 20 finished rows" in capsys.readouterr().err
    assert len(shown) == 2
    assert shown[0] == shown[1]
    assert len(shown[0]) == 34


# Memory


@LINUX
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ten_times_the_files_take_the_same_memory(run, tmp_path, number):
    """Of the process that holds the list and writes, in MiB."""
    soundfile.write(tmp_path / "x.wav", noise(800), RATE)
    peaks = []
    for n in (300, 3000):
        folder = tmp_path / str(n)
        folder.mkdir()
        for i in range(n):
            os.link(tmp_path / "x.wav", folder / f"{i}.wav")
        words = command(run, folder, tmp_path / "x.csv", "--workers", number)[4:]
        done = subprocess.run(
            [sys.executable, "-c", PEAK_MEMORY, *words],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 16, peaks
