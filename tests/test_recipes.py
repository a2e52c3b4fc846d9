"""Every recipe, found by itself, on its smoke preset, over a few clips laid out as its corpus "
"is."""

import csv
import json
import os
import re
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
from corpus_trees import nsynth_tree, speech_commands_tree

from sance_audio import cli
from sance_audio.datasets import dcase, drums, fsdd, machines
from sance_audio.files import read_jsonl
from sance_audio.model import AudioEBM
from sance_audio.options import options_from
from sance_audio.recipe import load_recipe
from sance_audio.workflow import connect, start

RECIPES = sorted(path.parent.name for path in (ROOT / "recipes").glob("*/train.py"))
TOYS = {"toy2d", "noise_interval"}
"""Recipes without a corpus of clips: each has a smoke test of its own, in test_toys.py or
test_NAME.py."""
SCREENING = {"synth_machine", "esc50", "mimii", "toyadmos", "dcase_task2"}
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


def machine_sound(path: Path, seed: int, odd: bool, rate: int = 16000, channels: int = 1) -> None:
    """A third of a second of a hum in noise; odd ones whistle too."""
    rng, t = np.random.default_rng(seed), np.arange(rate // 3) / rate
    wave = np.sin(2 * np.pi * rng.uniform(290, 310) * t) + 0.3 * rng.standard_normal(len(t))
    if odd:
        wave = wave + 0.5 * np.sin(2 * np.pi * rng.uniform(2000, 3000) * t)
    waves = [wave, *(rng.standard_normal(len(t)) for _ in range(channels - 1))]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.stack(waves, 1), rate)


def mimii_tree(root: Path) -> Path:
    """Two fans and a pump at one ratio, of eight channels."""
    for machine, section in (("fan", "id_00"), ("fan", "id_02"), ("pump", "id_00")):
        for label, count in (("normal", 12), ("abnormal", 3)):
            for i in range(count):
                path = root / f"6_dB_{machine}" / machine / section / label / f"{i:08d}.wav"
                machine_sound(path, i, label == "abnormal", channels=8)
    (root / "6_dB_fan" / "fan" / "id_00" / "normal" / "notes.txt").touch()
    return root


def toyadmos_tree(root: Path) -> Path:
    """Two cases of cars at 48 kHz."""
    for case in (1, 2):
        for folder, word, count in (("Normal", "normal", 12), ("Anomalous", "ab01", 3)):
            for i in range(count):
                name = f"1101010001_ToyCar_case{case}_{word}_IND_ch1_{i:04d}.wav"
                path = root / "ToyCar" / f"case{case}" / f"{folder}Sound_IND" / name
                machine_sound(path, 100 * case + i, word == "ab01", 48000)
    return root


def dcase_tree(root: Path, year: int = 2023) -> Path:
    """As the zips of a year unpack: a machine to develop on and one to be evaluated on, which is
    the same until 2022, of eight normals in the source and four in the target.
    """
    about = dcase.YEARS[year]
    own = about.developed[0]
    other, section = (own, "03") if year < 2023 else (about.evaluated[0], "00")
    if year == 2020:
        names = [("dev", own, f"train/normal_id_00_{i:08d}", False) for i in range(8)]
        names += [
            ("dev", own, f"test/{label}_id_00_{i:08d}", label == "anomaly")
            for label in ("normal", "anomaly")
            for i in range(3)
        ]
        names += [("eval", own, f"train/normal_id_01_{i:08d}", False) for i in range(8)]
        names += [("eval", own, f"test/id_01_{i:08d}", False) for i in range(3)]
    else:
        tests = [f"{d}_test" if year == 2021 else "test" for d in ("source", "target")]
        names = [
            (part, machine, f"train/section_{number}_{d}_train_normal_{i:04d}_a_1", False)
            for part, machine, number in (("dev", own, "00"), ("eval", other, section))
            for d, count in (("source", 8), ("target", 4))
            for i in range(count)
        ]
        names += [
            (
                *("dev", own),
                f"{folder}/section_00_{d}_test_{label}_{i:04d}_a_1",
                label == "anomaly",
            )
            for d, folder in zip(("source", "target"), tests, strict=True)
            for label in ("normal", "anomaly")
            for i in range(3)
        ]
        said = [f"{d}_test_" if year == 2021 else "" for d in ("source", "target")]
        names += [
            ("eval", other, f"{folder}/section_{section}_{word}{i:04d}", False)
            for j, (folder, word) in enumerate(zip(tests, said, strict=True))
            for i in range(3 * j, 3 * j + 3)
        ]
    for k, (part, machine, name, odd) in enumerate(names):
        path = root / f"dcase{year}t2" / f"{part}_data" / "raw" / machine / f"{name}.wav"
        machine_sound(path, k, odd, channels=about.channels)
    return root


