"""Restored files: `sance-audio restore`, and tracks that keep every sample they do not change."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import small_model

from sance_audio import cli
from sance_audio.holes import FADE
from sance_audio.inversion import GriffinLim
from sance_audio.tracks import Track, read_track, write_track

RATE = 4000
START, END = 0.10, 0.14
HOLE = ("--from", START, "--to", END)
INTEGERS = {"PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = small_model()
    g = torch.Generator().manual_seed(0)
    model.features.fit(model.features.log_mel(0.05 * torch.randn(8, 960, generator=g)))
    model.save_pretrained(folder)
    return folder


def noise(channels: int, rate: int = RATE, seconds: float = 0.3) -> np.ndarray:
    """`(N, channels)`."""
    g = np.random.default_rng(0)
    return (0.05 * g.standard_normal((round(seconds * rate), channels))).clip(-0.9, 0.9)


def restore(run: Path, *arguments: object) -> None:
    cli.main(["restore", str(run), *map(str, arguments)])


def fails(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(["restore", *map(str, arguments)])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "Traceback" not in error
    return error


def far(n: int, rate: int) -> np.ndarray:
    t = np.arange(n) / rate
    return (t < START - FADE - 0.5 / rate) | (t >= END + FADE + 0.5 / rate)


def check_kept(before: Path, after: Path) -> None:
    """Rate, channels and sample format are as they were, and so are all samples that are far."""
    a, b = soundfile.info(before), soundfile.info(after)
    assert (a.samplerate, a.channels, a.frames) == (b.samplerate, b.channels, b.frames)
    assert b.format in ("WAV", "WAVEX")
    if a.subtype in (*INTEGERS, "FLOAT", "DOUBLE"):
        assert b.subtype == a.subtype
    dtype = {"FLOAT": "float32", "DOUBLE": "float64"}.get(b.subtype, "int32")
    x, y = (soundfile.read(path, dtype=dtype, always_2d=True)[0] for path in (before, after))
    same = far(a.frames, a.samplerate)
    assert np.array_equal(x[same], y[same])
    for channel in range(a.channels):
        assert not np.array_equal(x[:, channel], y[:, channel])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", [*INTEGERS, "FLOAT", "DOUBLE"])
def test_a_wav_keeps_its_format_and_every_far_sample(run, tmp_path, subtype, channels):
    for rate in (RATE, 11025):
        before, after = tmp_path / "in.wav", tmp_path / "out.wav"
        soundfile.write(before, noise(channels, rate), rate, subtype=subtype)
        restore(run, before, after, *HOLE)
        check_kept(before, after)


def test_the_check_catches_a_sample_of_the_last_bit_and_another_format(run, tmp_path):
    before, after = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(before, noise(1), RATE, subtype="PCM_24")
    restore(run, before, after, *HOLE)
    track = read_track(after)
    track.samples[20, 0] += 2**8
    write_track(after, track)
    with pytest.raises(AssertionError):
        check_kept(before, after)
    restore(run, before, after, *HOLE)
    samples, _ = soundfile.read(after)
    soundfile.write(after, samples, RATE, subtype="PCM_16")
    with pytest.raises(AssertionError):
        check_kept(before, after)


def test_other_formats_become_wavs(run, tmp_path):
    for name, subtype in (("a.flac", "PCM_24"), ("b.flac", "PCM_16"), ("c.aiff", "PCM_S8")):
        before, after = tmp_path / name, tmp_path / "out.wav"
        soundfile.write(before, noise(2), RATE, subtype=subtype)
        restore(run, before, after, *HOLE)
        check_kept(before, after)
        assert soundfile.info(after).subtype == {"PCM_S8": "PCM_U8"}.get(subtype, subtype)
    lossy = tmp_path / "d.ogg"
    soundfile.write(lossy, noise(1, 8000), 8000)
    restore(run, lossy, tmp_path / "out.wav", *HOLE)
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.subtype, info.samplerate) == ("FLOAT", 8000)
    x, y = (soundfile.read(p, dtype="float32")[0] for p in (lossy, tmp_path / "out.wav"))
    assert np.array_equal(x[far(len(x), 8000)], y[far(len(x), 8000)])


def test_the_command_agrees_with_the_python_interface_and_with_itself(run, tmp_path, capsys):
    from sance_audio import AudioEBM

    before = tmp_path / "in.wav"
    soundfile.write(before, noise(1)[:, 0], RATE, subtype="FLOAT")
    for name, options in (("a", ()), ("b", ()), ("c", ("--seed", 1)), ("d", ("--draw",))):
        restore(run, before, tmp_path / f"{name}.wav", *HOLE, *options)
    restore(run, before, tmp_path / "e.wav", *HOLE, "--label", "b", "--samples", 2)
    a, b, c, d, e = (soundfile.read(tmp_path / f"{n}.wav", dtype="float32")[0] for n in "abcde")
    assert np.array_equal(a, b)
    for other in (c, d, e):
        assert not np.array_equal(a, other)
    wave = torch.from_numpy(soundfile.read(before, dtype="float32")[0])
    again = AudioEBM.from_pretrained(run).restore(wave, RATE, START, END)
    assert np.array_equal(again.numpy(), a)
    assert "0.090 to 0.150 s" in capsys.readouterr().out


def test_another_process_writes_the_same_bytes(run, tmp_path):
    """Whatever the number of threads that the environment asks for."""
    before, written = tmp_path / "in.wav", []
    soundfile.write(before, noise(2), RATE)
    for threads in ("1", "2"):
        out = tmp_path / f"{threads}.wav"
        subprocess.run(
            [sys.executable, "-m", "sance_audio", "restore", run, before, out, *map(str, HOLE)],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        )
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_a_file_may_be_restored_in_place_and_broken_samples_mended(run, tmp_path):
    path, samples = tmp_path / "in.wav", noise(1)[:, 0]
    samples[round(START * RATE) : round(END * RATE)] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    restore(run, path, path, *HOLE)
    mended, _ = soundfile.read(path)
    assert np.isfinite(mended).all()
    same = far(len(samples), RATE)
    assert np.array_equal(mended[same], samples.astype(np.float32)[same])


def test_a_filling_that_is_scaled_is_said(run, tmp_path, capsys, monkeypatch):
    """So as not to pass full scale, or the peak of a recording that does."""
    before, after = tmp_path / "in.wav", tmp_path / "out.wav"
    fill = GriffinLim.fill
    monkeypatch.setattr(GriffinLim, "fill", lambda *a: 30 * fill(*a))
    for level, peak in ((1, 0.999), (2**15, None)):
        samples = level * noise(1)
        soundfile.write(before, samples, RATE, subtype="FLOAT")
        restore(run, before, after, *HOLE)
        assert "channel 1: filling scaled by 0." in capsys.readouterr().out
        check_kept(before, after)
        hole = slice(round(START * RATE), round(END * RATE))
        inside = soundfile.read(after)[0][hole]
        peak = peak or np.abs(np.delete(samples, hole)).max()
        assert np.abs(inside).max() == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize(("level", "subtype"), [(2.0**15, "FLOAT"), (1e300, "DOUBLE")])
def test_files_beyond_full_scale_keep_their_level(run, tmp_path, capsys, level, subtype):
    before, after = tmp_path / "in.wav", tmp_path / "out.wav"
    samples = level * noise(1)[:, 0]
    soundfile.write(before, samples, RATE, subtype=subtype)
    restore(run, before, after, *HOLE)
    check_kept(before, after)
    mended, _ = soundfile.read(after)
    inside = mended[round(START * RATE) : round(END * RATE)]
    assert 0.2 < (inside / level).std() / (samples / level).std() < 5
    assert "scaled" not in capsys.readouterr().out


def test_a_silent_channel_is_filled_with_silence(run, tmp_path, capsys):
    before, after = tmp_path / "in.wav", tmp_path / "out.wav"
    samples = noise(2)
    samples[:, 1] = 0
    soundfile.write(before, samples, RATE)
    restore(run, before, after, *HOLE)
    mended, _ = soundfile.read(after)
    assert (mended[:, 1] == 0).all()
    assert mended[round(START * RATE) : round(END * RATE), 0].std() > 0.01
    samples[:] = 0
    soundfile.write(before, samples, RATE)
    assert "all is silent" in fails(capsys, run, before, after, *HOLE)


PEAK_MEMORY = """
import sys, resource
from sance_audio import cli

