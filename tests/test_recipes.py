"""Every recipe, found by itself, on its smoke preset, over a few clips laid out as its corpus "
"is."""

import csv
import json
import os
import re
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
from sance_audio.datasets import drums, fsdd, machines
from sance_audio.files import read_jsonl
from sance_audio.model import AudioEBM
from sance_audio.recipe import load_recipe

RECIPES = sorted(path.parent.name for path in (ROOT / "recipes").glob("*/train.py"))
TOYS = {"toy2d", "noise_interval"}
"""Recipes without a corpus of clips: each has a smoke test of its own, in test_toys.py or
test_NAME.py."""
SCREENING = {"synth_machine", "esc50"}
"""Recipes that judge clips and train no generative model."""


def fsdd_tree(root: Path) -> Path:
    """Two speakers, fifteen takes of ten digits: tones, a digit to a pitch."""
    (root / "recordings").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for digit in range(10):
        for speaker in ("ann", "bob"):
            for index in range(15):
                t = np.arange(int(rng.uniform(0.2, 1.2) * 8000)) / 8000
                wave = np.sin(2 * np.pi * (200 + 150 * digit) * t) + 0.1 * rng.standard_normal(
                    len(t)
                )
                name = f"{digit}_{speaker}_{index}.wav"
                soundfile.write(root / "recordings" / name, 0.3 * wave, 8000)
    return root


def folder_tree(root: Path) -> Path:
    """Two folders of tones and noises, of several rates and lengths."""
    rng = np.random.default_rng(0)
    for i in range(40):
        rate = (8000, 11025, 16000)[i % 3]
        t = np.arange(int(rng.uniform(0.2, 0.5) * rate)) / rate
        tone = np.sin(2 * np.pi * rng.uniform(200, 2000) * t)
        path = root / ("tones" if i % 2 else "noises") / f"{i:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.2 * (tone if i % 2 else rng.standard_normal(len(t))), rate)
    return root


def esc50_tree(root: Path) -> Path:
    """Five folds of three clips of tones and noises, each cut from a source of its own."""
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rng, t = np.random.default_rng(0), np.arange(11025) / 44100
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for i in range(30):
        fold, target = 1 + i // 6, i % 2
        name = f"{fold}-{i}-A-{target}.wav"
        wave = np.sin(2 * np.pi * rng.uniform(300, 3000) * t) if target else 0
        soundfile.write(root / "audio" / name, 0.1 * wave + 0.02 * rng.normal(size=len(t)), 44100)
        lines.append(f"{name},{fold},{target},{('noise', 'tone')[target]},True,{i},A")
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return root


TREES = {"fsdd": fsdd_tree, "folder": folder_tree, "esc50": esc50_tree}


def smoke_of(name, tmp_path):
    """A recipe, and its smoke preset on a tree laid out as its corpus is."""
    recipe = load_recipe(name)
    options = replace(recipe.PRESETS["smoke"], run=tmp_path / "run")
    return recipe, replace(
        options, data=TREES[name](tmp_path / "data")
    ) if name in TREES else options


@pytest.mark.parametrize("name", sorted({*RECIPES} - TOYS - SCREENING))
def test_smoke(name, tmp_path, capsys):
    recipe, options = smoke_of(name, tmp_path)
    recipe.main(options)
    printed = capsys.readouterr().out
    assert str((tmp_path / "run" / "index.html").resolve()) in printed
    assert "peak memory" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = ["real test clips", "real through inversion", "reference only", "ours"]
    table = results["evaluation"]["table"]
    assert json.loads((options.run / "evaluation.json").read_text()) == results["evaluation"]
    assert list(table) == rows
    for row in rows:
        assert row in printed
        assert np.isfinite(table[row]["fid"])
    assert len(list((tmp_path / "run" / "clips").glob("*.wav"))) == options.clips
    recipe.main(options)  # the same command again: everything stands, nothing is trained twice
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again["evaluation"]["table"] == table
    with pytest.raises(ValueError, match="other settings"):
        recipe.main(replace(options, train=replace(options.train, rate=0.5)))