TREES = {
    "fsdd": fsdd_tree,
    "folder": folder_tree,
    "esc50": esc50_tree,
    "mimii": mimii_tree,
    "toyadmos": toyadmos_tree,
    "dcase_task2": dcase_tree,
    "speech_commands": speech_commands_tree,
    "nsynth": nsynth_tree,
}


def smoke_of(name, tmp_path):
    """A recipe, and its smoke preset on a tree laid out as its corpus is."""
    recipe = load_recipe(name)
    options = replace(recipe.PRESETS["smoke"], run=tmp_path / "run")
    return recipe, replace(
        options, data=TREES[name](tmp_path / "data")
    ) if name in TREES else options


@pytest.mark.parametrize("name", sorted({*RECIPES} - TOYS - SCREENING))
def test_smoke(name, tmp_path, capsys):
    generates(*smoke_of(name, tmp_path), tmp_path, capsys)


def test_esc50_generates_too(tmp_path, capsys):
    recipe, options = smoke_of("esc50", tmp_path)
    options = replace(options, task="generate")
    generates(recipe, options, tmp_path, capsys)
    facts = json.loads((options.run / "preparation.json").read_text())
    assert facts["clips"] == {"train": 18, "valid": 6, "test": 6}
    assert facts["resampled"] == 30, "16 kHz are listened at"
    assert facts["other_rate"] == [], "44.1 kHz are what the corpus has"


def generates(recipe, options, tmp_path, capsys):
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


def of_dcase(tmp_path, year):
    """The recipe's smoke preset on the tree of a year: options, results, submission by name."""
    recipe = load_recipe("dcase_task2")
    options = replace(
        *(recipe.PRESETS["smoke"],),
        **{"run": tmp_path / "run", "data": dcase_tree(tmp_path / "data", year), "year": year},
    )
    recipe.main(options)
    files = sorted((options.run / "submission").iterdir())
    results = json.loads((options.run / "results.json").read_text())
    assert sorted(results["submission"]) == [path.name for path in files]
    return options, results, {path.name: path.read_text().splitlines() for path in files}


def names_and_values(lines):
    names, values = zip(*(line.split(",") for line in lines), strict=True)
    return list(names), list(map(float, values))


@pytest.mark.parametrize("year", [2020, 2021, 2022, 2026])
def test_dcase_from_folders_to_a_submission(year, tmp_path, capsys):
    options, results, files = of_dcase(tmp_path, year)
    machine, other = dcase.YEARS[year].developed[0], dcase.YEARS[year].evaluated[0]
    label = {2020: "id_01", 2021: "section_03", 2022: "section_03", 2026: "section_00"}[year]
    part = {2020: "", 2021: "_source_test"}.get(year, "_test")
    scored = f"{machine if year < 2023 else other}_{label}{part}"
    word = {2020: "id_01_0000", 2021: "section_03_source_test_"}.get(year, f"{label}_")
    count = 6 if year > 2021 else 3
    expected = [f"{word}{i:04d}.wav" for i in range(count)]
    names, scores = names_and_values(files[f"anomaly_score_{scored}.csv"])
    assert names == expected
    assert np.isfinite(scores).all()
    assert len(set(scores)) == count
    if year > 2020:
        names, decided = names_and_values(files[f"decision_result_{scored}.csv"])
        assert names == expected
        file = next(options.run.rglob(f"{label.split('_')[1]}/judged.json"))
        if year == 2026:
            file = options.run / other / "00" / "judged.json"
        threshold = json.loads(file.read_text())["threshold"]
        assert decided == [float(score > threshold) for score in scores]
    assert len(files) == {2020: 1, 2021: 4}.get(year, 2)
    official = results["official"]
    assert 0 < official["ours"] <= 1
    assert 0 < official["reference only"] <= 1
    own = results["sections"][f"{machine}/00"]["ours"]
    assert len(own) == {2020: 2, 2021: 4}.get(year, 3)
    printed = capsys.readouterr().out
    assert f"Official score over all machines: {official['ours']:.4f}" in printed
    assert "files of the evaluation set in submission/" in printed


