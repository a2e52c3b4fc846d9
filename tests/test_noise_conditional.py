"""Noise-conditional models: laws of their levels, of their losses, and every command on a run."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_reference, small_model
from test_recipes import fsdd_tree

from sance_audio import AudioEBM, TrainConfig, cli, conditional_training, train
from sance_audio.conditional_training import Batch, denoising_loss, ranked, train_conditional
from sance_audio.divergences import objective
from sance_audio.energy import ReferencedEnergy
from sance_audio.features import LogMel
from sance_audio.files import read_jsonl
from sance_audio.networks import NoiseConditionalEnergy, spread
from sance_audio.noise.recovery import RecoveryNoise
from sance_audio.options import Options
from sance_audio.recipe import load_recipe
from sance_audio.samplers import descend, recover
from sance_audio.state import Diverged
from sance_audio.weights import WeightsError, load_weights, save_weights
from sance_audio.workflow import start

SIGMA = 0.2
CONFIG = TrainConfig(
    steps=12, langevin_steps=2, batch=8, warm=0.5, checkpoint_every=4, sample_every=0, rate=1e-3
)


def conditional_energy(trained: bool = True, levels: int = 5) -> ReferencedEnergy:
    torch.manual_seed(0)
    reference = random_reference()
    network = NoiseConditionalEnergy.of(
        reference, sigma=SIGMA, sigma_max=4.0, levels=levels, widths=(8, 16)
    )
    if trained:
        torch.nn.init.normal_(network.head.weight, std=0.02)
    return ReferencedEnergy(reference, network)


def conditional_model(trained: bool = True, rate: int = 4000) -> AudioEBM:
    features = LogMel(rate, n_fft=256, hop_length=64, n_mels=16)
    energy = conditional_energy(trained)
    return AudioEBM(features, energy, ("a", "b", "c"), frames=16, steps=6).eval()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of the reference, a little louder."""
    components = torch.arange(30) % 3
    x = random_reference().sample(components, torch.Generator().manual_seed(3))
    return 0.5 + x.view(-1, 1, 16, 16), components


def weights(model: AudioEBM) -> torch.Tensor:
    return torch.cat([p.flatten() for p in model.density.network.parameters()])


def run(tmp_path, config=CONFIG, name="run", **settings):
    model = conditional_model(trained=False)
    rows = train_conditional(model, *data(), config, tmp_path / name, progress=False, **settings)
    return model, rows


def covariance(reference, c: int) -> torch.Tensor:
    u, d = reference.basis[c], reference.eigenvalues[c] - reference.remainder[c]
    return (u * d) @ u.T + reference.remainder[c] * torch.eye(len(u))


