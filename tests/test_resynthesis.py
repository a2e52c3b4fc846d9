"""`sance-audio invert`: a recording to mels and back, through the command itself."""

import math
import re

import numpy as np
import pytest
import soundfile
import torch
from conftest import real_data

from sance_audio import GriffinLim, cli, resynthesis
from sance_audio.inversion import mel_residual, spectral_convergence


def sound(n: int = 12_345, channels: int = 1, rate: int = 16_000) -> np.ndarray:
    t = np.arange(n)[:, None] / rate
    tones = 0.3 * np.sin(2 * np.pi * (300 + 200 * np.arange(channels)) * t * (1 + t / 2))
    return tones * (1 - np.exp(-20 * t))


def invert(capsys, *arguments) -> str:
    cli.main(["invert", *map(str, arguments)])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "subtype", "channels", "rate"),
    [
        ("in.wav", "PCM_16", 1, 16_000),
        ("in.wav", "PCM_24", 2, 44_100),
        ("in.wav", "FLOAT", 1, 8_000),
        ("in.flac", "PCM_16", 2, 22_050),
    ],
)
def test_what_comes_back_is_a_recording_of_the_same_kind(
    tmp_path, capsys, name, subtype, channels, rate
):
    given, out = tmp_path / name, tmp_path / "out.wav"
    soundfile.write(given, sound(channels=channels, rate=rate), rate, subtype=subtype)
    said = invert(capsys, given, out)
    x, y = soundfile.read(given, always_2d=True)[0], soundfile.read(out, always_2d=True)[0]
    found = soundfile.info(out)
    assert (found.samplerate, found.subtype, found.frames) == (rate, subtype, len(x))
    assert x.shape == y.shape
    level = 20 * np.log10(y.std(0) / x.std(0))
    assert np.abs(level).max() < 0.5, "dB"
    assert said.count("mel residual") == channels
    assert "real-time factor" in said


def test_the_figures_are_those_of_the_files(tmp_path, capsys):
    given, out = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(given, sound(16_384), 16_000, subtype="FLOAT")
    said = invert(capsys, given, out, "--n-mels", 64, "--quality", "fast", "--seed", 3)
    f = resynthesis.analysis(16_000, 64)
    x, y = (torch.from_numpy(soundfile.read(p, dtype="float32")[0])[None] for p in (given, out))
    residual, convergence = mel_residual(f, f.mel(x), y), spectral_convergence(f, x, y)
    want = rf"mel residual {float(residual):.2f} dB, spectral convergence {float(convergence):.3f}"
    assert re.search(want, said), (want, said)
    s, s_again = f.stft(x).abs(), f.stft(y).abs()
    torch.testing.assert_close(convergence, ((s_again - s).norm() / s.norm())[None])


def test_more_iterations_leave_less_of_the_mel(tmp_path, capsys):
    soundfile.write(tmp_path / "in.wav", sound(), 16_000)
    said = [
        invert(capsys, tmp_path / "in.wav", tmp_path / "out.wav", "--quality", quality)
        for quality in ("fast", "default", "best")
    ]
    residuals = [float(re.search(r"residual ([\d.]+)", text)[1]) for text in said]
    assert residuals[0] > residuals[1] > residuals[2]


@pytest.mark.parametrize("n", [1, 5, 255, 256, 1000])
def test_any_length_comes_back(tmp_path, capsys, n):
    soundfile.write(tmp_path / "in.wav", sound(n), 16_000)
    invert(capsys, tmp_path / "in.wav", tmp_path / "out.wav")
    assert soundfile.info(tmp_path / "out.wav").frames == n


def test_silence_and_full_scale_are_kept(tmp_path, capsys):
    soundfile.write(tmp_path / "in.wav", np.zeros(4000), 16_000)
    assert "residual 0.00 dB" in invert(capsys, tmp_path / "in.wav", tmp_path / "out.wav")
    assert not soundfile.read(tmp_path / "out.wav")[0].any()
    square = np.sign(sound())[:, 0]
    soundfile.write(tmp_path / "loud.wav", 0.99 * square, 16_000)
    said = invert(capsys, tmp_path / "loud.wav", tmp_path / "out.wav")
    assert "scaled by" in said
    assert np.abs(soundfile.read(tmp_path / "out.wav")[0]).max() <= 0.999


def test_parts_of_a_long_recording_are_its_frames():
    f = resynthesis.analysis(16_000, 40)
    x = torch.randn(2, 70_123, generator=torch.Generator().manual_seed(0))
    whole = f.mel(x)
    for block in (7, 64, 1000):
        parts = dict(enumerate(f.mel_blocks(x, block)))
        assert [p.start for p, _ in parts.values()] == list(range(0, whole.shape[2], block))
        again = torch.cat([part for _, part in parts.values()], 2)
        torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-5)


def test_mistakes_are_one_line(tmp_path, capsys):
    good = tmp_path / "in.wav"
    soundfile.write(good, sound(), 16_000)
    bad = tmp_path / "nan.wav"
    soundfile.write(bad, np.array([0.1, math.nan, 0.2]), 16_000, subtype="FLOAT")
    out = tmp_path / "out.wav"
    for arguments, expected in (
        ([good, tmp_path / "out.mp3"], "a WAV is written"),
        ([bad, out], "nan.wav: the recording holds NaN"),
        ([tmp_path / "none.wav", out], "none.wav"),
        ([good, out, "--n-iter", 0], "n_iter must be at least 1, found 0"),
        ([good, out, "--n-iter", 3, "--quality", "fast"], "not both"),
        ([good, out, "--n-mels", 2000], "contain no frequency bin"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["invert", *map(str, arguments)])
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert expected in said, said
        assert said.count("\n") == 1
        assert not out.exists()


def test_real_speech_keeps_its_level_and_its_words(tmp_path, capsys):
    folder = real_data("fsdd") / "recordings"
    for name in ("7_jackson_3.wav", "0_theo_2.wav", "4_nicolas_1.wav"):
        said = invert(capsys, folder / name, tmp_path / name, "--n-mels", 64)
        x, y = (soundfile.read(p)[0] for p in (folder / name, tmp_path / name))
        assert abs(20 * math.log10(y.std() / x.std())) < 0.3
        assert float(re.search(r"residual ([\d.]+)", said)[1]) < 1


def test_the_same_seed_is_the_same_sound():
    f = resynthesis.analysis(16_000)
    x = torch.from_numpy(sound(channels=2)).T.float()
    runs = [
        resynthesis.resynthesise(f, GriffinLim(f, 4), x, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0].waveform, runs[1].waveform)
    assert not torch.allclose(runs[0].waveform, runs[2].waveform, atol=1e-3)
