"""Streams: the windows and scores of the same sound as one clip, however the blocks come."""

import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import real_data
from hypothesis import given, settings
from hypothesis import strategies as st
from test_detection import hums

from sance_audio import EnergyDetector, audio, cli
from sance_audio.cli.live import Tally, blocks_of
from sance_audio.streams import cut

RATE = 8000


@pytest.fixture(scope="module")
def detector() -> EnergyDetector:
    """Of normals of a second, in windows of a second."""
    d = EnergyDetector(preset="smoke", alpha=0.1, sample_rate=RATE, window=1.0)
    return d.fit(hums(40, seconds=1.0))


def pieces(x: np.ndarray, rng: np.random.Generator, largest: int) -> list[np.ndarray]:
    """Blocks of random sizes, some of them empty."""
    cuts = [0]
    while cuts[-1] < len(x):
        cuts.append(cuts[-1] + int(rng.integers(0, largest + 1)))
    return [x[a:b] for a, b in itertools.pairwise(cuts)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 30), st.integers(0, 99))
def test_windows_of_blocks_are_those_of_the_whole(n, length, largest, seed):
    x = np.arange(1.0, n + 1, dtype=np.float32)
    blocks = map(torch.from_numpy, pieces(x, np.random.default_rng(seed), largest))
    found = list(cut(blocks, length))
    if n <= length:
        expected = [x.tolist()] if n else []
    else:
        starts = [*range(0, n - length, max(1, length // 2)), n - length]
        assert [start for start, _ in found] == starts
        expected = [x[s : s + length].tolist() for s in starts]
    assert [window.tolist() for _, window in found] == expected


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.2, 7.3])
def test_a_stream_is_scored_as_the_clip_is(detector, rate, seconds):
    x = hums(1, 5, seconds, rate)[0] * np.float32(0.3)
    found = list(detector.score_stream(pieces(x, np.random.default_rng(0), rate // 5), rate))
    whole = audio.resample(torch.from_numpy(x), rate, RATE)
    assert len(found) == detector.count_windows(len(whole))
    mean = np.mean([w.anomaly_score for w in found])
    assert mean == pytest.approx(detector.anomaly_score([(x, rate)])[0], rel=1e-5, abs=1e-5)
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(seconds, abs=1e-3)
    for w in found:
        part = whole[round(w.start * RATE) : round(w.end * RATE)]
        alone = detector.assess([part])
        assert w.anomaly_score == pytest.approx(alone["anomaly_score"][0], rel=1e-5, abs=1e-5)
        assert w.p_value == alone["p_value"][0]
        assert w.odd == (detector.predict([part])[0] == -1)


def test_esc10_in_random_blocks():
    """Every clip of a fold, by a detector of one class of the others: within 1e-5 of the batch."""
    paths = sorted((real_data("esc10") / "audio").iterdir())
    normals = [p for p in paths if p.stem.endswith("-0") and p.name[0] != "1"]
    d = EnergyDetector(preset="smoke", alpha=0.2, sample_rate=16000).fit(normals)
    rng = np.random.default_rng(0)
    judged = [p for p in paths if p.name[0] == "1"]
    batch = d.assess(judged)
    assert len(judged) == 80
    for path, score, p in zip(judged, batch["anomaly_score"], batch["p_value"], strict=True):
        sound = audio.load(path)
        blocks = pieces(sound.waveform.numpy(), rng, 30_000)
        found = list(d.score_stream(blocks, sound.sample_rate))
        mean = np.mean([w.anomaly_score for w in found])
        assert abs(mean - score) <= 1e-5 * max(1, abs(score))
        if len(found) == 1:
            assert found[0].p_value == p


def test_windows_of_long_normals_have_p_values_of_windows():
    """Means over many windows vary less than windows do: their p-values are not a window's."""
    longer = [np.concatenate(hums(8, i)) for i in range(60)]
    d = EnergyDetector(preset="smoke", alpha=0.1, sample_rate=RATE, window=0.6).fit(longer)
    assert d.window_calibration_.recordings == d.calibration_.recordings
    assert len(d.window_calibration_.scores) > 10 * len(d.calibration_.scores)
    fresh = [w.odd for i in range(40) for w in d.score_stream([np.concatenate(hums(8, 100 + i))])]
    assert 0.02 < np.mean(fresh) < 0.2


PEAK = """
import sys
from pathlib import Path
import numpy as np
from sance_audio import EnergyDetector
detector = EnergyDetector.from_pretrained(sys.argv[1])
block = np.sin(np.arange(8000) * 0.2).astype(np.float32)
seconds = int(sys.argv[2])
print(sum(1 for _ in detector.score_stream(block for _ in range(seconds))))
(peak,) = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
print(peak.split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peaks from /proc")
def test_an_hour_of_a_stream_takes_the_memory_of_two_minutes(tmp_path):
    """An hour at 8 kHz is 115 MB of float32: none of it may stay."""
    d = EnergyDetector(preset="smoke", alpha=0.1, sample_rate=RATE, window=10.0)
    d.fit(hums(40, seconds=1.0)).save_pretrained(tmp_path)
    peaks = []
    for seconds in (120, 3600):
        command = [sys.executable, "-c", PEAK, str(tmp_path), str(seconds)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(out[0]) == seconds // 5 - 1
        peaks.append(int(out[1]) / 1024)
    assert peaks[1] - peaks[0] < 16, peaks


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([np.zeros((2, 8))], r"block at 0.00 s of the stream: expected samples \(n,\)"),
        ([np.ones(800), [0.0, np.nan]], "block at 0.10 s of the stream: holds NaN"),
        ([(np.ones(400), 8000), (np.ones(400), 16000)], "at 0.05 s .* comes at 16000 Hz, the str"),
    ],
)
def test_broken_streams_are_named(detector, blocks, words):
    with pytest.raises(ValueError, match=words):
        list(detector.score_stream(blocks))


def test_an_empty_stream_has_no_window(detector):
    assert list(detector.score_stream([])) == []
    assert list(detector.score_stream([np.zeros(0)])) == []


@pytest.mark.parametrize(("encoding", "kind"), [("s16", "<i2"), ("s32", "<i4"), ("f32", "<f4")])
@pytest.mark.parametrize("channels", [1, 2])
def test_raw_samples_are_decoded_whatever_the_reads(encoding, kind, channels):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1000, channels))
    full = 1 if encoding == "f32" else np.iinfo(kind).max
    raw = (x * full).astype(kind).tobytes() + b"\1"

    class Dribble(io.BytesIO):
        def read1(self, size=-1):
            return super().read1(int(rng.integers(1, 40)))

    tally = Tally()
    found = np.concatenate(list(blocks_of(Dribble(raw), encoding, channels, tally)))
    np.testing.assert_allclose(found, x.mean(1), atol=1e-4)
    assert (tally.frames, tally.dropped) == (1000, 1)


@pytest.fixture(scope="module")
def run(detector, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    detector.save_pretrained(folder)
    return folder


def piped(run: Path, raw: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sance_audio", "score", str(run), "--stdin", *arguments]
    return subprocess.run(command, input=raw, capture_output=True, check=False)


def test_a_pipe_gives_a_line_a_window(detector, run, tmp_path):
    x = hums(1, 5, 3.25, 16000)[0]
    path = tmp_path / "a.wav"
    soundfile.write(path, x, 16000, subtype="PCM_16")
    raw = (audio.read(path, 16000)[0].numpy() * 2**15).round().astype("<i2").tobytes()
    out = piped(run, raw + b"\0", "--rate", "16000")
    assert out.returncode == 0, out.stderr
    lines = [json.loads(line) for line in out.stdout.splitlines()]
    assert [line["start"] for line in lines] == [0, 0.5, 1.0, 1.5, 2.0, 2.25]
    assert set(lines[0]) == {"start", "end", "anomaly_score", "p_value", "odd"}
    mean = np.mean([line["anomaly_score"] for line in lines])
    assert mean == pytest.approx(detector.anomaly_score([path])[0], rel=1e-5)
    said = out.stderr.decode()
    assert "3.2 s of sound, 6 windows of 1 s or less" in said
    assert "stopped within a frame: its last 1 bytes dropped" in said


def test_lines_come_before_the_stream_ends(run):
    """A window is told as soon as it is whole, while the pipe is open."""
    command = [sys.executable, "-m", "sance_audio", "score", str(run), "--stdin", "--rate", "8000"]
    x = (hums(1, 5, 1.5)[0] * 2**14).astype("<i2").tobytes()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(x)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["end"] == 1.0
        process.stdin.close()
        assert json.loads(process.stdout.readline())["end"] == 1.5
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("raw", "arguments", "words"),
    [
        (b"\0" * 99, (), "--stdin needs --rate"),
        (b"", ("--rate", "8000"), "ended before its first sample"),
        (b"RIFF\0\0\0\0WAVE", ("--rate", "8000"), "a file that begins with b'RIFF'"),
        (b"\0" * 99, ("--rate", "8000", "--channels", "0"), "--channels must be at least 1"),
        (b"\0" * 99, ("--rate", "8000", "--channels", "1" + 30 * "0"), "at most 1024"),
        (b"\0" * 99, ("--rate", "1" + 20 * "0"), "500 to 1000000 Hz"),
        (b"\0" * 99, ("--rate", "8000", "--page", "a.html"), "leave out paths, --page"),
        (b"\0" * 99, ("--rate", "8000", "--out", "a.csv"), "--workers and --out"),
        (np.full(9000, np.nan, "<f4").tobytes(), ("--rate", "8000", "--encoding", "f32"), "NaN"),
    ],
)
def test_mistakes_with_pipes_are_named(run, raw, arguments, words):
    out = piped(run, raw, *arguments)
    assert out.returncode == 2
    assert words in out.stderr.decode()
    assert "Traceback" not in out.stderr.decode()


def test_a_standard_input_that_is_closed_is_named(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit):
        cli.main(["score", str(run), "--stdin", "--rate", "8000"])
    assert "nothing is piped" in capsys.readouterr().err


def test_files_say_their_rate_themselves(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["score", str(run), str(tmp_path), "--rate", "8000"])
    assert "--rate is of --stdin" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [0, 10**20, float("nan")])
def test_rates_that_cannot_be_are_named(detector, rate):
    with pytest.raises(ValueError, match="sample_rate must be positive, at most 1000000 Hz"):
        list(detector.score_stream([np.ones(9)], rate))


def test_the_rate_of_the_first_block_is_asked_for(detector):
    with pytest.raises(ValueError, match="comes at 16000 Hz, expected 8000 Hz; give sample_rate"):
        list(detector.score_stream([(np.ones(400), 16000)]))