def peak(*arguments):
    cli.main(["restore", *arguments])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

run, short, long, out, *hole = sys.argv[1:]
before = peak(run, short, out, *hole)
print(peak(run, long, out, *hole) - before, file=sys.stderr)
"""


def test_a_long_file_is_held_in_few_copies(run, tmp_path):
    """At its own 16 bits; a copy in float64 would be four times the file already."""
    short, long, out = (tmp_path / f"{name}.wav" for name in ("short", "long", "out"))
    soundfile.write(short, noise(2), RATE)
    soundfile.write(long, np.tile(noise(2), (5000, 1)), RATE)
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, run, short, long, out, *map(str, HOLE)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stderr) * 1024 < 5 * long.stat().st_size


def test_mistakes_are_one_line(run, tmp_path, capsys):
    path, out = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(path, noise(1), RATE)
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    for arguments, message in (
        ((tmp_path / "nowhere", path, out, *HOLE), "no such run folder"),
        ((run, tmp_path / "gone.wav", out, *HOLE), "nothing there"),
        ((run, text, out, *HOLE), "cannot be decoded"),
        ((run, path, tmp_path / "out.flac", *HOLE), "ends in .wav"),
        ((run, path, out, "--from", 0.2, "--to", 0.1), "must come before its end"),
        ((run, path, out, "--from", 0.1, "--to", 9), "lasts from 0 to 0.3 s"),
        ((run, path, out, "--from", 0.02, "--to", 0.28), "the model's window is 0.24 s long"),
        ((run, path, out, *HOLE, "--label", "gong"), "the model knows a, b, c"),
        ((run, path, out, *HOLE, "--samples", 0), "--samples must be at least 1"),
        ((run, path, out, *HOLE, "--seed", 10**23), "--seed must lie between -2^63 and 2^64 - 1"),
    ):
        assert message in fails(capsys, *arguments)
    assert not out.exists(), "no partial output"


@pytest.mark.parametrize(("subtype", "bits"), INTEGERS.items())
def test_what_is_replaced_is_rounded_to_the_nearest_and_never_wraps(tmp_path, subtype, bits):
    track = Track(np.zeros((9, 1), np.int32), RATE, subtype)
    new = torch.tensor([[0.0, 0.3, -0.3, 1.0, -1.0, 2.0, -2.0, 0.0, 0.0]], dtype=torch.float64)
    write_track(tmp_path / "a.wav", track.replaced(new[:, :7], 0))
    found, _ = soundfile.read(tmp_path / "a.wav")
    assert np.abs(found[:3] - new.numpy()[0, :3]).max() <= 0.5 / 2 ** (bits - 1) + 1e-12
    assert found[3:7].tolist() == [1 - 2.0 ** (1 - bits), -1, 1 - 2.0 ** (1 - bits), -1]
