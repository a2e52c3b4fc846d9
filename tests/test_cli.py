"""The command line on a finished run, and on everything that can be wrong."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import small_model

from sance_audio import AudioEBM, EnergyDetector, cli
from sance_audio.assessment import write_clips

RATE = 16000


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fails(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run a command that must end in one line on standard error and exit status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error, error
    assert "Traceback" not in error
    return error


def test_a_finished_run_holds_what_the_design_promises(finished_run):
    names = ["config", "environment", "results"]
    files = [f"{name}.json" for name in names]
    files += ["metrics.jsonl", "model.safetensors", "detector.safetensors", "index.html"]
    for name in [*files, "state/latest.pt"]:
        assert (finished_run / name).is_file(), name
    clips = sorted((finished_run / "clips").glob("*.wav"))
    assert len(clips) == 16
    assert [c.name for c in clips[:2]] == ["0000_kick.wav", "0001_snare.wav"]
    for clip in clips:
        info = soundfile.info(clip)
        assert (info.subtype, info.samplerate, info.channels) == ("PCM_16", RATE, 1)
        samples, _ = soundfile.read(clip)
        assert np.abs(samples).max() < 1
        assert 20 * np.log10(np.sqrt(np.mean(samples**2))) > -40


def test_generate_is_a_prefix_of_a_larger_run(finished_run, tmp_path):
    for n in (4, 16):
        cli.main(["generate", str(finished_run), "--num", str(n), "--out", str(tmp_path / str(n))])
    few, many = sorted((tmp_path / "4").iterdir()), sorted((tmp_path / "16").iterdir())
    assert (len(few), len(many)) == (4, 16)
    for a, b in zip(few, many, strict=False):
        assert a.name == b.name
        assert a.read_bytes() == b.read_bytes()
    assert len({path.read_bytes() for path in many}) == 16


def test_generate_in_another_process_gives_the_same_bytes(finished_run, tmp_path):
    """Whatever the number of threads that the environment asks for."""
    command = [sys.executable, "-m", "sance_audio", "generate", finished_run, "--num", "3"]
    for threads in ("1", "2"):
        subprocess.run(
            [*command, "--out", tmp_path / threads],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        )
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_generate_one_label(finished_run, tmp_path):
    arguments = ["generate", finished_run, "--num", 2, "--label", "tom", "--out", tmp_path]
    cli.main([str(a) for a in arguments])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000_tom.wav", "0001_tom.wav"]


def test_score_writes_one_row_a_file_and_goes_on_past_bad_ones(finished_run, tmp_path, capsys):
    folder = tmp_path / "sounds"
    (folder / "deep").mkdir(parents=True)
    g = np.random.default_rng(0)
    noise = 0.1 * g.standard_normal(RATE // 2)
    soundfile.write(folder / "deep" / "good.wav", noise, RATE)
    soundfile.write(folder / "silence.wav", np.zeros(8000), RATE)
    soundfile.write(folder / "one.wav", np.array([0.5]), RATE)
    soundfile.write(folder / "stereo.wav", np.stack([noise, noise], 1), RATE)
    soundfile.write(folder / "rate.flac", 0.1 * g.standard_normal(22050), 44100)
    soundfile.write(folder / "long.wav", 0.1 * g.standard_normal(13 * RATE), RATE)
    (folder / "text.wav").write_text("not sound")
    (folder / "zero.wav").touch()
    out = tmp_path / "scores.csv"
    cli.main(["score", str(finished_run), str(folder), "--out", str(out)])
    rows = {Path(row["path"]).name: row for row in read_rows(out)}
    assert len(rows) == 8
    columns = "path energy anomaly_score p_value predicted_class duration_seconds notes"
    assert list(rows["good.wav"]) == columns.split()
    for name, note in {
        "silence.wav": "silent",
        "one.wav": "padded from 1 to 8064 samples",
        "stereo.wav": "2 channels mixed down",
        "rate.flac": "resampled from 44100 Hz",
        "long.wav": "10 windows",
        "text.wav": "cannot be decoded",
        "zero.wav": "0 bytes",
    }.items():
        assert note in rows[name]["notes"], name
        scored = name not in ("text.wav", "zero.wav")
        assert (rows[name]["energy"] != "") == scored
        if scored:
            assert np.isfinite(float(rows[name]["energy"]))
            assert 0 < float(rows[name]["p_value"]) <= 1
            assert rows[name]["predicted_class"]
    assert float(rows["long.wav"]["duration_seconds"]) == 13.0
    assert float(rows["good.wav"]["energy"]) == pytest.approx(
        float(rows["stereo.wav"]["energy"]), rel=1e-2
    )
    printed = capsys.readouterr().out
    assert "6 files scored, 2 could not be read" in printed
    assert "real-time factor" in printed


def test_score_agrees_with_the_python_interface(finished_run, tmp_path):
    paths = sorted((finished_run / "clips").glob("*.wav"))[:5]
    out = tmp_path / "scores.csv"
    cli.main(["score", str(finished_run), *map(str, paths), "--out", str(out)])
    marks = EnergyDetector.from_pretrained(finished_run).assess(paths)
    for i, row in enumerate(read_rows(out)):
        for key, values in marks.items():
            assert float(row[key]) == pytest.approx(values[i], rel=1e-6)


def test_the_page_stands_alone_and_is_rebuilt(finished_run, capsys):
    page = finished_run / "index.html"
    before = page.read_text()
    page.unlink()
    cli.main(["page", str(finished_run)])
    assert page.read_text() == before
    assert str(page.resolve()) in capsys.readouterr().out
    assert "http://" not in before
    assert "https://" not in before
    import re

    players = re.findall(r'<audio[^>]* src="([^"]+)"', before)
    assert len(players) >= 3 * 6
    from urllib.parse import unquote

    for source in players:
        assert (finished_run / unquote(source)).is_file(), source
    for word in ("Oddest", "Most ordinary", "energy", "seed", "Network gap", "AUC"):
        assert word in before


def test_info_and_help_and_version(finished_run, capsys):
    cli.main(["info", str(finished_run)])
    assert '"kick"' in capsys.readouterr().out
    for arguments in (["--help"], [], ["train"], ["--version"]):
        cli.main(arguments)
        assert capsys.readouterr().out.strip()
    for command in ("generate", "restore", "score", "evaluate", "page", "info"):
        with pytest.raises(SystemExit) as caught:
            cli.main([command, "--help"])
        assert caught.value.code == 0
    assert "Run folder" in capsys.readouterr().out


def test_mistakes_are_one_line(finished_run, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    out = tmp_path / "out.csv"
    score = ("score", finished_run)
    assert "no such run folder" in fails(capsys, "generate", tmp_path / "nowhere")
    assert "no model.safetensors" in fails(capsys, "generate", empty)
    assert "no model.safetensors" in fails(capsys, "page", empty)
    assert "no detector.safetensors" in fails(capsys, "score", empty, text, "--out", out)
    assert "at least 1" in fails(capsys, "generate", finished_run, "--num", 0)
    assert "kick" in fails(capsys, "generate", finished_run, "--label", "gong")
    assert "no audio files" in fails(capsys, *score, empty, "--out", out)
    assert "no such file" in fails(capsys, *score, tmp_path / "gone.wav", "--out", out)
    assert "none of 1 files" in fails(capsys, *score, text, "--out", out)
    assert ".csv" in fails(capsys, *score, text, "--out", tmp_path / "out.xlsx")
    assert "no command named" in fails(capsys, "fly")
    assert "no recipe named" in fails(capsys, "train", "flute")
    assert not out.exists(), "no partial output"


def test_bad_corpora_and_run_folders_are_one_line(finished_run, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    run = tmp_path / "run"
    fsdd = ("train", "fsdd", "--preset", "smoke", "--run")
    assert "expected a folder with recordings/" in fails(capsys, *fsdd, run, "--data", empty)
    assert "nothing there" in fails(capsys, *fsdd, run, "--data", tmp_path / "gone")
    (empty / "recordings").mkdir()
    assert "holds no file named" in fails(capsys, *fsdd, run, "--data", empty)
    assert "expected cpu, cuda or auto" in fails(
        capsys, "train", "drums", "--run", run, "--device", "tpu"
    )
    assert not run.exists(), "no partial output"
    (empty / "recordings" / "0_ann_0.wav").touch()
    assert "another recipe" in fails(capsys, *fsdd, finished_run, "--data", empty)
    foreign = tmp_path / "foreign" / "thesis.doc"
    foreign.parent.mkdir()
    foreign.touch()
    assert "not a run folder" in fails(capsys, *fsdd, foreign.parent, "--data", empty)
    assert "a file stands there" in fails(capsys, *fsdd, foreign, "--data", empty)
    assert sorted(foreign.parent.iterdir()) == [foreign]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("rank", 0, "--rank must be at least 1"),
        ("seed", -1, "--seed must be at least 0"),
        ("train.rate", -1.0, "train.rate must be positive"),
        ("preset", "huge", "preset"),
    ],
)
def test_impossible_options_are_explained(tmp_path, capsys, option, value, message):
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "drums", "--run", str(run), f"--{option}", str(value)])
    assert caught.value.code == 2
    printed = " ".join("".join(capsys.readouterr()).split())
    assert message in printed
    assert "Traceback" not in printed
    assert not run.exists()


def test_another_setting_for_a_run_is_one_line_that_names_it(finished_run, capsys):
    before = (finished_run / "config.json").read_text()
    smoke = ("train", "drums", "--preset", "smoke", "--run", finished_run)
    for option, value in (("sigma", 0.3), ("rank", 4), ("size", 300), ("train.rate", 0.5)):
        name = option.split(".")[0]
        assert f"{name}: " in fails(capsys, *smoke, f"--{option}", value)
    assert (finished_run / "config.json").read_text() == before


def test_foreign_files_in_a_run_folder(finished_run, tmp_path, capsys):
    (tmp_path / "config.json").write_text("[1]")
    arguments = ("train", "drums", "--preset", "smoke", "--run", tmp_path)
    assert "another recipe" in fails(capsys, *arguments)
    (tmp_path / "config.json").write_text("{")
    assert "not a readable JSON" in fails(capsys, *arguments)
    shutil.copy(finished_run / "model.safetensors", tmp_path)
    assert "results.json" in fails(capsys, "page", tmp_path)
    (tmp_path / "results.json").write_text("{}")
    assert "not the results of a recipe" in fails(capsys, "page", tmp_path)


def test_labels_never_lead_out_of_a_folder(tmp_path):
    model = small_model()
    model.labels = ("../../escaped", "b/c", "d")
    names = write_clips(model, torch.zeros(3, 100), [0, 1, 2], tmp_path / "out")
    assert names == ["0000_.._.._escaped.wav", "0001_b_c.wav", "0002_d.wav"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_hostile_names_and_samples_cost_one_row(finished_run, tmp_path):
    folder = os.fsencode(tmp_path / "sounds")
    os.mkdir(folder)
    good = next((finished_run / "clips").glob("*.wav")).read_bytes()
    for name in (b"good.wav", b"caf\xe9.wav", "héé 你好.wav".encode(), b"new\nline.wav"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(good)
    loud = tmp_path / "sounds" / "loud.wav"
    soundfile.write(loud, np.full((100, 2), 3e38), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "sounds" / "slow.wav", np.ones(500), 1)
    out = tmp_path / "scores.csv"
    cli.main(["score", str(finished_run), str(tmp_path / "sounds"), "--out", str(out)])
    rows = read_rows(out)
    assert len(rows) == 6
    assert sum(row["energy"] != "" for row in rows) >= 3
    notes = {Path(row["path"]).name: row["notes"] for row in rows}
    assert "1 Hz" in notes["slow.wav"]
    assert notes["good.wav"] == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(tmp_path, capsys):
    arguments = ("train", "drums", "--device", "cuda", "--run", tmp_path / "r")
    assert "sees no GPU" in fails(capsys, *arguments)


def test_python_interface_of_the_design(finished_run):
    ebm = AudioEBM.from_pretrained(finished_run)
    waves = ebm.generate(2, generator=torch.Generator().manual_seed(0))
    assert waves.shape == (2, 8064)
    assert ebm.energy(waves, RATE).shape == (2,)
    assert ebm.energy_map(waves, RATE).shape == (2, 64, 64)
