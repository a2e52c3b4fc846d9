"""The generation benchmark: peers learn classes, keep their clock, and are judged alike."""

import json
import math
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, small_model

from sance_audio import evaluation, metrics
from sance_audio.assessment import Judge

SHAPE, CLASSES = (16, 16), 2
NEEDS = {"ddpm": "diffusers", "pcd": "ebm"}
SMALL = {
    "ddpm": {"channels": [16, 16], "patch": 2, "steps": 5, "batch": 16, "rate": 1e-2},
    "specgan": {"width": 4, "latent": 8, "batch": 16, "rate": 3e-3, "average": 0.9},
    "pcd": {"channels": [8, 8], "depth": [1], "steps": 6, "slots": 12, "rate": 3e-3},
}
STEPS = {"ddpm": 40, "specgan": 30, "pcd": 50}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks import generation

    return generation


def toys(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Class 0 is loud in the upper half, class 1 in the lower; -1 elsewhere, and noise."""
    y = torch.arange(n) % CLASSES
    x = -torch.ones(n, 1, *SHAPE)
    x[y == 0, :, 8:] = 1.5
    x[y == 1, :, :8] = 1.5
    return x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), y


def made(bench, name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="needs pip install 'sance-audio[bench]'")
    torch.manual_seed(0)
    return bench.RIVALS[name](SHAPE, CLASSES, **SMALL[name])


@pytest.mark.parametrize("name", ["ddpm", "specgan", "pcd"])
def test_a_peer_learns_classes_and_draws_the_same_again(bench, name):
    x, y = toys()
    peer = made(bench, name)
    before = torch.get_rng_state()
    assert peer.fit(x, y, bench.Clock(math.inf, STEPS[name]), 0) == STEPS[name]
    asked = torch.arange(20) % CLASSES
    drawn = peer.draw(asked, 3)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is left alone"
    assert drawn.shape == (20, 1, *SHAPE)
    assert torch.isfinite(drawn).all()
    assert not drawn.requires_grad
    assert torch.equal(peer.draw(asked, 3), drawn)
    assert not torch.equal(peer.draw(asked, 4), drawn)
    tilt = drawn[:, 0, 8:].mean((1, 2)) - drawn[:, 0, :8].mean((1, 2))
    right = torch.where(asked == 0, tilt, -tilt) > 0
    assert right.float().mean() >= 0.9, tilt
    again = made(bench, name)
    again.load_state_dict(peer.state_dict())
    assert torch.equal(again.eval().draw(asked, 3), drawn), "all that it needs is in its weights"


@pytest.mark.parametrize("name", ["ddpm", "specgan", "pcd"])
def test_the_same_seed_trains_the_same_peer(bench, name):
    x, y = toys()
    states = []
    for seed in (0, 0, 1):
        peer = made(bench, name)
        peer.fit(x, y, bench.Clock(math.inf, 2), seed)
        states.append(peer.state_dict())
    first, same, other = states
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_a_clock_stops_by_time_or_by_steps(bench):
    clock = bench.Clock(math.inf, 4)
    assert list(clock) == [0, 0.25, 0.5, 0.75]
    assert clock.done == 4
    clock, began = bench.Clock(0.05), time.perf_counter()
    passed = [p for p in clock if time.sleep(0.004) is None]
    assert passed == sorted(passed)
    assert 0 <= passed[0] <= passed[-1] < 1
    assert 0.05 <= time.perf_counter() - began < 1
    assert bench.Clock(1.0).elapsed() < 1


def test_rates_fall_to_zero(bench):
    from benchmarks.generation_peers import falling

    assert [falling(p) for p in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]


def test_every_row_comes_once_before_any_comes_twice(bench):
    from benchmarks.generation_peers import batches

    rows = batches(torch.arange(5), torch.arange(5), 2)
    seen = torch.cat([next(rows)[0] for _ in range(5)])
    assert seen[:5].sort()[0].tolist() == seen[5:].sort()[0].tolist() == list(range(5))


def test_ranges_go_there_and_back(bench):
    peer = bench.SpecGAN(SHAPE, CLASSES)
    x = toys()[0]
    assert (peer.take_range(x).min(), peer.take_range(x).max()) == (-1, 1)
    assert torch.allclose(peer.give_range(peer.take_range(x)), x, atol=1e-5)


def test_specgan_refuses_what_it_cannot_draw(bench):
    for shape in ((16, 32), (24, 24), (4, 4)):
        with pytest.raises(ValueError, match="power of two"):
            bench.SpecGAN(shape, CLASSES)


def test_the_gradient_penalty_is_that_of_a_linear_critic(bench):
    """For a critic w . x the gradient is w everywhere: the penalty is (|w| - 1)^2."""
    torch.manual_seed(0)
    gan = bench.SpecGAN(SHAPE, CLASSES, width=8)
    w = torch.randn(1, *SHAPE)

    class Linear(torch.nn.Module):
        def forward(self, x, y):
            return (x * w).sum((1, 2, 3))

    gan.critic = Linear()
    real, y = torch.randn(6, 1, *SHAPE), torch.arange(6) % CLASSES
    gan.penalty = 0.0
    torch.manual_seed(1)
    without = gan.critic_loss(real, y)
    gan.penalty = 10.0
    torch.manual_seed(1)
    assert float(gan.critic_loss(real, y) - without) == pytest.approx(
        10 * (float(w.norm()) - 1) ** 2, rel=1e-5
    )


def given_of(tmp_path):
    """What a benchmark gives its generators, with clips of a small model."""
    from sance_audio.options import SMOKE, Options

    model = small_model()
    x, y = toys(48)
    options = Options(**SMOKE | {"run": tmp_path, "device": "cpu"})
    options = replace(options, train=replace(options.train, per_component=2), frames=16)
    material = SimpleNamespace(x={"train": x}, y={"train": y})
    corpus = SimpleNamespace(labels=("a", "b"))
    return SimpleNamespace(
        material=material, corpus=corpus, features=model.features, options=options
    )


def test_ours_is_planned_by_its_own_steps_and_stops(bench, tmp_path, monkeypatch):
    """Steps are planned from a few that are timed; a clock that lies is found out."""
    from benchmarks import generation_ours as own

    given, planned = given_of(tmp_path), []
    whole = own._train

    def watched(given, model, components, config, callback):
        planned.append(config.steps)
        whole(given, model, components, config, callback)

    monkeypatch.setattr(own, "_train", watched)
    clock = bench.Clock(1.0)
    steps, trained, stored = own.ours(given, clock, tmp_path)
    assert planned[0] == own.PROBE
    assert planned[1] >= steps == clock.done > 0
    assert clock.elapsed() < 3
    assert stored > trained > 0
    model = own.load(tmp_path, torch.device("cpu"))
    y = torch.arange(6) % 2
    drawn = own.draw(model, y, 0)
    assert drawn.shape == (6, 1, *SHAPE)
    assert torch.equal(own.draw(model, y, 0), drawn)
    assert own.ours(given, bench.Clock(math.inf, 3), tmp_path)[0] == 3
    monkeypatch.setattr(own, "_planned", lambda *_: 10**6)
    assert own.ours(given, bench.Clock(0.3), tmp_path)[0] < 10**6


def test_rows_and_differences(bench, capsys, monkeypatch):
    """A set less itself is exactly zero; copies are seen as copies; the better one is better."""
    from benchmarks import generation_table as tables

    torch.manual_seed(0)
    x, y = toys(120)
    few = partial(metrics.paired_interval, resamples=20)
    monkeypatch.setattr(metrics, "paired_interval", few)
    judge = Judge(evaluation.train_classifier(x, y, CLASSES, epochs=1), ("a", "b"), "0")
    material = SimpleNamespace(some=lambda split, most: (x[:80], torch.arange(80)))
    material.x = {"train": x[:80]}
    held = x[80:], y[80:]
    noisy = x[80:] + torch.randn(40, 1, *SHAPE)
    sets = {"ours": held, "same": held, "copies": (x[:40], y[:40]), "noisy": (noisy, y[80:])}
    found = tables.judged({"real": held, "again": held}, sets, judge, material)
    assert found["n_equal"] == 40
    assert "held_out" not in found["table"]["again"]
    assert found["less"].keys() == {"same", "copies", "noisy"}
    for value in found["less"]["same"].values():
        assert value == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["less"]["noisy"]["kid"]["high"] < 0
    assert found["table"]["copies"]["nearest"] == 0
    assert found["table"]["ours"]["nearest"] == 1
    about = {"minutes": 1.0, "device": "cpu", "seed": 0}
    made_by = {"trained": 1, "stored": 2, "minutes": 1.0, "steps": 3}
    made_by |= {"broken": 2, "seconds_per_1000": 4.0, "real_time_factor": 0.5}
    found["table"]["ours"] |= made_by
    json.dumps(found)
    tables.show(found | about)
    printed = capsys.readouterr().out
    assert "KID x1000" in printed
    assert "ours less" in printed
    assert "ours: 2 clips were not finite" in printed
    assert np.isfinite(found["table"]["noisy"]["kid"]["value"])


def test_jobs_train_once_and_draw(bench, tmp_path, monkeypatch):
    """Weights on the disk are what is drawn from; other settings are refused."""
    pytest.importorskip("ebm", reason="needs pip install 'sance-audio[bench]'")
    monkeypatch.setattr(bench, "prepared", lambda *_: given_of(tmp_path))
    started = []

    def jobs(listed, run, command, at_once, say):
        out = {}
        for job in listed:
            started.append(command(job)[-1])
            (run / job.name).mkdir(exist_ok=True)
            do = {"train": bench.train_job, "draw": bench.draw_job}[job.settings["do"]]
            out[job.name] = do(run / job.name, json.loads(json.dumps(job.settings)))
        return out

    monkeypatch.setattr(bench, "run_jobs", jobs)
    monkeypatch.setattr(bench, "SIZES", {"cpu": SMALL, "cuda": {}})
    o = bench.arguments([str(tmp_path), "--num", "12", "--steps", "2", "--run", str(tmp_path)])
    o.only = ["ours", "pcd"]
    trained, drawn = bench.made(o, given_of(tmp_path))
    assert started == [str(tmp_path / name) for name in ("ours", "pcd", "ours-12", "pcd-12")]
    assert trained["pcd"]["steps"] == trained["ours"]["steps"] == 2
    assert all(row["seconds"] > 0 and row["broken"] == 0 for row in drawn.values())
    for name in o.only:
        clips = bench.load_weights(tmp_path / f"{name}-12" / "clips.safetensors", "clips")[1]["x"]
        assert clips.shape == (12, 1, *SHAPE)


def test_clips_that_are_not_finite_are_silent_and_counted(bench, tmp_path, monkeypatch):
    class Broken(bench.Persistent):
        def draw(self, y, seed):
            x = super().draw(y, seed)
            x[3] = math.nan
            return x

    pytest.importorskip("ebm", reason="needs pip install 'sance-audio[bench]'")
    monkeypatch.setattr(bench, "RIVALS", {"pcd": Broken})
    for name in ("pcd", "pcd-12"):
        (tmp_path / name).mkdir()
    about = {"shape": list(SHAPE), "n_classes": CLASSES}
    peer = made(bench, "pcd")
    bench.save_weights(tmp_path / "pcd/model.safetensors", "pcd", about, peer.state_dict())
    job = {"maker": "pcd", "device": "cpu", "seed": 0, "num": 12, "size": SMALL["pcd"]}
    done = bench.draw_job(tmp_path / "pcd-12", job | {"n_classes": CLASSES})
    assert done["broken"] == 1
    x = bench.load_weights(tmp_path / "pcd-12/clips.safetensors", "clips")[1]["x"]
    assert (x[3] == bench.SILENT).all()
    assert (x[[0, 1, 2, 4]] > bench.SILENT).all()


def test_an_unknown_generator_is_named(bench, capsys):
    with pytest.raises(SystemExit):
        bench.arguments(["DIR", "--only", "ours,vae"])
    assert "no generator named 'vae'" in capsys.readouterr().err
    assert bench.arguments(["DIR", "--only", "pcd,ours"]).only == ["ours", "pcd"]
