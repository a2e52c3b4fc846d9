import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import random_reference

from sance_audio.cli import main as command_line
from sance_audio.datasets.densities import DENSITIES
from sance_audio.energy import ReferencedEnergy
from sance_audio.files import read_jsonl
from sance_audio.ledger import Ledger
from sance_audio.networks import DenseEnergy
from sance_audio.noise import SelfNoise
from sance_audio.recipe import load_recipe
from sance_audio.toys import PointModel, grid, log_density_on_grid, total_variation


def small_model(components: int = 1) -> PointModel:
    torch.manual_seed(0)
    network = DenseEnergy(components, width=16, depth=2, frequencies=4)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    reference = random_reference(components, dimensions=2, rank=1)
    return PointModel(ReferencedEnergy(reference, network))


def gaussian(x: torch.Tensor, mean: float = 0.0) -> torch.Tensor:
    return -0.5 * (x - torch.tensor([mean, 0.0])).square().sum(1)


def test_the_grid_is_where_the_function_is():
    points = grid(3.0, 4).view(4, 4, 2)
    assert points[0, :, 0].tolist() == [-2.25, -0.75, 0.75, 2.25], "x_1 rises along a row"
    assert points[:, 0, 1].tolist() == [-2.25, -0.75, 0.75, 2.25], "x_2 from row to row"


def test_log_z_of_a_gaussian_is_known():
    values, log_z = log_density_on_grid(lambda x: gaussian(x) + 3.0, 8.0)
    assert log_z == pytest.approx(3.0 + math.log(2 * math.pi), abs=1e-6)
    assert float(values.exp().sum()) * (16 / 256) ** 2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_z_of_a_model_is_relative_to_its_base(temperature, generator):
    """Importance sampling from the base, which is sampled exactly, agrees; F = 0 gives 0."""
    model = small_model()
    model.density.temperature = temperature
    _, log_z = log_density_on_grid(model, 15.0, 512)
    c = torch.zeros(100_000, dtype=torch.long)
    x = model.density.base.sample(c, generator).view(-1, 1, 1, 2)
    with torch.no_grad():
        weights = (-model.density.learnt(x, c)).double().exp()
    error = float(weights.std() / weights.mean()) / len(c) ** 0.5
    assert abs(math.log(weights.mean()) - log_z) < 5 * error
    torch.nn.init.zeros_(model.density.network.head.weight)
    assert log_density_on_grid(model, 15.0, 512)[1] == pytest.approx(0, abs=1e-3)


def test_total_variation_of_two_gaussians_is_known():
    p, q = (log_density_on_grid(lambda x, m=m: gaussian(x, m), 8.0)[0] for m in (0.0, 1.0))
    half_a_unit = math.erf(0.5 / 2**0.5)  # 2 Phi(1 / 2) - 1
    assert total_variation(p, q, 8.0) == pytest.approx(half_a_unit, abs=1e-4)
    assert total_variation(p, p, 8.0) == 0


def test_draws_have_the_density_of_the_model(generator):
    model = small_model()
    x = model.draw(4000, generator, steps=200, step_size=0.2)
    log_p, _ = log_density_on_grid(model, 8.0)
    p = (log_p.exp() * (16 / 256) ** 2).flatten()
    points = grid(8.0, 256)
    for moment in (lambda x: x, lambda x: x.square(), lambda x: x[:, :1] * x[:, 1:]):
        expected = (p[:, None] * moment(points)).sum(0)
        found = moment(x.double())
        assert ((found.mean(0) - expected).abs() < 5 * found.std(0) / len(x) ** 0.5).all()


def test_a_grid_takes_one_component():
    with pytest.raises(ValueError, match="3 components"):
        log_density_on_grid(small_model(3), 8.0)