def whitened(x: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> torch.Tensor:
    """x `(n, D)` as standard normal numbers, if it is N(mean, cov)."""
    root = torch.linalg.cholesky(cov.double())
    return torch.linalg.solve_triangular(root, (x.double() - mean.double()).T, upper=False).T


def assert_standard(z: torch.Tensor) -> None:
    """Mean 0 and variance 1 within 5 standard errors, which see a variance 5 % off."""
    n = z.numel()
    assert abs(float(z.mean())) < 5 / n**0.5
    assert abs(float(z.square().mean()) - 1) < 5 * (2 / n) ** 0.5 < 0.05


@pytest.mark.parametrize("steps", [0, 3])
def test_without_a_network_a_conditional_draw_has_the_law_of_the_reference(steps, generator):
    energy = conditional_energy(trained=False)
    levels, n, k = energy.network.levels, 600, 1
    y = 3 * torch.randn(1, 1, 16, 16, generator=generator)
    sigma, above = levels[1], levels[2]
    rows = torch.full((n,), k)
    x = recover(
        *(energy, y.expand(n, -1, -1, -1), rows, sigma.expand(n), above.expand(n), steps),
        step_size=0.3,
        generator=generator,
    )
    cov = covariance(energy.reference, k).double()
    cov = cov + (sigma**2 - SIGMA**2) * torch.eye(256)
    delta = above**2 - sigma**2
    precision = torch.linalg.inv(cov) + torch.eye(256) / delta
    mean = energy.reference.mean[k].double()
    mean = mean + cov @ torch.linalg.solve(
        cov + delta * torch.eye(256), y.flatten().double() - mean
    )
    assert_standard(whitened(x.flatten(1), mean, torch.linalg.inv(precision)))


def test_without_a_network_the_way_down_ends_at_the_reference(generator):
    energy = conditional_energy(trained=False)
    n, k = 600, 2
    x = descend(
        *(energy, torch.randn(n, 256, generator=generator), torch.full((n,), k), (16, 16), 9),
        step_size=0.3,
        generator=generator,
    ).flatten(1)
    reference = energy.reference
    assert_standard(whitened(x, reference.mean[k], covariance(reference, k)))
    along = (x - reference.mean[k]) @ reference.basis[k] / reference.eigenvalues[k].sqrt()
    assert abs(float(along.square().mean()) - 1) < 5 * (2 / along.numel()) ** 0.5


def test_the_reference_at_a_level_is_the_one_of_noisy_data(generator):
    reference = random_reference()
    x = torch.randn(4, 1, 16, 16, generator=generator)
    c, v = torch.tensor([0, 1, 2, 1]), 1.7
    noised = reference.noised(v)
    expected = torch.distributions.MultivariateNormal(
        reference.mean[1], covariance(reference, 1) + v * torch.eye(256)
    ).log_prob(x[1].flatten())
    torch.testing.assert_close(noised.log_prob(x, c)[1], expected, rtol=1e-4, atol=1e-3)
    per_row = reference.given(c).noised(torch.full((4,), v)).log_prob(x)
    torch.testing.assert_close(per_row, noised.log_prob(x, c))


@pytest.mark.parametrize("nu", [1, 3])
def test_with_a_new_snapshot_ranking_has_the_gradient_of_the_likelihood(nu, generator):
    """nu / (1 + nu) (mean grad F on data - mean grad F on noise), whatever the levels."""
    energy = conditional_energy().double()
    network = energy.network.requires_grad_(True)
    noise = RecoveryNoise(energy, steps=2, step_size=0.2, cap=1.0)
    levels, t = network.levels, torch.tensor([0, 1, 2, 3, 0, 1])
    x = torch.randn(6, 1, 16, 16, generator=generator).double()
    y = x + torch.randn(6, 1, 16, 16, generator=generator)
    batch = Batch(x, y, t % 3, levels[t], levels[t + 1])
    seen = torch.Generator().manual_seed(5)
    h_data, h_noise, value = ranked(network, noise, batch, nu, True, seen)
    assert not h_data.any()
    assert not h_noise.any()
    loss = objective("ranking", nu)(h_data, h_noise)
    assert float(loss.detach()) == pytest.approx(math.log(1 + nu))
    found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    expected = nu / (1 + nu) * (value[0].mean() - value[1:].mean())
    wanted = torch.autograd.grad(expected, list(network.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_stale_snapshot_gives_the_ratio_of_the_two(generator):
    energy = conditional_energy()
    noise = RecoveryNoise(energy, steps=1, step_size=0.2, cap=1.0)
    torch.nn.init.normal_(energy.network.head.weight, std=0.03)
    levels, c = energy.network.levels, torch.tensor([0, 1])
    x = torch.randn(2, 1, 16, 16, generator=generator)
    batch = Batch(x, x + 1, c, levels[:2], levels[1:3])
    h_data, _, value = ranked(energy.network, noise, batch, 1, False, generator)
    with torch.no_grad():
        expected = noise.frozen.network(x, c, levels[:2]) - energy.network(x, c, levels[:2])
    torch.testing.assert_close(h_data[0], expected)
    torch.testing.assert_close(value[0], energy.network(x, c, levels[:2]))


class Correction(torch.nn.Module):
    """`a (log p - log q)` at every level: with a = 1 the F that turns q into p."""

    sigma = SIGMA

    def __init__(self, p, q, a: float):
        super().__init__()
        self.p, self.q = p, q
        self.a = torch.nn.Parameter(torch.tensor(a))

    def error(self, sigma):
        return torch.ones_like(sigma)

    def forward(self, x, c, sigma):
        v = sigma**2 - SIGMA**2
        q, p = (r.given(c).noised(v).log_prob(x) for r in (self.q, self.p))
        return self.a * (q - p)


def test_denoising_finds_the_score_of_the_data_under_a_wrong_reference(generator):
    """Data of one Gaussian, the reference another: the known correction is stationary, and one 5 %
    smaller or larger is not.
    """
    right = random_reference()
    wrong = right.tempered(1.6)
    wrong.mean = wrong.mean + 0.3

    def slopes(a: float) -> torch.Tensor:
        network = Correction(right, wrong, a)
        found = []
        for _ in range(24):
            c = torch.arange(48) % 3
            z = torch.randn(48, 256, generator=generator)
            clean = right.given(c).noised(torch.full((48,), -(SIGMA**2))).colour(z)
            sigma = SIGMA + 2 * torch.rand(48, generator=generator)
            z = torch.randn(48, 1, 16, 16, generator=generator)
            loss = denoising_loss(
                ReferencedEnergy(wrong, network), clean.view(-1, 1, 16, 16), c, sigma, z
            )
            found.append(torch.autograd.grad(loss, network.a)[0])
        return torch.stack(found)

    for a, sign in ((0.95, -1), (1.0, 0), (1.05, 1)):
        g = slopes(a)
        deviation = float(g.mean() / (g.std() / len(g) ** 0.5))
        assert (abs(deviation) < 5) if sign == 0 else (sign * deviation > 5), (a, deviation)


def test_of_a_zero_network_denoising_is_the_reference_s_own_error(generator):
    energy = conditional_energy(trained=False)
    c = torch.arange(384) % 3
    z = torch.randn(384, 256, generator=generator)
    clean = energy.reference.given(c).noised(torch.full((384,), -(SIGMA**2))).colour(z)
    for sigma in (0.2, 1.0, 4.0):
        z = torch.randn(384, 1, 16, 16, generator=generator)
        levels = torch.full((384,), sigma)
        loss = denoising_loss(energy, clean.view(-1, 1, 16, 16), c, levels, z)
        assert float(loss.detach()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shape", [(16, 16), (20, 17), (40, 25), (16, 70)])
def test_any_window_has_an_energy_and_a_map_of_it(shape, generator):
    torch.manual_seed(0)
    network = NoiseConditionalEnergy(2, widths=(8, 8, 16))
    torch.nn.init.normal_(network.head.weight, std=0.02)
    x = torch.randn(2, 1, *shape, generator=generator)
    sigma, c = torch.tensor([0.2, 2.0]), torch.tensor([0, 1])
    energy = network(x, c, sigma)
    torch.testing.assert_close(network.map(x, c, sigma).sum((1, 2)), energy)
    torch.testing.assert_close(network(x, c)[0], energy[0], msg="level 0 when none is given")
    assert not torch.allclose(network(x, c)[1], energy[1])
    row = network(x[1:], c[1:], sigma[1:])
    torch.testing.assert_close(row, energy[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "rows", "columns"), [((24, 20), 20, 16), ((40, 64), 36, 60)])
def test_a_map_s_energy_sits_in_the_cells_it_is_of(shape, rows, columns, generator):
    torch.manual_seed(0)
    network = NoiseConditionalEnergy(1, widths=(8, 8, 16))
    torch.nn.init.normal_(network.head.weight, std=0.02)
    x = torch.zeros(1, 1, *shape)
    x[:, :, rows : rows + 4, columns : columns + 4] = torch.randn(4, 4, generator=generator)
    fine = spread(network.map(x), network.covered(shape))[:, : shape[0], : shape[1]]
    torch.testing.assert_close(fine.sum((1, 2)), network(x))
    beside = fine.clone()
    beside[:, rows : rows + 4, columns : columns + 4] = 0
    assert float(fine.abs().sum()) > 0
    assert float(beside.abs().sum()) == 0


def test_generation_is_decided_by_the_seed_and_reference_only_is_the_reference():
    model, plain = conditional_model(), small_model()
    x, c = model.draw([0, 1, 2, 0], [5, 6, 7, 8])
    few, _ = model.draw([0, 1], [5, 6])
    assert torch.equal(few, x[:2])
    alone, same = model.draw([0, 1, 2, 0], [5, 6, 7, 8], reference_only=True)
    expected, _ = plain.draw([0, 1, 2, 0], [5, 6, 7, 8], reference_only=True)
    assert torch.equal(alone, expected)
    assert torch.equal(c, same)
    assert not torch.allclose(x, alone)
    for steps in (1, 3, 8):  # fewer and more than levels
        assert torch.isfinite(model.draw([0], [5], steps)[0]).all()
    cold, warm = (model.draw([0] * 16, range(16), 4, temperature=t)[0] for t in (0.25, 1.0))
    assert float(cold.var(0).mean()) < 0.5 * float(warm.var(0).mean())


def test_a_model_is_saved_with_the_kind_of_its_network(tmp_path):
    model = conditional_model()
    model.save_pretrained(tmp_path)
    loaded = AudioEBM.from_pretrained(tmp_path)
    assert isinstance(loaded.density.network, NoiseConditionalEnergy)
    assert loaded.settings == model.settings
    assert torch.equal(loaded.density.network.levels, model.density.network.levels)
    g = torch.Generator
    assert torch.equal(
        loaded.generate(2, g().manual_seed(1)), model.generate(2, g().manual_seed(1))
    )
    wave = torch.randn(2, 3000, generator=g().manual_seed(0))
    assert torch.equal(loaded.energy(wave, 4000), model.energy(wave, 4000))
    assert model.energy_map(wave, 4000).shape == (2, 16, 16)


def test_a_file_that_names_no_network_has_the_usual_one(tmp_path):
    model = small_model()
    file = model.save_pretrained(tmp_path)
    settings, tensors = load_weights(file, "model")
    assert "network_class" not in settings, "as files were before there was another form"
    assert torch.equal(weights(AudioEBM.from_pretrained(tmp_path)), weights(model))
    about = {k: v for k, v in settings.items() if k not in ("kind", "format", "sha256")}
    save_weights(file, "model", about | {"network_class": "Own"}, tensors)
    with pytest.raises(WeightsError, match=r"its network is a Own.*load it with network=Own"):
        AudioEBM.from_pretrained(tmp_path)
    loaded = AudioEBM.from_pretrained(tmp_path, network=type(model.density.network))
    assert torch.equal(weights(loaded), weights(model))


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("stop", [3, 6, 9])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(tmp_path, interval, stop):
    config = replace(CONFIG, interval=interval, nu=interval)

    def kill(step, row, model):
        if step == stop:
            raise KeyboardInterrupt

    whole, rows = run(tmp_path, config, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, "broken", callbacks=(kill,))
    resumed, again = run(tmp_path, config, "broken")
    assert torch.equal(weights(resumed), weights(whole))
    assert again == rows == read_jsonl(tmp_path / "broken" / "metrics.jsonl")


def test_the_first_part_denoises_and_the_second_contrasts(tmp_path):
    model, rows = run(tmp_path, replace(CONFIG, steps=40, warm=0.75))
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert all("denoising" in row and "gap" not in row for row in rows[:30])
    assert all("gap" in row and "denoising" not in row for row in rows[30:])
    first, last = (sum(r["denoising"] for r in part) for part in (rows[:10], rows[20:30]))
    assert last < first
    assert [row["refresh"] for row in rows[30:]] == ["start", *9 * ["interval"]]
    assert model.density.log_z_error.isnan().all(), "log Z is not known"


def test_the_guard_goes_back_halves_the_rate_and_says_so(tmp_path, monkeypatch):
    whole, count = conditional_training.rows_on, [0]

    def rows_on(clips, index, device):
        count[0] += 1
        found = whole(clips, index, device)
        return found * torch.nan if count[0] in at else found

    monkeypatch.setattr(conditional_training, "rows_on", rows_on)
    at = [5, 14]
    model, rows = run(tmp_path, replace(CONFIG, steps=14))
    told = [row["rollback"] for row in rows if "rollback" in row]
    assert told[-1].endswith("rate x 0.25")
    assert torch.isfinite(weights(model)).all()
    at, count = range(100), [0]
    with pytest.raises(Diverged, match="diverged 9 times"):
        run(tmp_path, name="hopeless")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "kl"}, r"train\.loss=kl: what depends on x_t\+1 does not cancel"),
        ({"noise": "gaussian", "per_component": 4}, "noise of its own"),
        ({"temperature": 2.0}, "noise of its own"),
    ],
)
def test_settings_that_have_no_meaning_here(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, replace(CONFIG, **change))
    assert not (tmp_path / "run").exists()


