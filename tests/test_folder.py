"""Any folder: labels, splits, choices; from twelve clips to a hundred thousand."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, real_data

from sance_audio import cli
from sance_audio.datasets import folder
from sance_audio.options import parse
from sance_audio.recipe import load_recipe


def write(path: Path, seconds: float = 0.3, rate: int = 8000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *path.name.encode()])
    soundfile.write(path, 0.1 * rng.standard_normal(max(1, round(seconds * rate))), rate)
    return path


def splits(corpus):
    return {s: [c.name for c in corpus.split(s)] for s in ("train", "valid", "test")}


def test_labels_are_the_folders_of_the_first_level(tmp_path):
    for i in range(10):
        write(tmp_path / "dogs" / "deep" / f"{i}.wav")
        write(tmp_path / "cats" / f"{i}.wav", seed=1)
    for i in range(3):
        write(tmp_path / "few" / f"{i}.wav", seed=2)
    write(tmp_path / "top.wav")
    corpus, survey = folder.prepare(tmp_path)
    assert corpus.labels == ("cats", "dogs")
    assert {c.label for c in corpus.clips} == {"cats", "dogs"}
    assert len(corpus.problems) == 4, corpus.problems
    assert sum("class 'few' has 3 recordings" in problem for problem in corpus.problems) == 3
    assert not survey.cut_in_time
    for split in ("train", "valid", "test"):
        assert {c.label for c in corpus.split(split)} == {"cats", "dogs"}
    assert len({c.name for c in corpus.clips}) == 20, "two folders hold files of one name"


@pytest.mark.parametrize("other", ["DOGS", "dogs ", "Dogs"])
def test_a_label_in_two_spellings_is_refused(tmp_path, other):
    for i in range(7):
        write(tmp_path / "dogs" / f"{i}.wav")
        write(tmp_path / "cats" / f"{i}.wav", seed=1)
    write(tmp_path / other / "1.wav", seed=2)  # few, which would be left out in silence
    with pytest.raises(ValueError, match="expected each label in one spelling") as caught:
        folder.prepare(tmp_path)
    assert f"{other!r} (1 clips)" in str(caught.value)
    assert "'dogs' (7 clips)" in str(caught.value)
    (tmp_path / other).rename(tmp_path / "-dogs")
    folder.prepare(tmp_path)  # names that differ in more than letters' case and spaces


@pytest.mark.parametrize("layout", ["flat", "one folder", "one large"])
def test_without_two_classes_there_are_no_labels(tmp_path, layout):
    for i in range(12):
        write(tmp_path / ("" if layout == "flat" else "a") / f"{i}.wav")
    if layout == "one large":
        write(tmp_path / "b" / "13.wav")
    corpus, _ = folder.prepare(tmp_path)
    assert corpus.labels == ()
    assert corpus.problems == [], "nothing is left out"
    assert len(corpus.clips) == 12 + (layout == "one large")
    assert set(corpus.index(corpus.clips)) == {0}


@pytest.mark.parametrize(
    ("n", "sizes"), [(8, (3, 3, 2)), (12, (7, 3, 2)), (100, (60, 25, 15)), (400, (280, 60, 60))]
)
def test_splits_hold_out_files_and_leave_enough_to_calibrate(tmp_path, n, sizes):
    for i in range(n):
        write(tmp_path / f"{i}.wav", 0.02)
    corpus, _ = folder.prepare(tmp_path)
    found = splits(corpus)
    assert tuple(len(found[s]) for s in ("train", "valid", "test")) == sizes
    assert splits(folder.prepare(tmp_path)[0]) == found, "the same every time"
    assert splits(folder.prepare(tmp_path, seed=1)[0]) != found
    assert sorted(name for names in found.values() for name in names) == sorted(
        f"{i}.wav" for i in range(n)
    )


def test_one_long_recording_is_cut_in_time(tmp_path):
    write(tmp_path / "long.wav", 60)
    corpus, survey = folder.prepare(tmp_path)
    assert survey.cut_in_time
    ends = {s: [c.source.start for c in corpus.split(s)] for s in ("train", "valid", "test")}
    assert max(ends["train"]) < min(ends["valid"]) <= max(ends["valid"]) < min(ends["test"])
    assert len(corpus.clips) == 40
    pieces = [c.source.load().waveform for c in corpus.clips]
    assert all(len(p) == 1.5 * 8000 for p in pieces)


def test_what_is_no_folder_of_recordings(tmp_path):
    with pytest.raises(ValueError, match="name the folder"):
        folder.prepare(None)
    with pytest.raises(ValueError, match="found no folder"):
        folder.prepare(tmp_path / "gone")
    with pytest.raises(ValueError, match="no audio files"):
        folder.prepare(tmp_path)
    write(tmp_path / "a.wav", 3)
    with pytest.raises(ValueError, match=r"1 recordings of 3\.0 s in all are too few"):
        folder.prepare(tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.wav").write_text(f"{name} is no sound")
    with pytest.raises(ValueError, match="none of 3 files can be used"):
        folder.prepare(tmp_path)


def test_what_is_passed_over_is_said(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.wav")
    shutil.copy(tmp_path / "3.wav", tmp_path / "again.wav")
    (tmp_path / "song.m4a").touch()
    write(tmp_path / ".trash" / "old.wav")
    write(tmp_path / "runs" / "mine" / "clips" / "0000.wav")
    (tmp_path / "runs" / "mine" / "config.json").write_text('{"recipe": "folder"}')
    unknown = write(tmp_path / "pipe.flac", 0.5)
    content = bytearray(unknown.read_bytes())
    content[21] &= 0xF0  # the header does not say how many samples there are
    content[22:26] = bytes(4)
    unknown.write_bytes(content[: len(content) // 2])  # and it is cut short
    corpus, _ = folder.prepare(tmp_path)
    assert len(corpus.clips) == 10 + ("pipe.flac" in {c.name for c in corpus.clips})
    said = " | ".join(corpus.problems)
    for words in ("again.wav: the same file as 3.wav", "song.m4a: cannot be decoded here"):
        assert words in said
    assert "mine: the folder of a run" in said
    assert ("pipe.flac" in said) != ("pipe.flac" in {c.name for c in corpus.clips})
    again, _ = folder.prepare(tmp_path)
    assert splits(again) == splits(corpus)


def test_a_folder_cut_in_time_says_what_is_too_short(tmp_path):
    write(tmp_path / "long.wav", 60)
    write(tmp_path / "short.wav", 1)
    corpus, _ = folder.prepare(tmp_path)
    assert {c.source.path.name for c in corpus.clips} == {"long.wav"}
    assert corpus.problems == ["short.wav: 1.0 s are too short to be cut in time"]


def test_names_that_no_screen_or_file_takes(tmp_path):
    """Bytes that are no text, a newline, a colour code, a path longer than a name may be."""
    data = tmp_path / "data"
    for label in (b"caf\xe9", b"a\x1b[31m\nb", 200 * b"x"):
        for i in range(8):
            folder_of = os.path.join(os.fsencode(data), label, 50 * b"deep")
            os.makedirs(folder_of, exist_ok=True)
            good = write(tmp_path / f"{i}.wav", 0.2, seed=len(label))
            os.rename(good, os.path.join(folder_of, b"%d\xff.wav" % i))
    results = run_recipe(data, tmp_path / "run", "--preset", "smoke")
    assert results["corpus"]["left_out"] == []
    assert len(results["evaluation"]["table"]["ours"]["seen_as"]) == 3
    for name in results["evaluation"]["table"]["ours"]["seen_as"]:
        name.encode("utf-8")
        assert "\n" not in name
    assert (tmp_path / "run" / "index.html").is_file()


RECIPE = load_recipe("folder")


def chosen(tmp_path, rates, seconds, **options):
    survey = folder.Survey(np.array(rates), np.array(seconds), False)
    choices = RECIPE.Choices(replace(RECIPE.AUTO, run=tmp_path, **options))
    features = RECIPE.choose_features(choices, survey)
    return features, choices


@pytest.mark.parametrize(
    ("rates", "seconds", "rate", "hop", "window"),
    [
        ([44100] * 10, [5.0] * 10, 16000, 256, 1.0),
        ([8000] * 10, [0.7] * 10, 8000, 128, 0.75),
        ([16000] * 10, [0.5] * 10, 16000, 128, 0.5),
        ([11025] * 5 + [48000] * 5, [60.0] * 10, 11025, 128, 1.1),
        ([48000] * 95 + [8000] * 5, [1.9] * 100, 16000, 256, 2.0),
        ([1000] * 10, [30.0] * 10, 1000, 16, 1.0),
    ],
)
def test_rate_and_window_come_from_the_files(tmp_path, rates, seconds, rate, hop, window):
    features, choices = chosen(tmp_path, rates, seconds)
    assert (features.sample_rate, features.hop_length) == (rate, hop)
    found = features.length(choices.options.frames) / rate
    assert found == pytest.approx(window, rel=0.15)
    assert choices.options.frames % 16 == 0
    assert str(rate) in choices.reasons[0]
    assert "window of" in choices.reasons[1]


def test_what_the_user_names_stays(tmp_path):
    features, choices = chosen(
        tmp_path, [44100] * 9, [5.0] * 9, sample_rate=22050, window=0.5, n_mels=40
    )
    assert (features.sample_rate, features.n_mels) == (22050, 40)
    assert "as you asked" in choices.reasons[0]
    _, choices = chosen(tmp_path, [8000] * 9, [0.5] * 9, frames=96)
    assert choices.options.frames == 96
    assert "but frames 96, as you asked" in choices.reasons[1]


def rows_of(n: int):
    from sance_audio.preparation import Material

    y = {"train": torch.zeros(n, dtype=torch.long)}
    return Material({"train": []}, {}, {}, y, 1, {})


@pytest.mark.parametrize(
    ("rows", "classes", "components", "per", "steps", "network"),
    [(100, 1, 1, 32, 300, "smoke"), (1200, 1, 12, 2, 1000, "cpu"), (6000, 10, 4, 1, 3000, "cpu")],
)
def test_the_model_comes_from_the_number_of_windows(
    tmp_path, rows, classes, components, per, steps, network
):
    choices = RECIPE.Choices(replace(RECIPE.AUTO, run=tmp_path))
    RECIPE.choose_model(choices, rows_of(rows), classes, gpu=False)
    found = choices.options
    assert (found.components, found.network) == (components, network)
    assert (found.train.per_component, found.train.steps) == (per, steps)
    assert any("TOO FEW" in reason for reason in choices.reasons) == (rows < 200)


def test_a_default_that_the_user_names_stays_too(tmp_path):
    arguments = ["--network", "cpu", "--components=3", "--train.steps", "4000"]
    options = parse(RECIPE.PRESETS, "", ["--run", str(tmp_path), *arguments])
    choices = RECIPE.Choices(options)
    RECIPE.choose_model(choices, rows_of(100), 1, gpu=False)
    assert (choices.options.network, choices.options.components) == ("cpu", 3)
    assert choices.options.train.steps == 4000


@pytest.mark.parametrize(
    ("option", "value"), [("sample-rate", -5), ("window", 0), ("n-mels", 8), ("windows", 0)]
)
def test_impossible_choices_are_one_line(tmp_path, capsys, option, value):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "folder", "--data", str(tmp_path), f"--{option}", str(value)])
    assert caught.value.code == 2
    printed = " ".join("".join(capsys.readouterr()).split())
    assert f"--{option} {value}" in printed


def run_recipe(data: Path, run: Path, *more: str) -> dict:
    cli.main(["train", "folder", "--data", str(data), "--run", str(run), *more])
    return json.loads((run / "results.json").read_text())


SHORT = ("--train.steps", "4", "--train.langevin-steps", "2", "--annealing", "4", "--evaluate")
SHORT = (*SHORT, "12", "--clips", "4", "--generation-steps", "4", "--classifier-epochs", "1")


def test_twelve_clips_are_too_few_and_still_run(tmp_path, capsys):
    data = tmp_path / "data"
    for i in range(12):
        write(data / f"{i}.wav", 0.4)
    results = run_recipe(data, tmp_path / "run", *SHORT)
    said = capsys.readouterr().out
    assert "TOO FEW: 7 windows of 7 recordings" in said
    assert "chosen: 8000 Hz" in said
    assert "but steps 4, as you asked" in said
    assert results["choices"]
    assert results["evaluation"]["headline"] == "kid"
    assert "calibrate false-alarm rates of 0.50 and more" in results["anomalies"]["note"]
    assert len(list((tmp_path / "run" / "clips").glob("*.wav"))) == 4
    cli.main(["score", str(tmp_path / "run"), str(data), "--out", str(tmp_path / "scores.csv")])
    assert "12 files scored" in capsys.readouterr().out
    cli.main(["evaluate", str(tmp_path / "run"), "--num", "10"])
    assert "reference only" in capsys.readouterr().out


def test_real_sounds_of_ten_kinds(tmp_path):
    """ESC-10 as it lies: one folder of 400 Ogg files, 44.1 kHz, five seconds."""
    results = run_recipe(real_data("esc10") / "audio", tmp_path / "run", "--preset", "smoke")
    assert results["corpus"]["clips"] == {"train": 280, "valid": 60, "test": 60}
    assert results["corpus"]["left_out"] == []
    assert results["corpus"]["resampled"] == 400
    assert results["evaluation"]["table"]["ours"]["accuracy"] is None
    assert (tmp_path / "run" / "index.html").is_file()


def test_a_folder_that_grew_is_another_run(tmp_path, capsys):
    data = tmp_path / "data"
    for i in range(30):
        write(data / f"{i}.wav", 0.3)
    run_recipe(data, tmp_path / "run", "--preset", "smoke")
    write(data / "new.wav", 0.3)
    run = str(tmp_path / "run")
    train = ["train", "folder", "--data", str(data), "--run", run, "--preset", "smoke"]
    for command in (train, ["evaluate", run]):
        with pytest.raises(SystemExit) as caught:
            cli.main(command)
        assert caught.value.code == 2
        assert "not the corpus that" in capsys.readouterr().err


MANY = """
import json, resource, sys
from sance_audio import cli
cli.main(["train", "folder", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MiB")
"""


def many(tmp_path: Path, n: int) -> tuple[dict, int]:
    """A run over n short files of a hundred sounds, each a little different; and its memory."""
    rng = np.random.default_rng(0)
    for i in range(n):
        path = tmp_path / "data" / f"{i // 1000:03d}" / f"{i:06d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        t = np.arange(2000) / 8000
        wave = np.sin(2 * np.pi * (100 + 20 * (i % 100)) * t) + 0.1 * rng.standard_normal(2000)
        soundfile.write(path, 0.3 * wave, 8000)
    (tmp_path / "all").mkdir()
    os.rename(tmp_path / "data", tmp_path / "all" / "data")  # one folder above: no labels
    arguments = ["--data", tmp_path / "all", "--run", tmp_path / "run", "--preset", "smoke"]
    done = subprocess.run(
        [sys.executable, "-c", MANY, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "all")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    return results, int(done.stdout.split()[-2])


@pytest.mark.slow
@pytest.mark.parametrize("n", [5_000, 100_000])
def test_many_files_in_two_gigabytes(tmp_path, n):
    results, peak = many(tmp_path, n)
    assert sum(results["corpus"]["clips"].values()) == n
    assert peak < 2048