def test_dcase_without_an_evaluation_set_submits_the_test_clips(tmp_path, capsys):
    data = dcase_tree(tmp_path / "data", 2022)
    shutil.rmtree(data / "dcase2022t2" / "eval_data")
    machine = data / "dcase2022t2" / "dev_data" / "raw" / "bearing"
    broken = machine / "test" / "section_00_source_test_normal_0001_a_1.wav"
    broken.write_bytes(b"RIFF")
    (machine / "train" / "readme.wav").touch()
    recipe = load_recipe("dcase_task2")
    smoke = recipe.PRESETS["smoke"]
    options = replace(smoke, run=tmp_path / "run", data=data, year=2022)
    recipe.main(options)
    lines = (options.run / "submission" / "anomaly_score_bearing_section_00_test.csv").read_text()
    assert len(lines.splitlines()) == 11
    assert broken.name not in lines
    printed = capsys.readouterr().out
    assert "1 files or folders are no part of it" in printed
    assert f"cannot be read: {broken.relative_to(data)}" in printed
    assert "1 clips cannot be read; no score, and no line of the submission, is theirs." in printed
    results = json.loads((options.run / "results.json").read_text())
    assert len(results["problems"]) == len(results["unread"]) == 1
    recipe.main(options)
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected the machines pump, found bearing"):
        recipe.main(replace(options, run=tmp_path / "b", machines=("pump",)))
    with pytest.raises(ValueError, match="--year is 2020 to 2026, found 2019"):
        replace(options, year=2019)


def test_dcase_of_machines_that_nobody_labelled(tmp_path, capsys):
    recipe, data = load_recipe("dcase_task2"), dcase_tree(tmp_path / "data", 2023)
    machine = dcase.YEARS[2023].evaluated[0]
    smoke = replace(recipe.PRESETS["smoke"], run=tmp_path / "run", data=data)
    recipe.main(replace(smoke, machines=(machine,)))
    printed = capsys.readouterr().out
    assert "No clip is labelled: there is no official score." in printed
    results = json.loads((smoke.run / "results.json").read_text())
    assert results["official"] == {"ours": None, "reference only": None}
    assert results["ours_less_reference"] is None
    assert len(results["submission"]) == 2
    assert f"samples/{machine}/00/oddest_1.wav" in (smoke.run / "index.html").read_text()
    recipe.main(smoke)  # the other machine follows in the same run
    assert capsys.readouterr().out.count("finished before") == 1


def test_dcase_of_two_target_normals_does_not_tell_domains_apart(tmp_path, capsys):
    recipe, data = load_recipe("dcase_task2"), dcase_tree(tmp_path / "data", 2022)
    shutil.rmtree(data / "dcase2022t2" / "eval_data")
    for path in sorted(data.rglob("train/section_00_target_*"))[2:]:
        path.unlink()
    smoke = replace(recipe.PRESETS["smoke"], data=data, year=2022, show=0)
    scores = {}
    for domains in (True, False):
        recipe.main(replace(smoke, run=tmp_path / str(domains), domains=domains))
        said = "bearing/00: 8 source normals and 2 target normals, domains are not told apart"
        assert (said in capsys.readouterr().out) == domains
        judged = json.loads(next((tmp_path / str(domains)).rglob("judged.json")).read_text())
        scores[domains] = judged["scores"]
    assert scores[True] == scores[False]


