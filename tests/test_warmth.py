"""The temperature of generated clips: what it is chosen by, and that it is kept."""

import json
from dataclasses import replace

import pytest

from sance_audio import warmth
from sance_audio.assessment import Judge, classify
from sance_audio.datasets import drums
from sance_audio.model import AudioEBM
from sance_audio.options import options_from
from sance_audio.preparation import prepare
from sance_audio.recipe import load_recipe


@pytest.fixture
def finished(finished_run, tmp_path, monkeypatch):
    """A finished run's model, judge, clips and options; few clips, a folder of its own."""
    recipe = load_recipe("drums")
    settings = json.loads((finished_run / "config.json").read_text())
    options = replace(options_from(settings, recipe.PRESETS["smoke"]), run=finished_run)
    model = AudioEBM.from_pretrained(finished_run)
    corpus = recipe.corpus(options)
    material = prepare(corpus, model.features, options, frames=model.frames, fitted=True)
    judge = classify(model, material, options)
    monkeypatch.setattr(warmth, "CLIPS", 12)
    monkeypatch.setattr(warmth, "FEWEST", 4)
    return model, judge, material, replace(options, run=tmp_path)


def test_the_lowest_of_those_as_good_as_the_best_is_chosen_and_kept(finished):
    model, judge, material, options = finished
    assert isinstance(judge, Judge)
    found = warmth.temper(model, judge, material, replace(options, sampling_temperature=None))
    for name in ("ours", "reference only"):
        curve = found["curves"][name]
        assert [row["temperature"] for row in curve] == list(warmth.TEMPERATURES)
        fids = {row["temperature"]: row["fid"] for row in curve}
        best = min(fids.values())
        below = [t for t in fids if t < found[name]]
        assert fids[found[name]] <= 1.05 * best
        assert all(fids[t] > 1.05 * best for t in below)
        assert all(0 <= row["accuracy"] <= 1 for row in curve)
    again = AudioEBM.from_pretrained(options.run)
    assert again.sampling_temperature == found["ours"] == model.sampling_temperature
    assert again.reference_temperature == found["reference only"]


def test_a_temperature_that_was_asked_for_is_taken(finished):
    model, judge, material, options = finished
    found = warmth.temper(model, judge, material, replace(options, sampling_temperature=0.75))
    assert (found["ours"], found["reference only"], found["curves"]) == (0.75, 1.0, {})
    assert AudioEBM.from_pretrained(options.run).sampling_temperature == 0.75


def test_few_validation_clips_choose_nothing(finished, monkeypatch):
    model, judge, material, options = finished
    monkeypatch.setattr(warmth, "FEWEST", 10_000)
    found = warmth.temper(model, judge, material, replace(options, sampling_temperature=None))
    assert (found["ours"], found["reference only"]) == (1.0, 1.0)


def test_a_model_s_own_temperature_is_what_it_draws_at(finished):
    model = finished[0]
    plain = model.generate(2)
    model.sampling_temperature = 0.5
    assert (model.generate(2, temperature=1.0) == plain).all()
    assert (model.generate(2) != plain).any()
    assert (model.generate(2) == model.generate(2, temperature=0.5)).all()
    assert model.sample_rate == drums.SAMPLE_RATE