@pytest.mark.parametrize("name", sorted(SCREENING))
def test_smoke_of_a_recipe_that_judges(name, tmp_path, capsys):
    recipe, options = smoke_of(name, tmp_path)
    recipe.main(options)
    printed = capsys.readouterr().out
    page = (options.run / "index.html").read_text()
    assert str((options.run / "index.html").resolve()) in printed
    results = json.loads((options.run / "results.json").read_text())
    assert finite(results)
    gain = results["ours_less_reference"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert results["findings"][0] in printed
    addresses = re.findall(r'src="(samples/[^"]*)"', page)
    assert len(addresses) >= 10
    assert all((options.run / address).is_file() for address in addresses)
    before = {path: path.read_bytes() for path in options.run.rglob("*.*")}
    recipe.main(options)  # the same command again: everything stands, nothing is fitted twice
    assert capsys.readouterr().out.count("finished before") == len(
        list(options.run.rglob("judged.json"))
    )
    assert {path: path.read_bytes() for path in options.run.rglob("*.*")} == before
    one = max(options.run.rglob("judged.json"))
    kept = one.read_bytes()
    one.unlink()  # as if stopped before the last
    recipe.main(options)
    again = json.loads(one.read_bytes())
    assert again | {"seconds": 0} == json.loads(kept) | {"seconds": 0}
    with pytest.raises(ValueError, match="other settings"):
        recipe.main(replace(options, seed=1))


def test_machines_are_judged_by_fault_and_score_their_own(tmp_path):
    recipe = load_recipe("synth_machine")
    options = replace(recipe.PRESETS["smoke"], run=tmp_path / "run")
    task = recipe.task("fan", options)
    assert not set(task.groups) & set(task.test_groups)
    other = recipe.task("fan", replace(options, seed=1))
    assert not {*task.groups, *task.test_groups} & {*other.groups, *other.test_groups}
    about = {"alpha": options.alpha, "show": 0, "save": True}
    judged = recipe.judge(task, options, recipe.sound, **about)
    results = recipe.of_machine(judged, options.alpha)
    assert tuple(results["faults"]) == machines.FAULTS["fan"]
    assert 0 <= results["false_alarms"] <= 1
    wave, rate = recipe.sound(task.test[0])
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    out = tmp_path / "scores.csv"
    cli.main(["score", str(options.run / "fan"), str(tmp_path / "a.wav"), "--out", str(out)])
    header, row = csv.reader(out.read_text().splitlines())
    score = float(row[header.index("anomaly_score")])
    assert score == pytest.approx(judged["scores"]["ours"][0], rel=1e-3)
    assert row[header.index("energy")] == "", "there is no model"


def test_esc50_folds_are_kept_apart_and_mistakes_are_said(tmp_path):
    recipe = load_recipe("esc50")
    clips = recipe.esc50.listing(esc50_tree(tmp_path / "data"))
    task = recipe.task(clips, "tone", 2)
    assert (len(task.train), len(task.test)) == (12, 6)
    assert not set(task.groups) & set(task.test_groups)
    assert sorted(task.sorts) == ["", "", "", "noise", "noise", "noise"]
    with pytest.raises(ValueError, match="--task classify: there is no such task; there is anom"):
        replace(recipe.PRESETS["smoke"], task="classify")
    with pytest.raises(ValueError, match="--folds are some of 1 2 3 4 5"):
        replace(recipe.PRESETS["smoke"], folds=(6,))


def test_another_corpus_than_a_run_s_own_is_refused(tmp_path):
    recipe = load_recipe("esc50")
    options = replace(recipe.PRESETS["smoke"], run=tmp_path / "run", data=tmp_path / "data")
    esc50_tree(options.data)
    recipe.main(options)
    meta = options.data / "meta" / "esc50.csv"
    meta.write_text(
        "\n".join(meta.read_text().splitlines()[:1] + meta.read_text().splitlines()[2:])
    )
    with pytest.raises(ValueError, match="other clips were judged"):
        recipe.main(options)


def test_smoke_on_the_real_digits(tmp_path):
    recipe = load_recipe("fsdd")
    options = replace(recipe.PRESETS["smoke"], run=tmp_path / "run", data=real_data("fsdd"))
    recipe.main(options)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["corpus"]["clips"] == {"train": 2400, "valid": 300, "test": 300}
    assert results["corpus"]["left_out"] == []
    auc = results["anomalies"]["auc"]
    assert auc["ours"]["auc"] > auc["log-mel statistics + kNN"]["auc"]


@pytest.mark.parametrize("name", RECIPES)
def test_presets_and_documentation(name):
    recipe = load_recipe(name)
    assert {"smoke", "cpu", "gpu"} <= set(recipe.PRESETS)
    assert recipe.__doc__
    assert (ROOT / "recipes" / name / "README.md").is_file()
    for key, options in recipe.PRESETS.items():
        assert options.preset == key


def sound(clip):
    return clip.source.load().waveform


def test_drums_are_the_same_for_the_same_seed_and_differ_in_timbre_only():
    first, again = drums.prepare(12, 6, 6, 8), drums.prepare(24, 6, 6, 8)
    for a, b in zip(first.split("train"), again.split("train"), strict=False):
        assert a.name == b.name
        assert np.array_equal(sound(a), sound(b))
    other = drums.prepare(12, 6, 6, 8, seed=1)
    assert not np.array_equal(sound(first.clips[0]), sound(other.clips[0]))
    assert first.clips[0].source.digest() != other.clips[0].source.digest()
    assert {c.label for c in first.split("odd")} == set(drums.ODD)
    assert not set(drums.ODD) & set(drums.LABELS)


def test_unseen_kinds_have_the_level_and_length_of_the_drums():
    """No threshold on peak or duration tells them apart (Kolmogorov-Smirnov at 1e-4)."""
    from scipy.stats import ks_2samp

    corpus = drums.prepare(180, 6, 6, 180)

    def peak_and_length(split):
        waves = [sound(clip) for clip in corpus.split(split)]
        ends = [int(np.flatnonzero(np.abs(w.numpy()) > 0)[-1]) for w in waves]
        return [float(w.abs().max()) for w in waves], ends

    for ours, odd in zip(peak_and_length("train"), peak_and_length("odd"), strict=True):
        assert ks_2samp(ours, odd).pvalue > 1e-4


def test_fsdd_layout_and_splits(tmp_path):
    root = fsdd_tree(tmp_path)
    (root / "recordings" / "readme.txt").touch()
    corpus = fsdd.prepare(root)
    assert {s: len(corpus.split(s)) for s in ("train", "valid", "test")} == {
        "train": 100,
        "valid": 100,
        "test": 100,
    }
    assert len(corpus.problems) == 1
    assert "readme.txt" in corpus.problems[0]


def test_fsdd_real_corpus():
    corpus = fsdd.prepare(real_data("fsdd"))
    assert len(corpus.clips) == 3000
    assert {s: len(corpus.split(s)) for s in ("train", "valid", "test")} == {
        "train": 2400,
        "valid": 300,
        "test": 300,
    }
    assert not corpus.problems
    seconds = np.array([len(sound(clip)) / 8000 for clip in corpus.split("test")])
    assert seconds.min() > 0.1
    assert seconds.max() < 2.5


def files_of(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


def test_a_recipe_in_two_processes_writes_the_same_files(finished_run, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ROOT / "recipes" / "drums" / "train.py"
    options = ["--preset", "smoke", "--run", tmp_path / "run"]
    # The `--` keeps torchrun from taking --run for one of its own.
    command = [*launcher, "--nproc-per-node", "2", "--", script, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}

    def launched(*more: str):
        return subprocess.run(
            [*map(str, command), *more], env=environment, capture_output=True, text=True
        )

    done = launched()
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "run") == files_of(finished_run)
    assert done.stdout.count("listen: ") == 1, "one process speaks"
    assert done.stdout.count("432 windows") == 1
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 11))
    refused = launched("--sigma", "0.3")
    assert refused.returncode != 0
    assert "sigma: 0.2 -> 0.3" in refused.stderr