def test_impossible_levels_and_shares():
    with pytest.raises(ValueError, match="--levels must be 0 or at least 2"):
        Options(levels=1)
    with pytest.raises(ValueError, match=r"--sigma-max above --sigma=0\.2: found 8 and 0.1"):
        Options(levels=8, sigma_max=0.1)
    with pytest.raises(ValueError, match="give 2 levels or more"):
        NoiseConditionalEnergy(levels=1)
    with pytest.raises(ValueError, match=r"train\.warm must be at least 0 and less than 1"):
        TrainConfig(warm=1.5)
    with pytest.raises(ValueError, match=r"train\.batch must be at least 1"):
        TrainConfig(batch=0)


def test_energies_are_the_same_in_onnx(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    from test_detection import hums

    from sance_audio import EnergyDetector
    from sance_audio.export import deviation_of, export_onnx

    model = conditional_model(rate=8000)
    clips = [torch.from_numpy(x) for x in hums(30)]
    detector = EnergyDetector(model, preset="smoke", alpha=0.2).fit(clips)
    done = export_onnx(detector, tmp_path / "model.onnx")
    windows = [torch.from_numpy(x) for s in (0.05, 0.4) for x in hums(2, 7, s)]
    assert deviation_of(done.model, detector, windows) <= 1e-4


def test_an_interrupted_run_from_before_these_settings_goes_on(tmp_path):
    config = replace(CONFIG, steps=6)

    def kill(step, row, model):
        if step == 5:
            raise KeyboardInterrupt

    whole = small_model(trained=False)
    train(whole, *data(), config, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(
            small_model(trained=False),
            *data(),
            config,
            tmp_path / "run",
            progress=False,
            callbacks=(kill,),
        )
    latest = tmp_path / "run" / "state" / "latest.pt"
    saved = torch.load(latest, weights_only=True)
    for name in ("batch", "warm", "warm_rate"):
        del saved["settings"][name]
    torch.save(saved, latest)
    again = small_model(trained=False)
    usual = {"batch": TrainConfig.batch, "warm": TrainConfig.warm}
    train(again, *data(), replace(config, **usual), tmp_path / "run", progress=False)
    assert torch.equal(weights(again), weights(whole))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A finished run of the smoke preset with levels, and its corpus."""
    root = tmp_path_factory.mktemp("digits")
    recipe = load_recipe("fsdd")
    options = replace(
        *(recipe.PRESETS["smoke"],),
        **{"run": root / "run", "data": fsdd_tree(root / "data"), "levels": 4},
    )
    recipe.main(options)
    return root / "run", options


def test_a_recipe_runs_end_to_end(digits):
    folder, options = digits
    results = json.loads((folder / "results.json").read_text())
    assert np.isfinite(results["evaluation"]["table"]["ours"]["fid"])
    assert len(list((folder / "clips").glob("*.wav"))) == options.clips
    assert (folder / "index.html").exists()
    kinds = [("denoising" in r, "gap" in r) for r in read_jsonl(folder / "metrics.jsonl")]
    assert kinds == 4 * [(True, False)] + 2 * [(False, True)]
    with pytest.raises(ValueError, match="levels: 4 -> 0"):
        start(replace(options, levels=0), "fsdd", torch.device("cpu"))
    config = json.loads((folder / "config.json").read_text())
    del config["train"]["warm"]  # as of a run that is older
    (folder / "config.json").write_text(json.dumps(config))
    start(options, "fsdd", torch.device("cpu"))
    assert "warm" in json.loads((folder / "config.json").read_text())["train"]


def test_every_command_takes_such_a_run(digits, tmp_path, capsys):
    folder, _ = digits
    cli.main(["generate", str(folder), "--num", "3", "--out", str(tmp_path / "clips")])
    waves = sorted((tmp_path / "clips").glob("*.wav"))
    assert len(waves) == 3
    cli.main(["score", str(folder), str(waves[0]), "--out", str(tmp_path / "scores.csv")])
    header, row = csv.reader((tmp_path / "scores.csv").read_text().splitlines())
    assert np.isfinite(float(row[header.index("energy")]))
    cli.main(["evaluate", str(folder), "--num", "10"])
    assert "ours" in capsys.readouterr().out
    cli.main(["info", str(folder)])
    assert json.loads(capsys.readouterr().out)["network_class"] == "NoiseConditionalEnergy"
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    cli.main(["export", str(folder), str(tmp_path / "model.onnx")])
    assert "checked in onnxruntime" in capsys.readouterr().out
