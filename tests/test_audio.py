import numpy as np
import pytest
import soundfile
import torch

from sance_audio import audio


def test_write_and_read_are_16_bit_and_mono(tmp_path):
    wave = 0.5 * torch.sin(torch.arange(1000) / 10)
    assert audio.write(tmp_path / "a.wav", wave, 8000) == 1.0
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.subtype, info.channels, info.samplerate) == ("PCM_16", 1, 8000)
    back, rate = audio.read(tmp_path / "a.wav")
    assert rate == 8000
    torch.testing.assert_close(back, wave, atol=1 / 32768, rtol=0)


def test_loud_clips_are_scaled_down_never_clipped_never_up(tmp_path):
    wave = torch.tensor([0.0, 2.0, -1.0])
    gain = audio.write(tmp_path / "a.wav", wave, 8000)
    back, _ = audio.read(tmp_path / "a.wav")
    assert gain == pytest.approx(audio.PEAK / 2)
    torch.testing.assert_close(back, gain * wave, atol=1 / 32768, rtol=0)
    assert audio.write(tmp_path / "b.wav", wave / 100, 8000) == 1.0


@pytest.mark.parametrize(
    "bad", [torch.tensor([torch.nan, 0]), torch.tensor([torch.inf]), torch.zeros(0)]
)
def test_nothing_broken_reaches_a_wav(tmp_path, bad):
    with pytest.raises(ValueError, match="refusing to write"):
        audio.write(tmp_path / "a.wav", bad, 8000)
    assert list(tmp_path.iterdir()) == []


def test_stereo_is_averaged_and_rates_are_converted(tmp_path):
    t = np.arange(44100) / 44100
    tone = np.sin(2 * np.pi * 440 * t)
    soundfile.write(tmp_path / "a.flac", np.stack([tone, 0 * tone], 1), 44100)
    recording = audio.load(tmp_path / "a.flac")
    assert (recording.channels, recording.sample_rate) == (2, 44100)
    wave, rate = audio.read(tmp_path / "a.flac", 8000)
    assert rate == 8000
    assert abs(len(wave) - 8000) <= 1
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(len(wave)) / 8000)
    assert (wave - expected)[200:-200].abs().max() < 1e-3


def test_what_cannot_be_read_is_one_clear_error(tmp_path):
    cases = {
        "missing.wav": "nothing there",
        "folder.wav": "a directory",
        "empty.wav": "0 bytes",
        "text.wav": "cannot be decoded",
        "header.wav": "no samples",
        "nan.wav": "NaN or infinite",
    }
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is not sound")
    soundfile.write(tmp_path / "header.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    for name, reason in cases.items():
        with pytest.raises(audio.AudioError, match=reason) as caught:
            audio.load(tmp_path / name)
        assert name in str(caught.value)


def test_windows():
    clip = torch.arange(1.0, 11.0)
    assert audio.windows(clip, 4).tolist() == [
        [1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8], [7, 8, 9, 10]
    ]  # fmt: skip
    assert audio.windows(clip, 8).tolist() == [clip[:8].tolist(), clip[2:].tolist()]
    assert audio.windows(clip[:2], 5).tolist() == [[0, 1, 2, 0, 0]]
    assert audio.windows(torch.tensor([0.1]), 3, peak=0.5).tolist() == [[0, 0.5, 0]]
    assert audio.windows(torch.zeros(5), 3, peak=0.5).abs().max() == 0


def test_find_audio(tmp_path):
    for name in ("b/2.wav", "a/1.flac", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in audio.find_audio([tmp_path])] == ["1.flac", "2.wav"]
    assert audio.find_audio([tmp_path / "a" / "notes.txt"]) == [tmp_path / "a" / "notes.txt"]
    with pytest.raises(ValueError, match="no such file or folder"):
        audio.find_audio([tmp_path / "c"])
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match="no audio files below"):
        audio.find_audio([tmp_path / "d"])


def test_a_mixdown_does_not_overflow(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full((10, 2), 3e38), 8000, subtype="FLOAT")
    assert torch.isfinite(audio.load(tmp_path / "a.wav").waveform).all()
