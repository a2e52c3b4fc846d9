"""Sums of energies: the product of Gaussians against dense algebra, and what a sum draws."""

import sys
from dataclasses import replace

import pytest
import soundfile
import torch
from conftest import ROOT, random_reference, small_model
from test_recipes import fsdd_tree
from torch import Tensor

from sance_audio import AudioEBM, cli
from sance_audio.composition import ComposedEnergy, compose, draw, product
from sance_audio.energy import ReferencedEnergy, Sum
from sance_audio.gaussian import ComponentGaussian
from sance_audio.recipe import load_recipe
from sance_audio.reference import GaussianReference

CELLS = 256
LIMIT = 6.5
"""Standard errors that no one of 256 x 256 numbers passes but once in 300,000 times."""


def gaussians(dimensions: int, rank: int, seed: int, count: int = 3) -> ComponentGaussian:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    basis = torch.linalg.qr(normal(count, dimensions, rank))[0]
    remainder = 0.05 + 0.2 * normal(count).abs()
    eigenvalues = remainder[:, None] + 3 * normal(count, rank).abs()
    basis[:, :, -1], eigenvalues[:, -1] = 0, remainder  # as where a component has fewer directions
    return ComponentGaussian(normal(count, dimensions), basis, eigenvalues, remainder)


def dense(g: ComponentGaussian) -> Tensor:
    """The covariances `(B, D, D)`."""
    eye = torch.eye(g.mean.shape[1], dtype=g.mean.dtype)
    excess = (g.eigenvalues - g.remainder[:, None]).diag_embed()
    return g.remainder[:, None, None] * eye + g.basis @ excess @ g.basis.mT


@pytest.mark.parametrize(
    ("dimensions", "rank", "weights"),
    [(12, 3, (1.0, 1.0)), (12, 3, (0.3, 0.7, 0.5)), (5, 4, (1.0, 0.5)), (12, 3, (2.0, -0.05))],
)
def test_a_product_of_gaussians_is_what_dense_algebra_says(dimensions, rank, weights):
    each = [gaussians(dimensions, rank, seed) for seed in range(len(weights))]
    found, log_z = product(each, weights)
    precision = sum(w * dense(g).inverse() for g, w in zip(each, weights, strict=True))
    pull = sum(
        w * torch.linalg.solve(dense(g), g.mean) for g, w in zip(each, weights, strict=True)
    )
    mean = torch.linalg.solve(precision, pull)
    assert torch.allclose(found.mean, mean, atol=1e-9)
    assert torch.allclose(dense(found), precision.inverse(), atol=1e-9)
    x = torch.randn(3, dimensions, dtype=torch.float64)
    both = sum(w * g.log_prob(x) for g, w in zip(each, weights, strict=True))
    assert torch.allclose(both, log_z + found.log_prob(x), atol=1e-8)


def test_log_z_of_two_is_their_overlap():
    a, b = (gaussians(8, 2, seed) for seed in (0, 1))
    expected = torch.distributions.MultivariateNormal(a.mean, dense(a) + dense(b)).log_prob(b.mean)
    assert torch.allclose(product([a, b], (1.0, 1.0))[1], expected, atol=1e-9)


def test_dividing_by_what_is_narrower_is_refused():
    narrow, wide = gaussians(8, 2, 0), gaussians(8, 2, 1)
    wide.eigenvalues, wide.remainder = 50 * wide.eigenvalues, 50 * wide.remainder
    product([narrow, wide], (1.0, -1.0))
    with pytest.raises(ValueError, match="leave no density"):
        product([wide, narrow], (1.0, -1.0))


def other_model(trained: bool = False, components: int = 1) -> AudioEBM:
    """A model of the same log-mels as `small_model`, with other classes."""
    model, g = small_model(trained), torch.Generator().manual_seed(2)
    some = random_reference(2 * components)
    reference = GaussianReference(
        0.5 * torch.randn(some.mean.shape, generator=g),
        some.basis.flip(1),
        some.eigenvalues.flip(1),
        some.remainder.flip(0),
        classes=torch.arange(2).repeat_interleave(components),
    )
    network = type(model.density.network)(2 * components, channels=(8, 8), depth=(1,), positions=1)
    if trained:
        torch.nn.init.normal_(network.head.weight, std=0.5)
    density = ReferencedEnergy(reference, network)
    return AudioEBM(model.features, density, ("x", "y"), frames=16, steps=5).eval()


def test_a_composed_energy_is_the_sum_up_to_log_z():
    models, weights = [small_model(), other_model(trained=True)], (0.4, 0.8)
    c = torch.tensor([[0, 1], [2, 0]])
    given = [m.density.given(own) for m, own in zip(models, c.unbind(1), strict=True)]
    base, log_z = product([e.base.given(e.c) for e in given], weights)
    energy = ComposedEnergy(given, weights, base)
    x = torch.randn(2, 1, 16, 16)
    expected = Sum(given, weights)(x)
    assert torch.allclose(energy(x) - log_z, expected, atol=1e-2, rtol=1e-5)
    assert torch.equal(energy.rows(slice(1, 2))(x[1:]), energy(x)[1:])


def test_without_networks_draws_have_the_mean_and_covariance_of_the_product():
    models, n = [small_model(trained=False), other_model()], 800
    x = draw(models, [(2, 1)] * n, range(n), weights=(1.0, 0.7), steps=3).flatten(1).double()
    each = [m.reference.given(torch.tensor([y])) for m, y in zip(models, (2, 1), strict=True)]
    expected, _ = product(each, (1.0, 0.7))
    cov = dense(expected)[0].double()
    values, vectors = torch.linalg.eigh(cov)
    z = (x - expected.mean.double()) @ vectors / values.sqrt()
    assert float((z.mean(0) * n**0.5).abs().max()) < LIMIT
    spread = z.T @ z / n - torch.eye(CELLS)
    error = (torch.ones(CELLS, CELLS) + torch.eye(CELLS)).sqrt() / n**0.5
    assert float((spread / error).abs().max()) < LIMIT


