"""Scoring: the same figures whether a file is held or streamed, in flat memory; rows that stay."""

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import small_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from sance_audio import EnergyDetector, audio, cli, decoding, streams
from sance_audio.detection import rows, statistics
from sance_audio.rows import Rows
from sance_audio.scoring import COLUMNS, score_files
from sance_audio.weights import save_weights

RATE, WINDOW, PEAK = 4000, 960, 0.5
FLAC_WAV = ("wav", "flac")
OLD = ",".join(COLUMNS) + "\nold,1,2,.5,,3,\n"
"""What an earlier run wrote, and a new one may replace."""


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def noise(n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((n, channels))


@pytest.fixture(scope="module")
def detector() -> EnergyDetector:
    model = small_model()
    normals = model.generate(60, torch.Generator().manual_seed(0))
    return EnergyDetector(model, alpha=0.1, window=10.0).fit(list(normals))


@pytest.fixture(scope="module")
def small_run(detector, tmp_path_factory) -> Path:
    """A run folder with a model that is quick, and its detector."""
    folder = tmp_path_factory.mktemp("small")
    detector.model.save_pretrained(folder)
    detector.save_pretrained(folder)
    return folder


def around_edges() -> SearchStrategy[int]:
    """Lengths, in samples of the model's rate, about the places where another window begins."""
    edge = st.integers(0, 12).map(lambda k: k * WINDOW // 2)
    return st.tuples(edge, st.integers(-2, 2)).map(lambda pair: max(1, sum(pair)))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n=around_edges(),
    rate=st.sampled_from([500, 4000, 8000, 11025, 44100, 96000]),
    channels=st.sampled_from([1, 2, 8]),
    kind=st.sampled_from(FLAC_WAV),
    block=st.sampled_from([64, 1000, 2**19]),
    batch=st.sampled_from([1, 3, 64]),
)
def test_streamed_windows_are_those_of_the_whole(tmp_path, n, rate, channels, kind, block, batch):
    path = tmp_path / f"x.{kind}"
    soundfile.write(path, noise(max(1, n * rate // RATE), channels), rate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PART", batch)
        patch.setattr(decoding, "BLOCK", block)
        held = streams.listen(path, RATE, WINDOW, PEAK)
        patch.setattr(streams, "HELD", 0.0)
        streamed = streams.listen(path, RATE, WINDOW, PEAK)
        assert (held.held, streamed.held) == (True, False)
        parts = [list(sound.parts()) for sound in (held, streamed)]
    whole = audio.windows(audio.read(path, RATE)[0], WINDOW, PEAK)
    assert streams.count_windows(held.samples, WINDOW) == len(whole)
    for part in parts:
        assert max(map(len, part)) <= batch
        assert torch.equal(torch.cat(part), whole)
    facts = [(s.channels, s.seconds, s.samples, s.silent, s.constant) for s in (held, streamed)]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "c.ogg", "d.mp3"])
def test_streamed_files_have_the_energy_of_held_ones(detector, tmp_path, monkeypatch, name):
    path = tmp_path / name
    soundfile.write(path, noise(5 * 44100, 2), 44100)
    clip = audio.read(path, RATE)[0]
    model = detector.model
    energy = float(model.energy(clip, RATE)[0])
    held = detector.assess([path, clip])
    monkeypatch.setattr(streams, "HELD", 1.0)
    streamed = detector.assess([path, clip])
    for key, values in streamed.items():
        np.testing.assert_allclose(values, held[key][0], rtol=1e-6)
    assert abs(streamed["energy"][0] - energy) < 1e-3


@pytest.mark.parametrize("part", [1, 3, 64])
def test_a_clip_in_parts_has_the_statistics_of_its_windows(detector, monkeypatch, part):
    """Mean over windows, largest less mean, in whichever part the largest stands."""
    monkeypatch.setattr(streams, "PART", part)
    monkeypatch.setattr(rows, "BATCH", part)
    model = detector.model
    clip = torch.from_numpy(noise(12 * WINDOW)[:, 0]).float()
    clip *= torch.linspace(0, 1, len(clip)) ** 2
    expected, classes = [], []
    for wave in (clip, clip.flip(0), clip[:WINDOW]):
        x = model.log_mels(model.windows(wave))
        s = statistics(model, x)[1].double()
        expected.append(torch.cat([s.mean(0), s.amax(0) - s.mean(0)]))
        classes.append(model.classify(x).double().sum(0))
    clips = detector.windows([clip, clip.flip(0), clip[:WINDOW]])
    found = [row for some in detector._describer.rows(clips, classes=True) for row in some]
    assert [row.clip for row in found] == [0, 1, 2]
    np.testing.assert_allclose(
        [row.vectors["energy"] for row in found], torch.stack(expected), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        [row.log_p for row in found], torch.stack(classes), rtol=1e-4, atol=1e-4
    )


def test_no_clip_is_held_and_no_batch_is_large(detector, tmp_path, monkeypatch):
    """Of many clips and one long one, at most 256 windows at once reach the model."""
    monkeypatch.setattr(streams, "HELD", 1.0)
    for i in range(30):
        soundfile.write(tmp_path / f"{i:02d}.wav", noise(1000 + 100 * i, seed=i), RATE)
    soundfile.write(tmp_path / "long.wav", noise(60 * RATE), RATE)
    paths = sorted(tmp_path.glob("*.wav"))
    whole = [detector.assess([path]) for path in paths]
    sizes = []
    log_mels = type(detector.model).log_mels

    def watched(model, waves):
        sizes.append(len(waves))
        return log_mels(model, waves)

    monkeypatch.setattr(type(detector.model), "log_mels", watched)
    together = detector.assess(paths)
    assert max(sizes) <= 256
    assert sum(sizes) >= 30 + 60 * RATE // (WINDOW // 2) - 1
    for key, values in together.items():
        np.testing.assert_allclose(values, [float(one[key][0]) for one in whole], rtol=1e-5)
    again = EnergyDetector(detector.model, alpha=0.2, calibration=0.5).fit(paths)
    assert np.isfinite(again.anomaly_score(paths)).all()


def test_a_file_that_shrinks_between_the_passes_is_one_row(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "HELD", 1.0)
    for name in ("a.wav", "b.wav", "c.wav"):
        soundfile.write(tmp_path / name, noise(3 * RATE), RATE)
    paths = sorted(tmp_path.glob("*.wav"))
    cut = streams._cut

    def cutting(*arguments):
        if cutting.calls == 1:
            os.truncate(paths[1], 5000)
        cutting.calls += 1
        return cut(*arguments)

    cutting.calls = 0
    monkeypatch.setattr(streams, "_cut", cutting)
    rows = []
    scored = score_files(detector, paths, rows.extend)
    assert (scored.files, scored.failed) == (3, 1)
    assert ["energy" in row for row in rows] == [True, False, True]
    assert "changed while it was read" in rows[1]["notes"]


# Memory

PEAK_MEMORY = """
import sys
from pathlib import Path
from sance_audio import cli
cli.main(["score", *sys.argv[1:]])
(peak,) = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
print("peak", peak.split()[1])
"""
"""`ru_maxrss` will not do: a child process takes its parent's peak over, which hides its own."""


def recording(path: Path, minutes: int, rate: int = 16000) -> Path:
    """A long WAV, silence but for its end: the disk holds a few blocks of it."""
    soundfile.write(path, noise(rate)[:, 0], rate, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    place = content.index(b"data")
    sound = content[place + 8 :]
    size = 2 * rate * 60 * minutes
    content[4:8] = (place + size).to_bytes(4, "little")
    content[place + 4 : place + 8] = size.to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(content[: place + 8])
        file.truncate(place + 8 + size)
        file.seek(-len(sound), os.SEEK_END)
        file.write(sound)
    return path


def peak_mib(run: Path, tmp_path: Path, minutes: int) -> float:
    """Peak resident memory of scoring so many minutes, in MiB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to measure memory")
    path, out = recording(tmp_path / f"{minutes}.wav", minutes), tmp_path / "scores.csv"
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, run, path, "--out", out],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    path.unlink()
    (row,) = read_rows(out)
    assert float(row["duration_seconds"]) == 60 * minutes
    return int(done.stdout.split()[-1]) / 1024


def test_an_hour_takes_the_memory_of_two_minutes(small_run, tmp_path):
    """115 MB of PCM, 58 million samples, resampled to 14 million: either would show."""
    short, long = (peak_mib(small_run, tmp_path, minutes) for minutes in (2, 60))
    assert long - short < 16


def test_ten_minutes_of_a_trained_model_take_the_memory_of_two(finished_run, tmp_path):
    short, long = (peak_mib(finished_run, tmp_path, minutes) for minutes in (2, 10))
    assert long - short < 24


@pytest.mark.slow
def test_an_hour_of_a_trained_model_takes_the_memory_of_two_minutes(finished_run, tmp_path):
    short, long = (peak_mib(finished_run, tmp_path, minutes) for minutes in (2, 60))
    assert long - short < 24


# Rows that stay


def sounds(folder: Path, n: int) -> Path:
    folder.mkdir()
    for i in range(n):
        soundfile.write(folder / f"{i:04d}.wav", noise(500, seed=i), RATE)
    return folder


def test_rows_appear_group_by_group_and_the_old_file_stays_until_the_end(
    small_run, tmp_path, monkeypatch
):
    out, part = tmp_path / "scores.csv", tmp_path / "scores.csv.part"
    out.write_text(OLD)
    monkeypatch.setattr("sance_audio.scoring.GROUP", 4)
    seen = []
    assess = EnergyDetector.assess_windows

    def watched(self, *arguments):
        seen.append((out.read_text(), len(read_rows(part))))
        return assess(self, *arguments)

    monkeypatch.setattr(EnergyDetector, "assess_windows", watched)
    cli.main(["score", str(small_run), str(sounds(tmp_path / "s", 10)), "--out", str(out)])
    assert seen == [(OLD, 0), (OLD, 4), (OLD, 8)]
    assert len(read_rows(out)) == 10
    assert list(read_rows(out)[0]) == list(COLUMNS)
    assert not part.exists()


def test_an_interrupt_leaves_the_finished_rows(small_run, tmp_path, monkeypatch, capsys):
    out, part = tmp_path / "scores.csv", tmp_path / "scores.csv.part"
    out.write_text(OLD)
    monkeypatch.setattr("sance_audio.scoring.GROUP", 4)
    assess, calls = EnergyDetector.assess_windows, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return assess(self, *arguments)

    monkeypatch.setattr(EnergyDetector, "assess_windows", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["score", str(small_run), str(sounds(tmp_path / "s", 10)), "--out", str(out)])
    assert caught.value.code == 130
    error = capsys.readouterr().err.strip()
    assert error == f"sance-audio: interrupted; 8 finished rows kept in {part}"
    assert out.read_text() == OLD
    assert len(read_rows(part)) == 8


def test_a_kill_leaves_the_finished_rows(small_run, tmp_path):
    out = tmp_path / "scores.csv"
    code = (
        "import os, sys, signal\n"
        "from sance_audio import cli, scoring\n"
        "from sance_audio.detection import EnergyDetector\n"
        "scoring.GROUP = 4\n"
        "assess, calls = EnergyDetector.assess_windows, []\n"
        "def killed(self, *a):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return assess(self, *a)\n"
        "EnergyDetector.assess_windows = killed\n"
        "cli.main(['score', *sys.argv[1:]])\n"
    )
    folder = sounds(tmp_path / "s", 10)
    done = subprocess.run(
        [sys.executable, "-c", code, small_run, folder, "--out", out], capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(read_rows(tmp_path / "scores.csv.part")) == 8


def test_without_a_scored_file_nothing_is_left(small_run, tmp_path, capsys):
    (tmp_path / "bad.wav").write_text("no sound")
    out = tmp_path / "scores.csv"
    out.write_text(OLD)
    with pytest.raises(SystemExit):
        cli.main(["score", str(small_run), str(tmp_path / "bad.wav"), "--out", str(out)])
    assert "none of 1 files" in capsys.readouterr().err
    assert out.read_text() == OLD
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.wav", "scores.csv"]


def test_rows_that_cannot_begin_name_the_file(tmp_path):
    (tmp_path / "a.csv.part").mkdir()
    with (
        pytest.raises(OSError, match=r"a\.csv\.part cannot be written") as caught,
        Rows(tmp_path / "a.csv", COLUMNS),
    ):
        pass
    assert caught.value.errno == errno.EISDIR


# Full disks

LIMITED = """
import resource, signal, sys
from pathlib import Path
from sance_audio import audio, cli, weights
import torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, what, *rest = sys.argv[1:]
if what == "score":
    cli.main(["score", rest[0], rest[1], "--out", rest[1] + ".warm.csv"])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
if what == "score":
    cli.main(["score", *rest])
try:
    if what == "wav":
        audio.write(rest[0], torch.zeros(100_000), 8000)
    else:
        weights.save_weights(Path(rest[0]), "x", {}, {"a": torch.ones(100_000)})
except OSError as error:
    print(error.errno, error)
"""


def limited(limit: int, *arguments: object) -> subprocess.CompletedProcess:
    """Run with files limited to so many bytes, as on a disk that is nearly full."""
    command = [sys.executable, "-c", LIMITED, str(limit), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_file_that_cannot_grow_keeps_the_finished_rows(small_run, tmp_path):
    folder, out = sounds(tmp_path / "s", 40), tmp_path / "scores.csv"
    out.write_text(OLD)
    part = tmp_path / "scores.csv.part"
    done = limited(3000, "score", small_run, folder, "--out", out)
    assert done.returncode == 2, done.stderr
    error = done.stderr.strip()
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error
    whole = read_rows(Path(f"{folder}.warm.csv"))
    kept = read_rows(part)
    assert 0 < len(kept) < len(whole) == 40
    assert kept == whole[: len(kept)]
    assert part.stat().st_size <= 3000
    assert part.read_bytes().endswith(b"\r\n")
    assert f"File too large; {len(kept)} finished rows kept in {part}" in error
    assert out.read_text() == OLD
    cli.main(["score", str(small_run), str(folder), "--out", str(out)])
    assert read_rows(out) == whole


def test_not_even_a_header_fits(small_run, tmp_path):
    folder, out = sounds(tmp_path / "s", 2), tmp_path / "scores.csv"
    done = limited(20, "score", small_run, folder, "--out", out)
    assert done.returncode == 2
    assert "no row was finished" in done.stderr
    assert not list(tmp_path.glob("scores*"))


@pytest.mark.parametrize("what", ["wav", "weights"])
def test_files_that_cannot_grow_are_one_error(tmp_path, what):
    path = tmp_path / "x.file"
    path.write_text("old")
    done = limited(3000, what, path)
    assert done.stdout.startswith(f"{errno.EFBIG} "), done.stderr
    assert f"{path} cannot be written: the system refused it (File too large)" in done.stdout
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"may not mount a small disk here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_error_and_leaves_no_temporary(small_disk):
    (small_disk / "x.wav").write_text("old")
    for write in (
        lambda: audio.write(small_disk / "x.wav", torch.zeros(100_000), 8000),
        lambda: save_weights(small_disk / "x.wav", "x", {}, {"a": torch.ones(100_000)}),
    ):
        with pytest.raises(OSError, match="No space left on device") as caught:
            write()
        assert caught.value.errno == errno.ENOSPC
        assert str(small_disk / "x.wav") in str(caught.value)
        assert [p.name for p in small_disk.iterdir()] == ["x.wav"]
    assert (small_disk / "x.wav").read_text() == "old"


def test_a_disk_that_fills_keeps_the_finished_rows(small_run, tmp_path, small_disk, capsys):
    folder, out = sounds(tmp_path / "s", 60), small_disk / "scores.csv"
    (small_disk / "ballast").write_bytes(bytes(56 * 1024))
    with pytest.raises(SystemExit) as caught:
        cli.main(["score", str(small_run), str(folder), "--out", str(out)])
    assert caught.value.code == 2
    kept = read_rows(small_disk / "scores.csv.part")
    assert 0 < len(kept) < 60
    assert all(row["energy"] for row in kept)
    error = capsys.readouterr().err
    assert f"No space left on device; {len(kept)} finished rows kept in {out}.part" in error
    assert not out.exists()
