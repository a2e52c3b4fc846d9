import errno
import os
import struct
from pathlib import Path

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
    for name in ("b/2.wav", "a/1.FLAC", "a/notes.txt", "a/.hidden.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in audio.find_audio([tmp_path])] == ["1.FLAC", "2.wav"]
    assert audio.find_audio([tmp_path / "a" / "notes.txt"]) == [tmp_path / "a" / "notes.txt"]
    with pytest.raises(ValueError, match="no such file or folder"):
        audio.find_audio([tmp_path / "c"])
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match="no audio files below"):
        audio.find_audio([tmp_path / "d"])


def test_find_audio_follows_each_linked_folder_once(tmp_path):
    top, other = tmp_path / "top", tmp_path / "other"
    for folder in (top / "x.wav", other):
        folder.mkdir(parents=True)
        (folder / "a.wav").touch()
    (top / "again").symlink_to(top / "x.wav")  # reached by its own path as well
    (top / "first").symlink_to(other)
    (top / "second").symlink_to(other)
    (other / "out").symlink_to(tmp_path)  # a loop through a folder above
    (top / "self").symlink_to("self")
    (top / "gone.wav").symlink_to("nowhere")
    (top / "self.wav").symlink_to("self.wav")
    expected = ["first/a.wav", "gone.wav", "self.wav", "x.wav/a.wav"]
    assert audio.find_audio([top]) == [top / name for name in expected]
    assert audio.find_audio([top / "gone.wav", top / "self.wav"]) == [
        top / "gone.wav",
        top / "self.wav",
    ]


def test_folders_that_cannot_be_listed_are_among_the_paths(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    (tmp_path / "good.wav").touch()
    scandir = os.scandir

    def refusing(path):
        if Path(os.fsdecode(path)).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert audio.find_audio([tmp_path]) == [tmp_path / "good.wav", tmp_path / "shut"]
    assert audio.find_audio([tmp_path / "shut"]) == [tmp_path / "shut"]
    with pytest.raises(audio.AudioError, match="found a directory"):
        audio.load(tmp_path / "shut")


def test_a_mixdown_does_not_overflow(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full((10, 2), 3e38), 8000, subtype="FLOAT")
    assert torch.isfinite(audio.load(tmp_path / "a.wav").waveform).all()


KINDS = {"a.wav": 0, "a.flac": 0, "a.aiff": 0, "a.ogg": 1e-6, "a.mp3": 1e-3}
"""Formats, and how far a part may be from the same part of the whole."""


@pytest.mark.parametrize(("name", "tolerance"), KINDS.items())
def test_a_part_is_that_part_of_the_whole(tmp_path, name, tolerance):
    path = tmp_path / name
    wave = 0.1 * np.random.default_rng(0).standard_normal((3 * 8000, 2))
    soundfile.write(path, wave, 8000)
    assert audio.info(path) == (8000, 2, 24000, "")
    whole = audio.load(path)
    assert len(whole.waveform) == 24000
    for start, seconds, first, last in (
        (0.0, 1.0, 0, 8000),
        (1.5, 0.5, 12000, 16000),
        (2.5, 9.0, 20000, 24000),
        (1.0, None, 8000, 24000),
        (0.0, 1e-9, 0, 1),
    ):
        part = audio.load(path, start, seconds)
        assert part[1:] == (8000, 2, "")
        expected = whole.waveform[first:last]
        torch.testing.assert_close(part.waveform, expected, atol=tolerance, rtol=0)
    with pytest.raises(audio.AudioError, match="ends at 3 s, before 3 s"):
        audio.load(path, 3.0)
    for start, seconds in ((-1.0, None), (0.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="expected start >= 0"):
            audio.load(path, start, seconds)


def test_a_part_is_read_without_the_rest(tmp_path):
    """What is broken elsewhere is not found, and not in the way."""
    wave = np.ones(80000)
    wave[40000] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    assert len(audio.load(tmp_path / "a.wav", 6.0).waveform) == 32000
    with pytest.raises(audio.AudioError, match="1 samples are NaN"):
        audio.load(tmp_path / "a.wav", 4.9, 0.2)


def test_info_decodes_nothing_and_fails_as_load_does(tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    assert audio.info(tmp_path / "nan.wav") == (8000, 1, 2, "")
    soundfile.write(tmp_path / "header.wav", np.zeros(0), 8000)
    (tmp_path / "text.wav").write_text("this is not sound")
    for name in ("gone.wav", "header.wav", "text.wav", "."):
        messages = []
        for function in (audio.info, audio.load):
            with pytest.raises(audio.AudioError) as caught:
                function(tmp_path / name)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("kind", "name"), [("WAV", b"data"), ("AIFF", b"SSND"), ("RF64", b"data")]
)
def test_a_file_cut_short_says_so(tmp_path, kind, name):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1000), 8000, subtype="PCM_16", format=kind)
    assert audio.load(path).partial == ""
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    recording = audio.load(path)
    assert len(recording.waveform) == 500
    assert "cut short: its header announces 200" in recording.partial
    assert audio.info(path) == (8000, 1, 500, recording.partial)


def test_a_stream_cut_short_says_so(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    partial = audio.load(path).partial
    assert partial.startswith("cut short: its header announces 16000 samples, ")
    assert audio.load(path, 0.0, 0.1).partial == ""


@pytest.mark.parametrize("order", ["LITTLE", "BIG"])
@pytest.mark.parametrize(
    ("size", "partial"),
    [
        (2000, ""),
        (0, ""),
        (2**31 - 1, ""),
        (0x7FFFF000, ""),
        (2**32 - 1, ""),
        (2**32 - 40, ""),
        (4 * 10**9, "cut short: its header announces 4000000000 bytes of sound, 2000 are there"),
    ],
)
def test_headers_that_lie_are_read_for_what_is_there(tmp_path, size, partial, order):
    path = tmp_path / "a.wav"
    wave = np.random.default_rng(0).integers(-30000, 30000, 1000).astype(np.int16)
    soundfile.write(path, wave, 8000, endian=order)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I" if order == "LITTLE" else ">I", size)
    path.write_bytes(content)
    recording = audio.load(path)
    assert recording.partial == partial
    np.testing.assert_array_equal(recording.waveform.numpy() * 32768, wave)
    assert audio.info(path) == (8000, 1, 1000, partial)


def test_an_empty_data_chunk_before_others_is_no_sound(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), 8000)
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO")
    with pytest.raises(audio.AudioError, match="no samples"):
        audio.load(path)


def test_a_flac_that_promises_too_much_or_nothing_is_read(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(1000), 8000)
    whole = audio.load(path).waveform
    content = bytearray(path.read_bytes())
    field = int.from_bytes(content[18:26], "big") >> 36 << 36  # the last 36 bits are the length
    for frames, partial in ((0, ""), (2**36 - 1, "announces 68719476735 samples, 1000")):
        content[18:26] = (field + frames).to_bytes(8, "big")
        path.write_bytes(content)
        recording = audio.load(path)
        assert torch.equal(recording.waveform, whole)
        assert partial in recording.partial
        assert audio.info(path).frames == frames


def test_a_short_write_is_an_error(tmp_path, monkeypatch):
    whole = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: whole(path, data[:100]))
    with pytest.raises(OSError, match="only 100 of 2044 bytes arrived") as caught:
        audio.write(tmp_path / "a.wav", torch.zeros(1000), 8000)
    assert str(tmp_path / "a.wav") in str(caught.value)
    assert list(tmp_path.iterdir()) == []