def test_components_are_drawn_by_weight_times_overlap():
    models, n = [small_model(trained=False), other_model(components=2)], 400
    r = models[1].reference  # two components of "y" that differ in their means
    for own in (r.basis, r.eigenvalues, r.remainder, r.mean):
        own[3] = own[2]
    r.mean[3] += 2.5 * r.basis[3, :, 0]
    r.weight.copy_(torch.tensor([0.3, 0.2, 0.1, 0.4]))
    x = draw(models, [(0, 1)] * n, range(n), weights=(1.0, 1.0), reference_only=True).flatten(1)
    first, logs, means = models[0].reference.given(torch.tensor([0])), [], []
    for c, weight in ((2, 0.2), (3, 0.8)):
        found, log_z = product([first, r.given(torch.tensor([c]))], (1.0, 1.0))
        logs.append(float(log_z) + torch.tensor(weight).log())
        means.append(found)
    share = float(torch.stack(logs).softmax(0)[0])
    assert 0.05 < share < 0.95
    seen = torch.stack([g.log_prob(x) for g in means], 1)
    posterior = (seen + torch.stack(logs)).softmax(1)[:, 0]
    assert float((posterior.mean() - share).abs()) < 5 * (share * (1 - share) / n) ** 0.5 + 1e-3


def test_weights_that_sum_to_one_count_what_is_common_once():
    model = small_model()
    x = draw([model], [(1,)] * 3, [5, 6, 7])
    same = draw([model, model], [(1, 1)] * 3, [5, 6, 7])
    assert torch.allclose(x, same, atol=1e-3), "a model with itself is that model"


def test_clips_do_not_depend_on_how_many_there_are():
    parts = [(small_model(), "b"), (other_model(trained=True, components=2), 1)]
    few, many = (compose(parts, n, torch.Generator().manual_seed(3)) for n in (2, 18))
    assert few.shape == (2, parts[0][0].window)
    assert torch.equal(few, many[:2])
    assert not torch.equal(few[0], few[1])
    alone = compose(parts, 2, torch.Generator().manual_seed(3), reference_only=True)
    assert not torch.equal(alone, few)


def test_what_does_not_go_together_is_refused():
    model, other = small_model(), other_model()
    for change, words in (
        (lambda m: m.features.std.mul_(1.1), r"std 1.1, not 1"),
        (lambda m: setattr(m, "peak", None), r"peak None, not 0.5"),
        (lambda m: setattr(m.features, "f_min", 40.0), r"f_min 40.0, not 0.0"),
    ):
        odd = other_model()
        change(odd)
        with pytest.raises(ValueError, match=words):
            compose([(model, "a"), (odd, "x")], 2)
    for parts, n, how, words in (
        ([(model, "a"), (other, "z")], 2, {}, "label 'z': the model knows x, y"),
        ([(model, 7)], 2, {}, "label 7 is none of the 3 classes"),
        ([(model, "a")], 0, {}, "at least 1"),
        ([(model, "a")], 2, {"weights": (1.0, 1.0)}, "2 weights for 1 models"),
        ([(model, "a")], 2, {"steps": -1}, "cannot be negative"),
        ([], 2, {}, "must be at least 1, found 2 and 0"),
    ):
        with pytest.raises(ValueError, match=words):
            compose(parts, n, **how)


def test_generate_with_another_run_writes_clips_of_both(tmp_path, capsys):
    small_model().save_pretrained(tmp_path / "first")
    other_model(trained=True).save_pretrained(tmp_path / "second")
    first, second = (str(tmp_path / name) for name in ("first", "second"))
    command = ["generate", first, "--label", "b", "--num", "2", "--out", str(tmp_path / "clips")]
    cli.main([*command, "--with", f"{second}:y", "--with", f"{first}:b"])
    assert "2 clips of 0.24 s" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert names == ["0000_b_y_b.wav", "0001_b_y_b.wav"]
    parts = [
        (AudioEBM.from_pretrained(run), y) for run, y in ((first, 1), (second, 1), (first, 1))
    ]
    expected = compose(parts, 2, torch.Generator().manual_seed(0))[1]
    wave, _ = soundfile.read(tmp_path / "clips" / names[1], dtype="float32")
    expected = expected * min(1.0, 0.999 / float(expected.abs().max()))
    assert torch.allclose(torch.from_numpy(wave), expected, atol=1e-3)
    for arguments, words in (
        ([*command, "--with", second], "expected RUN:LABEL"),
        ([*command, "--with", f"{second}:z"], "label 'z': the model knows x, y"),
        (["generate", first, "--with", f"{second}:y"], "--with needs --label"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_composition_benchmark_judges_pairs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks import composition as bench

    recipe, data = load_recipe("fsdd"), fsdd_tree(tmp_path / "data")
    runs = {by: tmp_path / by for by in ("digit", "speaker")}
    for by, run in runs.items():
        recipe.main(replace(recipe.PRESETS["smoke"], run=run, data=data, by=by))
    monkeypatch.setattr(bench, "PAIR", ("7", "bob"))
    monkeypatch.setattr(bench, "PAIR_CLIPS", 3)
    capsys.readouterr()
    bench.main(runs["digit"], runs["speaker"], data, 20, 0, None)
    printed = capsys.readouterr().out
    for row in ("real test clips", "speaker energy alone", "sum of energies", "7 + bob, sum of"):
        assert row in printed
    with pytest.raises(ValueError, match="expected a speaker"):
        bench.side(runs["digit"], data, "speaker")
