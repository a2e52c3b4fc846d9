"""Judging a finished run: the command, its judge, copies."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from sance_audio import AudioEBM, audio, cli, evaluation, metrics
from sance_audio.assessment import Generated, _memorisation, analyse, classify
from sance_audio.preparation import prepare
from sance_audio.recipe import evaluate_run, load_recipe


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(finished_run, tmp_path / "run")


def test_the_command_gives_the_recipe_s_own_table(run, capsys):
    before = json.loads((run / "evaluation.json").read_text())
    results = json.loads((run / "results.json").read_text())
    assert results["evaluation"] == before
    (run / "evaluation.json").unlink()
    shutil.rmtree(run / "features")
    cli.main(["evaluate", str(run)])
    after = json.loads((run / "evaluation.json").read_text())
    for each in (before, after):
        each["generation"].pop("real_time_factor")
    assert after == before
    said = capsys.readouterr().out
    for row in ("real test clips", "real through inversion", "reference only", "ours"):
        assert row in said
    for word in ("KID", "FID", "recall", "paired", "nearest training clip"):
        assert word in said


def test_rows_compare_at_equal_numbers_of_clips(run):
    found = evaluate_run(run, num=40, seed=3)[0]
    assert found["n_equal"] == 40
    assert found["seed"] == 3
    assert [row["clips"] for row in found["table"].values()] == [96, 96, 40, 40]
    results = json.loads((run / "results.json").read_text())
    assert results["evaluation"]["table"] == json.loads(json.dumps(found["table"]))
    assert results["evaluation"]["seed"] == 3, "the page tells of what it plays"
    six = model_rows(run)
    assert found["table"]["ours"]["fid"] == pytest.approx(six, rel=1e-4), "of the first 40"
    for row in found["table"].values():
        assert sum(row["seen_as"].values()) == row["clips"]
        assert 0 <= row["precision"] <= 1


def model_rows(run) -> float:
    """FID of the first 40 generated clips, by the plain formula, against 40 training clips."""
    model, material, judge = drums_of(run)
    x, _ = material.some("train", 2500)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    real = evaluation.describe(judge.classifier, x[order][:40])
    waves = model.generate(40, torch.Generator().manual_seed(3))
    ours = evaluation.describe(judge.classifier, analyse(model, waves))
    return metrics.frechet_distance(ours.phi, real.phi)


def test_another_judge_is_refused(run, capsys):
    path = run / "classifier.safetensors"
    path.unlink()
    model = AudioEBM.from_pretrained(run)
    recipe = load_recipe("drums")
    options = replace(recipe.PRESETS["smoke"], run=run, classifier_epochs=1)
    material = prepare(recipe.corpus(options), model.features, options, fitted=True)
    classify(model, material, options)  # trained for one epoch less
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", str(run)])
    assert caught.value.code == 2
    assert "not the one that evaluation.json was made with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "config.json"),
        (lambda run: (run / "config.json").write_text("[]"), "not the settings"),
        (lambda run: (run / "config.json").write_text('{"recipe": "flute"}'), "no recipe named"),
        (lambda run: (run / "config.json").write_text('{"recipe": "drums"}'), "another version"),
        (lambda run: (run / "model.safetensors").unlink(), "no model.safetensors"),
    ],
)
def test_what_is_no_finished_run_is_one_line(run, capsys, damage, message):
    damage(run)
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", str(run)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def drums_of(run):
    model = AudioEBM.from_pretrained(run)
    recipe = load_recipe("drums")
    options = replace(recipe.PRESETS["smoke"], run=run)
    material = prepare(recipe.corpus(options), model.features, options, fitted=True)
    return model, material, classify(model, material, options)


def test_copies_of_training_clips_are_seen(run):
    model, material, judge = drums_of(run)
    waves = torch.stack([material.window("train", i, model) for i in range(40)])
    copies = Generated(waves, [0] * 40, analyse(model, waves), 1.0)
    x_test = material.x["test"][:]
    again = analyse(model, model.invert(x_test))
    real = evaluation.describe(judge.classifier, material.x["train"][:])
    found = _memorisation(model, material, run, judge, copies, again, real)
    for space in ("features", "log_mel"):
        assert found[space]["at_median"] < 0.01, space
        assert found[space]["at_5_percent"] < 0.01, space
        assert found[space]["copies"]["at_median"] < 0.8, "copies through inversion stand out"
    made = analyse(model, model.invert(material.x["train"][:40]))
    through = Generated(waves, [0] * 40, made, 1.0)
    found = _memorisation(model, material, run, judge, through, again, real)
    for space in ("features", "log_mel"):
        told = found[space]["copies"]["at_median"]
        assert found[space]["at_median"] == pytest.approx(told, rel=0.3), space
    found = _memorisation(model, material, run, judge, copies, again, real)
    for pair in found["closest"]:
        assert pair["name"] == material.clips["train"][pair["index"]].name
        generated, training = (
            audio.read(run / pair[kind])[0] for kind in ("generated", "training")
        )
        torch.testing.assert_close(generated, training, atol=1e-3, rtol=0)
    others = Generated(waves, [0] * 40, material.x["valid"][:40], 1.0)
    found = _memorisation(model, material, run, judge, others, again, real)
    assert 0.7 < found["log_mel"]["at_median"] < 1.4, "real clips that were not trained on"


def test_the_judge_does_not_depend_on_the_run_s_seed(run):
    _, _, judge = drums_of(run)
    model, material, _ = drums_of(run)
    (run / "classifier.safetensors").unlink()
    options = replace(load_recipe("drums").PRESETS["smoke"], run=run, seed=7)
    again = classify(model, material, options)
    assert again.sha256 == judge.sha256
    assert np.isfinite(judge.classifier.head.weight.detach().numpy()).all()