def test_clips_that_cannot_be_read_may_leave_too_few(tmp_path, capsys):
    """Of a domain, which is then not told apart; of what is judged, which is said."""
    recipe, data = load_recipe("dcase_task2"), dcase_tree(tmp_path / "data", 2022)
    shutil.rmtree(data / "dcase2022t2" / "eval_data")
    targets = sorted(data.rglob("train/section_00_target_*"))
    assert len(targets) >= 3
    for path in targets[2:]:
        path.write_bytes(b"")
    smoke = replace(recipe.PRESETS["smoke"], data=data, year=2022, show=0)
    recipe.main(replace(smoke, run=tmp_path / "a"))
    assert "bearing/00: too few of a domain can be read" in capsys.readouterr().out
    for path in data.rglob("test/*.wav"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="bearing/00: none of its 12 clips to judge can be read"):
        recipe.main(replace(smoke, run=tmp_path / "b"))


def test_a_section_that_cannot_be_fitted_is_named(tmp_path):
    recipe, data = load_recipe("dcase_task2"), dcase_tree(tmp_path / "data", 2022)
    first, *others = sorted(data.rglob("dev_data/raw/bearing/train/*.wav"))
    for path in others:
        shutil.copy(first, path)
    options = replace(recipe.PRESETS["smoke"], data=data, year=2022, run=tmp_path / "run")
    with pytest.raises(ValueError, match=r"bearing/00: the \d+ normal clips are all alike"):
        recipe.main(options)


def test_dcase_detectors_score_as_the_submission_says(tmp_path):
    options, _, files = of_dcase(tmp_path, 2026)
    machine = dcase.YEARS[2026].evaluated[0]
    names, scores = names_and_values(files[f"anomaly_score_{machine}_section_00_test.csv"])
    path = tmp_path / "near.wav"  # of two channels the near one is the first
    found = next(options.data.rglob(f"{machine}/test/{names[0]}"))
    wave, rate = soundfile.read(found)
    assert wave.shape[1] == 2
    soundfile.write(path, wave[:, 0], rate)
    out = tmp_path / "scores.csv"
    cli.main(["score", str(options.run / machine / "00"), str(path), "--out", str(out)])
    header, row = csv.reader(out.read_text().splitlines())
    assert float(row[header.index("anomaly_score")]) == pytest.approx(scores[0], rel=1e-6)


def test_a_section_of_few_normals_shares_its_machine_s(tmp_path, capsys):
    recipe = load_recipe("mimii")
    about = {"run": tmp_path / "run", "fewest": 10, "calibration": 0.4, "alpha": 0.25}
    options = replace(recipe.PRESETS["smoke"], **about)
    recipe.main(replace(options, data=mimii_tree(tmp_path / "data")))
    printed = capsys.readouterr().out
    assert "6_dB_fan/00: 9 normals, fitted to all 18 of 6_dB_fan" in printed
    assert "6_dB_pump/00: 9 normals, fitted to all 9 of 6_dB_pump" in printed
    assert "notes.txt" in printed
    results = json.loads((options.run / "results.json").read_text())
    assert set(results["machines"]) == {"6_dB_fan", "6_dB_pump"}
    assert 0 <= results["mean"]["ours"]["auc"] <= 1
    assert 0 <= results["false_alarms"] <= 1
    assert f"at alpha = 0.25: {100 * results['false_alarms']:.1f} %" in printed
    with pytest.raises(ValueError, match="--calibration is a share from 0 to below 1"):
        replace(options, calibration=1.0)


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
    spoken = fsdd.prepare(root, by="speaker")
    assert (corpus.labels, spoken.labels) == (fsdd.LABELS, ("ann", "bob"))
    assert [(c.name, c.split) for c in spoken.clips] == [(c.name, c.split) for c in corpus.clips]
    assert {c.label for c in spoken.clips if "_ann_" in c.name} == {"ann"}
    with pytest.raises(ValueError, match="by digit or by speaker"):
        fsdd.prepare(root, by="loudness")


def test_a_run_older_than_an_option_had_its_usual_value(tmp_path):
    recipe, options = smoke_of("fsdd", tmp_path)
    device = connect(options)
    start(options, "fsdd", device)
    config = options.run / "config.json"
    older = json.loads(config.read_text())
    assert older.pop("by") == "digit"
    config.write_text(json.dumps(older))
    assert options_from(older, recipe.PRESETS["cpu"]).by == "digit"
    with pytest.raises(ValueError, match="by: digit -> speaker"):
        start(replace(options, by="speaker"), "fsdd", device)
    start(options, "fsdd", device)
    assert json.loads(config.read_text())["by"] == "digit"


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
