"""Whatever lies in a folder costs one noted row, whatever lies in a run folder one clear line; the
good files beside it are scored.
"""

import csv
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import small_model
from safetensors import safe_open
from safetensors.torch import save_file

from sance_audio import cli

RATE = 16000
NOISE = 0.1 * np.random.default_rng(0).standard_normal(RATE)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def score(run: Path, out: Path, *paths: Path) -> list[dict[str, str]]:
    cli.main(["score", str(run), *map(str, paths), "--out", str(out)])
    assert [p.name for p in out.parent.glob(f"{out.name}*")] == [out.name], "no .part is left"
    return read_rows(out)


def fails(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run a command that must end in one line on standard error and exit status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert "Traceback" not in error
    return error


def wav(samples: np.ndarray = NOISE, subtype: str = "PCM_16") -> bytes:
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, RATE, subtype=subtype, format="WAV")
    return encoded.getvalue()


def announcing(size: int, promise: int | None = None) -> bytes:
    """A WAV whose header announces `size` bytes of sound."""
    content = bytearray(wav())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", size)
    if promise is not None:
        content[4:8] = struct.pack("<I", promise)
    return bytes(content)


def broken(value: float) -> bytes:
    samples = NOISE.copy()
    samples[RATE // 2] = value
    return wav(samples, "FLOAT")


def encoded(name: str, samples: np.ndarray = NOISE, rate: int = RATE, **options: str) -> Callable:
    """A writer of one file through libsndfile."""
    return lambda folder: soundfile.write(folder / name, samples, rate, **options)


def content(name: str, data: bytes) -> Callable:
    return lambda folder: (folder / name).write_bytes(data)


SCORED = {
    "truncated": (content("x.wav", wav()[:10000]), "cut short: its header announces 32000 bytes"),
    "promises 4 GB": (content("x.wav", announcing(4 * 10**9)), "announces 4000000000 bytes"),
    "length unknown, 2^32": (content("x.wav", announcing(2**32 - 1, 2**32 - 1)), ""),
    "length unknown, 2^31": (content("x.wav", announcing(2**31 - 1, 2**31 - 1)), ""),
    "length unknown, 0": (content("x.wav", announcing(0, 0)), ""),
    "constant": (encoded("x.wav", np.full(RATE, 0.25)), "constant"),
    "silence": (encoded("x.wav", np.zeros(RATE)), "silent"),
    "8 channels": (encoded("x.wav", np.stack([NOISE] * 8, 1)), "8 channels mixed down"),
    "96 kHz": (encoded("x.wav", np.repeat(NOISE, 6), 96000), "resampled from 96000 Hz"),
    "float64": (encoded("x.wav", subtype="DOUBLE"), ""),
    "FLAC": (encoded("x.flac"), ""),
    "Ogg Vorbis": (encoded("x.ogg", format="OGG", subtype="VORBIS"), ""),
    "MP3": (encoded("x.mp3", format="MP3", subtype="MPEG_LAYER_III"), ""),
    "capitals": (encoded("X.WAV", format="WAV"), ""),
}

REFUSED = {
    "header only": (content("x.wav", wav(np.zeros(0))), "no samples"),
    "half a header": (content("x.wav", wav()[:30]), "cannot be decoded"),
    "nothing": (content("x.wav", b""), "0 bytes"),
    "text": (content("x.wav", b"this is no sound"), "cannot be decoded"),
    "NaN": (content("x.wav", broken(np.nan)), "1 samples are NaN or infinite"),
    "infinite": (content("x.wav", broken(np.inf)), "1 samples are NaN or infinite"),
    "pipe": (lambda folder: os.mkfifo(folder / "x.wav"), "a device, pipe or socket"),
    "dangling link": (
        lambda folder: (folder / "x.wav").symlink_to("gone.wav"),
        "a symbolic link that leads nowhere",
    ),
    "link to itself": (
        lambda folder: (folder / "x.wav").symlink_to("x.wav"),
        "symbolic links",
    ),
}


@pytest.mark.parametrize(("make", "note"), SCORED.values(), ids=SCORED)
def test_unusual_files_are_scored_and_noted(finished_run, tmp_path, make, note):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    (sounds / "good.wav").write_bytes(wav())
    make(sounds)
    rows = score(finished_run, tmp_path / "scores.csv", sounds)
    assert len(rows) == 2
    for row in rows:
        assert np.isfinite(float(row["energy"]))
        assert 0 < float(row["p_value"]) <= 1
    (row,) = (row for row in rows if not row["path"].endswith("good.wav"))
    assert note in row["notes"]
    if not note:
        assert row["notes"] == ""
        assert float(row["duration_seconds"]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("make", "note"), REFUSED.values(), ids=REFUSED)
def test_unusable_files_cost_one_row(finished_run, tmp_path, capsys, make, note):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    (sounds / "good.wav").write_bytes(wav())
    make(sounds)
    good, bad = score(finished_run, tmp_path / "scores.csv", sounds)
    assert good["energy"]
    assert (bad["energy"], bad["p_value"]) == ("", "")
    assert note in bad["notes"]
    assert bad["path"] in bad["notes"]
    # named itself, beside a good one or alone
    given = score(finished_run, tmp_path / "given.csv", sounds / "x.wav", sounds / "good.wav")
    assert given == [bad, good]
    capsys.readouterr()
    alone = ("score", finished_run, sounds / "x.wav", "--out", tmp_path / "alone.csv")
    assert note in fails(capsys, *alone)
    assert not list(tmp_path.glob("alone*"))


def test_a_folder_named_like_a_file_and_loops_of_links_are_walked_once(finished_run, tmp_path):
    sounds, elsewhere = tmp_path / "sounds", tmp_path / "elsewhere"
    for folder in (sounds / "x.wav", sounds / "deep", elsewhere):
        folder.mkdir(parents=True)
        (folder / "same.wav").write_bytes(wav())
    (sounds / "deep" / "up").symlink_to(sounds)
    (sounds / "a").symlink_to(sounds / "deep")
    (sounds / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(sounds / "linked")
    rows = score(finished_run, tmp_path / "scores.csv", sounds)
    expected = ["deep/same.wav", "linked/same.wav", "x.wav/same.wav"]
    assert [row["path"] for row in rows] == [str(sounds / name) for name in expected]
    assert all(row["energy"] for row in rows)


def test_names_survive_a_round_trip(finished_run, tmp_path):
    folder = tmp_path / "sounds"
    names = [
        "héé 你好.wav",
        "new\nline.wav",
        "carriage\rreturn.wav",
        'quo"te, comma.wav',
        "😀.wav",
    ]
    for sub in ("one", "two"):
        (folder / sub).mkdir(parents=True)
        for name in names:
            (folder / sub / name).write_bytes(wav())
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.wav"), "wb") as file:
        file.write(wav())
    rows = score(finished_run, tmp_path / "scores.csv", folder)
    assert all(row["energy"] for row in rows)
    expected = {str(folder / sub / name) for sub in ("one", "two") for name in names}
    found = [row["path"] for row in rows]
    assert len(found) == len(set(found)) == 2 * len(names) + 1
    assert set(found) - expected == {str(folder / r"caf\udce9.wav")}


def test_a_name_of_two_lines_gives_an_error_of_one(finished_run, tmp_path, capsys):
    bad = tmp_path / "two\nlines.wav"
    arguments = ("score", finished_run, bad, "--out", tmp_path / "scores.csv")
    assert r"two\nlines.wav: no such file" in fails(capsys, *arguments)
    bad.write_text("no sound")
    assert r"two\nlines.wav: cannot be decoded" in fails(capsys, *arguments)


AS_NOBODY = """
import os, sys
from sance_audio import cli
run, good, sounds, out = sys.argv[1:]
cli.main(["score", run, good, "--out", out + ".first.csv"])  # imports what may be closed to nobody
if os.getuid() == 0:
    try:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    except OSError as error:
        print("cannot become nobody:", error)
        sys.exit(77)
cli.main(["score", run, sounds, "--out", out])
"""


def test_what_may_not_be_read_is_noted(finished_run):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        home = Path(name)
        home.chmod(0o777)
        shutil.copytree(finished_run, home / "run")
        sounds = home / "sounds"
        for path in ("good.wav", "shut.wav", "closed/inside.wav"):
            (sounds / path).parent.mkdir(parents=True, exist_ok=True)
            (sounds / path).write_bytes(wav())
        (sounds / "shut.wav").chmod(0)
        (sounds / "closed").chmod(0)
        done, only = (
            subprocess.run(
                [sys.executable, "-c", AS_NOBODY, home / "run", sounds / "good.wav", path, out],
                capture_output=True,
                text=True,
            )
            for path, out in (
                (sounds, home / "scores.csv"),
                (sounds / "closed", home / "none.csv"),
            )
        )
        if done.returncode == 77:
            pytest.skip(done.stdout)
        assert done.returncode == 0, done.stderr
        closed, good, shut = read_rows(home / "scores.csv")
        (sounds / "closed").chmod(0o700)
        assert [p.name for p in home.glob("none*")] == ["none.csv.first.csv"]
    assert good["energy"]
    assert Path(shut["path"]).name == "shut.wav"
    assert "Permission denied" in shut["notes"]
    assert Path(closed["path"]).name == "closed"
    assert "a directory that may not be read" in closed["notes"]
    assert only.returncode == 2
    assert "a directory that may not be read" in only.stderr


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def rewritten(path: Path, change: Callable[[str, dict[str, torch.Tensor]], str]) -> None:
    """Change header and tensors of a safetensors file behind the package's back."""
    with safe_open(path, "pt") as file:
        header = file.metadata()["sance_audio"]
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    header = change(header, tensors)
    save_file(tensors, path, {"sance_audio": header})


def another_version(path: Path) -> None:
    rewritten(path, lambda header, _: header.replace('"format": 1', '"format": 9'))


def nan_weights(path: Path) -> None:
    def change(header: str, tensors: dict[str, torch.Tensor]) -> str:
        tensors[max(tensors)].view(-1)[0] = torch.nan
        return header

    rewritten(path, change)


def moved_weight(path: Path) -> None:
    def change(header: str, tensors: dict[str, torch.Tensor]) -> str:
        tensors[max(tensors)].view(-1)[0] += 0.5
        return header

    rewritten(path, change)


def changed_setting(path: Path) -> None:
    def change(header: str, _: dict[str, torch.Tensor]) -> str:
        changed = header.replace('"cap": 1.0', '"cap": 1.5').replace('"alpha": 0.05', '"alpha": 1')
        assert changed != header
        return changed

    rewritten(path, change)


def flipped(place: float) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 0x04
        path.write_bytes(data)

    return flip


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(share * path.stat().st_size))


DAMAGE = {
    "another version": (another_version, "format 9, this version reads 1"),
    "NaN weights": (nan_weights, "NaN or infinite"),
    "one weight moved": (moved_weight, "do not match the digest"),
    "one setting changed": (changed_setting, "do not match the digest"),
    "bit flipped at the start": (flipped(0.0), "not a readable safetensors file"),
    "bit flipped in a tensor": (flipped(0.9), "do not match the digest"),
    "last bit flipped": (flipped(1.0), "do not match the digest"),
    "cut in half": (cut(0.5), "not a readable safetensors file"),
    "cut to nothing": (cut(0), "not a readable safetensors file"),
    "a text": (lambda path: path.write_text("no weights"), "not a readable safetensors file"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "detector.safetensors"])
@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_weights_are_one_line(run, tmp_path, capsys, damage, message, name):
    (tmp_path / "good.wav").write_bytes(wav())
    damage(run / name)
    out = tmp_path / "scores.csv"
    error = fails(capsys, "score", run, tmp_path / "good.wav", "--out", out)
    assert message in error
    assert name in error
    assert not list(tmp_path.glob("scores*"))
    if name == "model.safetensors":
        assert message in fails(capsys, "info", run)
        assert message in fails(capsys, "generate", run, "--out", tmp_path / "clips")


def test_a_swapped_model_is_refused(run, tmp_path, capsys):
    (tmp_path / "good.wav").write_bytes(wav())
    small_model().save_pretrained(run)
    out = tmp_path / "scores.csv"
    error = fails(capsys, "score", run, tmp_path / "good.wav", "--out", out)
    assert "calibrated with another model" in error
    assert not out.exists()


class Payload:
    """What a pickle runs when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_in_a_run_folder_is_never_run(run, tmp_path, capsys):
    (tmp_path / "good.wav").write_bytes(wav())
    marker = tmp_path / "ran"
    hostile = pickle.dumps(Payload(marker))
    pickle.loads(hostile)
    assert marker.exists(), "the payload works"
    marker.rmdir()
    (run / "state").mkdir(exist_ok=True)
    (run / "state" / "latest.pt").write_bytes(hostile)
    assert score(run, tmp_path / "scores.csv", tmp_path / "good.wav")[0]["energy"]
    cli.main(["page", str(run)])
    cli.main(["info", str(run)])
    cli.main(["generate", str(run), "--num", "1", "--out", str(tmp_path / "clips")])
    assert not marker.exists()
    capsys.readouterr()
    # weights that are a pickle are no safetensors file
    (run / "model.safetensors").write_bytes(hostile)
    assert "not a readable safetensors file" in fails(capsys, "info", run)
    assert not marker.exists()