def finite(tree) -> bool:
    """Whether every number in a tree of dictionaries and lists is finite."""
    if isinstance(tree, dict):
        return all(map(finite, tree.values()))
    if isinstance(tree, list):
        return all(map(finite, tree))
    return not isinstance(tree, float) or np.isfinite(tree)


@pytest.mark.slow
def test_twenty_seeds_of_the_digits_no_nan_unnoticed(tmp_path):
    """Rows, weights, figures and clips of twenty smoke runs on real digits are finite."""
    recipe, data = load_recipe("fsdd"), real_data("fsdd")
    for seed in range(20):
        run = tmp_path / str(seed)
        recipe.main(
            replace(
                recipe.PRESETS["smoke"], run=run, data=data, seed=seed, cache=tmp_path / "cache"
            )
        )
        rows = read_jsonl(run / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, 7))
        assert finite(rows), seed
        assert finite(json.loads((run / "results.json").read_text())), seed
        model = AudioEBM.from_pretrained(run)  # refuses weights that are not finite
        assert torch.isfinite(model.density.log_z).all()
        for path in (run / "clips").glob("*.wav"):
            wave, _ = soundfile.read(path)
            assert np.isfinite(wave).all()
            assert np.abs(wave).max() > 1e-3, f"{path} is silent"
