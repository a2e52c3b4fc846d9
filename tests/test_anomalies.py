"""The step of a recipe that finds odd clips: what the page plays is what was scored."""

import shutil
from dataclasses import replace

import pytest
import torch

from sance_audio import AudioEBM, anomalies, audio
from sance_audio.preparation import Material, prepare
from sance_audio.recipe import load_recipe


@pytest.mark.parametrize("screened", [2000, 40])
def test_a_card_plays_the_clip_that_it_names(finished_run, tmp_path, monkeypatch, screened):
    """Also where only some of the clips are scored, and only the first seconds are read."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    recipe, model = load_recipe("drums"), AudioEBM.from_pretrained(run)
    options = replace(recipe.PRESETS["smoke"], run=run)
    material = prepare(recipe.corpus(options), model.features, options, fitted=True)
    monkeypatch.setattr(anomalies, "SCREENED", screened)
    read: list[float | None] = []
    whole = Material.wave

    def wave(self, split, clip, sample_rate, seconds=None):
        read.append(seconds)
        return whole(self, split, clip, sample_rate, seconds)

    odd = [("noise", 0.1 * torch.randn(8064, generator=torch.Generator().manual_seed(0)))]
    without = anomalies.detect(model, material, options)
    clips = {f"{c.label} ({c.name})": c for c in material.clips["test"]}
    for card in without["oddest"] + without["most_ordinary"]:
        sound, _ = audio.read(run / card["file"])
        expected = clips[card["label"]].source.load().waveform
        torch.testing.assert_close(sound, expected, atol=1e-3, rtol=0)
    monkeypatch.setattr(Material, "wave", wave)
    found = anomalies.detect(model, material, options, odd)
    assert read.count(anomalies.SHOWN) >= 11, "cards read no more than they play"
    assert len(found["auc"]) == 3
    assert {card["odd"] for card in found["most_ordinary"]} == {False}
