"""Truncation: clips that are not recognised surely enough are drawn anew."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_model

from sance_audio import AudioEBM, cli
from sance_audio.detection.storage import digest_of
from sance_audio.labels import LabelNetwork, train_labels, truncated
from sance_audio.preparation import build, prepare
from sance_audio.recipe import load_recipe
from sance_audio.state import fingerprint


def normals(classes, seeds):
    """Clips of one number, N(class, 1) of their seed alone."""
    drawn = [
        y + torch.randn(1, 1, 1, generator=torch.Generator().manual_seed(s))
        for y, s in zip(classes, seeds, strict=True)
    ]
    return torch.stack(drawn), torch.tensor(classes)


def told(x):
    """log q(y | x) of two classes, from the number: minus its distance to each."""
    return -(x.flatten(1) - torch.tensor([[0.0, 1.0]])).abs()


def test_what_is_kept_has_the_truncated_law():
    """Kept where |x - y| <= 1: a normal variable within its standard deviation, whose mean square
    is 1 - 2 phi(1) / (1 - 2 Phi(-1)) = 0.2911.
    """
    classes = [0, 1] * 2000
    x, c = truncated(normals, told, classes, list(range(4000)), -1.0, 16)
    apart = x.flatten() - torch.tensor(classes)
    assert float(apart.abs().max()) <= 1
    assert torch.equal(c, torch.tensor(classes))
    square = apart.square()
    error = float(square.std()) / len(square) ** 0.5
    assert abs(float(square.mean()) - 0.29113) < 4 * error
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / len(apart) ** 0.5


def test_without_a_limit_every_clip_is_its_first_draw():
    x, _ = truncated(normals, told, [0, 1, 1], [5, 6, 7], -torch.inf, 16)
    assert torch.equal(x, normals([0, 1, 1], [5, 6, 7])[0])


def test_a_clip_keeps_its_place_in_every_attempt():
    """Row i may depend on its place modulo the chunk, and on nothing else."""

    def placed(classes, seeds):
        x, c = normals(classes, seeds)
        return x + 1e-3 * (torch.arange(len(x)) % 16).view(-1, 1, 1, 1), c

    seeds = list(range(100, 140))
    many, _ = truncated(placed, told, [0] * 40, seeds, -0.3, 16)
    for n in (1, 3, 17):
        few, _ = truncated(placed, told, [0] * n, seeds[:n], -0.3, 16)
        assert torch.equal(few, many[:n])


def test_what_is_never_kept_is_the_surest_of_all_attempts():
    calls = []

    def counted(classes, seeds):
        calls.append(list(seeds))
        return normals(classes, seeds)

    with pytest.warns(UserWarning, match="1 of 1 clips were not recognised surely enough"):
        x, _ = truncated(counted, told, [0], [9], 1.0, 16)
    assert len(calls) == 32
    assert len({s for (s,) in calls}) == 32
    best = min(float(normals([0], seeds)[0].abs()) for seeds in calls)
    assert float(x.abs()) == best


def test_labels_are_learnt_and_unsure_of_what_lies_between():
    """Two classes of tones at other bands: held-out ones are told, halves of both are not."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 2
    x = 0.3 * torch.randn(80, 1, 32, 32, generator=g)
    x[y == 0, :, 4:8] += 2
    x[y == 1, :, 24:28] += 2
    network = train_labels(x[:60], y[:60], 2, epochs=12, batch=10)
    log_q = network(x[60:])
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(20))
    assert (log_q.argmax(1) == y[60:]).all()
    sure = log_q[range(20), y[60:]].exp().median()
    both = network((x[60:70] + x[61:71]) / 2).exp().amax(1).median()
    assert sure > 0.85, float(sure)
    assert both < sure - 0.05, (float(both), float(sure))
    again = train_labels(x[:60], y[:60], 2, epochs=12, batch=10)
    assert torch.equal(again(x[60:]), log_q)


def recognising():
    model = small_model()
    torch.manual_seed(0)
    model.label_network = LabelNetwork(3, (8, 8, 8)).eval().requires_grad_(False)
    model.sureness = torch.linspace(-1.3, -0.9, 50)
    return model