def test_smoke(tmp_path, capsys):
    run = tmp_path / "run"
    command = ["train", "toy2d", "--preset", "smoke", "--run", str(run), "--density"]
    command_line([*command, "rings"])
    first = json.loads((run / "results.json").read_text())["densities"]
    assert list(first) == ["rings"]
    command_line([*command, "all"])  # goes on: what is finished stands
    results = json.loads((run / "results.json").read_text())["densities"]
    assert set(results) == set(DENSITIES)
    assert results["rings"] == first["rings"]
    printed = capsys.readouterr().out
    for name, figures in results.items():
        assert f"| {name} | {figures['total_variation']:.3f} |" in printed
        assert all(math.isfinite(value) for value in figures.values())
        rows = read_jsonl(run / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert (run / "densities.png").read_bytes().startswith(b"\x89PNG")
    recipe = load_recipe("toy2d")
    options = replace(recipe.PRESETS["smoke"], run=run)
    with pytest.raises(ValueError, match="other settings"):
        recipe.main(replace(options, seed=1))
    command_line(["train", "--help"])
    assert "toy2d" in capsys.readouterr().out


def test_a_short_run_learns_more_than_the_reference_knows(tmp_path):
    recipe = load_recipe("toy2d")
    short = replace(
        recipe.PRESETS["cpu"].train, steps=300, per_component=256, langevin_steps=20, rate=1e-3
    )
    options = replace(recipe.PRESETS["cpu"], run=tmp_path / "run", density="banana", train=short)
    recipe.main(options)
    found = json.loads((options.run / "results.json").read_text())["densities"]["banana"]
    assert found["total_variation"] < 0.4 * found["reference_total_variation"]


def ledger_along(weighted: bool, end: float, *, seed: int = 0) -> tuple[Ledger, PointModel]:
    """The ledger of chains that follow an energy which grows to `end` times a random one, over
    forty refreshes; two short steps at each, so that they lag.
    """
    g = torch.Generator().manual_seed(seed)
    model = small_model()
    head = model.density.network.head.weight
    with torch.no_grad():
        whole = end * torch.randn(head.shape, generator=g)
        head.zero_()
    settings = {"per_component": 2048, "groups": 2, "pool": 2, "weighted": weighted}
    noise = SelfNoise(model.density, model.shape, steps=2, step_size=0.05, generator=g, **settings)
    network, ledger = model.density.network, Ledger()
    noise.refresh(network, g)
    for k in range(1, 41):
        with torch.no_grad():
            head.copy_(k / 40 * whole)
        noise.measure(network)
        noise.refresh(network, g, ledger)
    return ledger, model


@pytest.mark.parametrize("end", [0.5, 2.0])
def test_the_ledger_of_weighted_chains_agrees_with_the_grid(end, capsys):
    ledger, model = ledger_along(True, end)
    plain, _ = ledger_along(False, end)
    _, log_z = log_density_on_grid(model, 12.0, 512)
    error = ledger.mean - log_z
    with capsys.disabled():
        print(
            f"\nlog Z on the grid {log_z:.3f}: weighted ledger off by {error:+.3f} (its standard "
            f"error {ledger.standard_error:.3f}), plain by {plain.mean - log_z:+.3f} "
            f"({plain.standard_error:.3f})"
        )
    assert abs(error) < min(0.5, 3 * ledger.standard_error)
    assert abs(plain.mean - log_z) > 3 * plain.standard_error, "and it does not know it"


@pytest.mark.slow
def test_total_variation_to_the_truth(tmp_path):
    recipe = load_recipe("toy2d")
    options = replace(recipe.PRESETS["cpu"], run=tmp_path / "run")
    assert options.train.interval == 10
    assert options.train.loss == "logistic"
    assert options.train.noise == "self"
    recipe.main(options)
    found = json.loads((options.run / "results.json").read_text())["densities"]
    assert {name for name in DENSITIES if found[name]["total_variation"] >= 0.08} == set()
    assert {name for name in DENSITIES if found[name]["cpu_seconds"] >= 60} == set()
    for name, figures in found.items():
        error = abs(figures["ledger"] - figures["log_z"])
        assert error < min(0.5, 3 * figures["ledger_error"]), name