def test_a_model_keeps_its_label_network(tmp_path):
    model = recognising()
    plain = model.generate(8, steps=2)
    assert torch.equal(model.generate(8, steps=2, truncation=0.0), plain)
    model.truncation = 0.6
    kept = model.generate(8, steps=2)
    assert not torch.equal(kept, plain)
    model.save_pretrained(tmp_path)
    again = AudioEBM.from_pretrained(tmp_path)
    assert again.truncation == 0.6
    assert torch.equal(again.generate(8, steps=2), kept)
    assert torch.equal(again.generate(3, steps=2), kept[:3])
    x, _ = model.draw([0, 1, 2], [1, 2, 3], 0, reference_only=True)
    other, _ = model.draw([0, 1, 2], [1, 2, 3], 0, reference_only=True, truncation=0.0)
    assert torch.equal(x, other), "the reference alone is as it was fitted"


def test_truncation_makes_no_other_model_of_a_detector_s():
    assert digest_of(recognising()) == digest_of(small_model())
    model = recognising()
    model.truncation = 0.5
    assert digest_of(model) == digest_of(small_model())
    model.steps += 1
    assert digest_of(model) != digest_of(small_model())


def test_what_has_no_two_labels_cannot_be_truncated(finished_run, tmp_path):
    recipe = load_recipe("drums")
    options = replace(recipe.PRESETS["smoke"], run=tmp_path / "run", truncation=0.1)
    corpus = recipe.corpus(options)
    one = replace(corpus, labels=(), clips=[replace(c, label="") for c in corpus.clips])
    model = AudioEBM.from_pretrained(finished_run)
    material = prepare(one, model.features, options, frames=model.frames, fitted=True)
    with pytest.raises(ValueError, match=r"--truncation 0.1: needs two labels"):
        build(material, one, model.features, options)


def test_a_checkpoint_from_before_truncation_goes_on():
    """It has the older hash of model and data; how a model is sampled changes no hash of today."""
    model = small_model()
    x, c = torch.randn(30, 1, *model.shape), torch.arange(30) % 3
    now, before = fingerprint(model, x, c)
    old = {k: v for k, v in model.settings.items() if k != "label_network"} | {"compute": None}
    old["model"] = {k: v for k, v in old["model"].items() if k != "truncation"}
    digest = hashlib.sha256(repr(old).encode())
    learnt = ("density.network.", "density.log_z")
    fixed = [t for name, t in model.state_dict().items() if not name.startswith(learnt)]
    for tensor in (x, c, *fixed):
        digest.update(tensor.contiguous().numpy().tobytes())
    assert before == digest.hexdigest()[:16]
    model.steps, model.truncation = 7, 0.5
    assert fingerprint(model, x, c)[0] == now
    model.peak = 0.3
    assert fingerprint(model, x, c)[0] != now


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match="share from 0 to less than 1"):
        recognising().generate(1, truncation=share)


def test_a_model_that_recognises_nothing_cannot_truncate():
    with pytest.raises(ValueError, match="--truncation"):
        small_model().generate(1, truncation=0.1)
    model = small_model()
    model.truncation = 0.1  # of a run that is still being trained
    assert torch.equal(model.generate(2, steps=1), small_model().generate(2, steps=1))


def test_a_run_with_truncation(finished_run, tmp_path, capsys):
    """The recipe again, from where its training ended, and by two judges."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    recipe = load_recipe("drums")
    recipe.main(replace(recipe.PRESETS["smoke"], run=run, truncation=0.3, label_epochs=1))
    table = json.loads((run / "evaluation.json").read_text())["table"]
    assert list(table)[-3:] == ["reference only", "reference, truncated", "ours"]
    assert "ours less reference truncated alike" in capsys.readouterr().out
    model = AudioEBM.from_pretrained(run)
    assert model.truncation == 0.3
    assert len(model.sureness) == held_out(run)
    assert np.all(np.diff(model.sureness) >= 0)
    cli.main(["evaluate", str(run), "--num", "20", "--judges", "0", "1"])
    one, two = (json.loads((run / f"evaluation{n}.json").read_text()) for n in ("", "_1"))
    assert one["classifier"]["sha256"] != two["classifier"]["sha256"]
    assert one["generation"] == two["generation"], "the same clips"
    for found, folder in ((one, "evaluation/"), (two, "evaluation_1/")):
        for pair in found["memorisation"]["closest"]:
            assert pair["generated"].startswith(folder)
            assert (run / pair["generated"]).is_file()
    cli.main(["generate", str(run), "--num", "3", "--out", str(tmp_path / "a")])
    cli.main(
        ["generate", str(run), "--num", "3", "--out", str(tmp_path / "b"), "--truncation", "0"]
    )
    assert len(list((tmp_path / "a").iterdir())) == len(list((tmp_path / "b").iterdir())) == 3


def held_out(run) -> int:
    return json.loads((run / "preparation.json").read_text())["rows"]["valid"]
