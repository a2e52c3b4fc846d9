import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from conftest import small_model

from sance_audio import TrainConfig, train, training
from sance_audio.divergences import PAIRS, RANKED
from sance_audio.files import read_jsonl
from sance_audio.health import refresh_cause
from sance_audio.noise import GaussianNoise
from sance_audio.recipe import load_recipe
from sance_audio.state import fingerprint

CONFIG = TrainConfig(
    steps=12, langevin_steps=2, groups=2, checkpoint_every=4, sample_every=0, rate=1e-3
)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(30, 1, 16, 16, generator=g), torch.arange(30) % 3


def weights(model) -> torch.Tensor:
    return torch.cat([p.flatten() for p in model.density.network.parameters()])


def run(tmp_path, config=CONFIG, name="run", **settings):
    model = small_model(trained=False)
    rows = train(model, *data(), config, tmp_path / name, progress=False, **settings)
    return model, rows


def test_a_run_writes_each_step_once_and_moves_the_weights(tmp_path):
    model, rows = run(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl") == rows
    assert all({"loss", "gap", "norm", "log_z", "refresh"} <= row.keys() for row in rows)
    assert not torch.equal(weights(model), weights(small_model(trained=False)))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    a, _ = run(tmp_path, name="a")
    b, _ = run(tmp_path, name="b")
    c, _ = run(tmp_path, name="c", seed=1)
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(c))


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("stop", [2, 6, 9])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(tmp_path, interval, stop):
    config = replace(CONFIG, interval=interval, pool=2, per_component=2)

    class Killed(Exception):
        pass

    def kill(step, row, model):
        if step == stop:
            raise Killed

    whole, rows = run(tmp_path, config, "whole")
    with pytest.raises(Killed):
        run(tmp_path, config, "broken", callbacks=(kill,))
    resumed, again = run(tmp_path, config, "broken")
    assert torch.equal(weights(resumed), weights(whole))
    assert again == rows
    assert read_jsonl(tmp_path / "broken" / "metrics.jsonl") == rows


def test_a_finished_run_is_left_alone(tmp_path):
    model, rows = run(tmp_path)
    again, same = run(tmp_path)
    assert same == rows
    assert torch.equal(weights(again), weights(model))


def test_other_settings_on_resume_are_an_error_that_names_them(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"rate: 0\.001 -> 0\.01"):
        run(tmp_path, replace(CONFIG, rate=0.01))
    with pytest.raises(ValueError, match="seed: 0 -> 5"):
        run(tmp_path, seed=5)


def plant(monkeypatch, at, value):
    """The batch of one draw (counted over the process) is poisoned; that of 0 is all of them."""
    whole, count = training.rows_on, [0]

    def rows(clips, index, device):
        count[0] += 1
        found = whole(clips, index, device).clone()
        poisoned = at in (0, count[0])
        return torch.full_like(found, value) if poisoned else found

    monkeypatch.setattr(training, "rows_on", rows)


@pytest.mark.parametrize("fault", ["nan batch", "loss spike"])
def test_the_guard_goes_back_halves_the_rate_and_says_so(tmp_path, monkeypatch, fault):
    plant(monkeypatch, at=7, value=torch.nan if fault == "nan batch" else 1e6)
    x, components = data()
    model = small_model(trained=fault == "loss spike")
    rows = train(model, x, components, CONFIG, tmp_path / "run", progress=False)
    assert [row["step"] for row in rows] == list(range(1, 13))
    told = [row for row in rows if "rollback" in row]
    assert len(told) == 1
    assert "rate x 0.5" in told[0]["rollback"]
    assert torch.isfinite(weights(model)).all()
    assert rows[0]["rate"] == pytest.approx(0.5 * CONFIG.rate)
    json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])


def test_a_rollback_survives_a_kill(tmp_path, monkeypatch):
    """Trouble after a checkpoint, a rollback to before it, a kill: the resumed run is whole."""

    class Killed(Exception):
        pass

    def kill(step, row, model):
        if "rollback" in row:
            raise Killed

    plant(monkeypatch, at=10, value=torch.nan)
    arguments = (*data(), CONFIG, tmp_path / "run")
    with pytest.raises(Killed):
        train(small_model(trained=False), *arguments, progress=False, callbacks=(kill,))
    rows = train(small_model(trained=False), *arguments, progress=False)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl") == rows
    assert {row["rate"] for row in rows[:6]} == {0.5 * CONFIG.rate}


def test_a_hundred_times_the_sensible_rate_is_taken_back(tmp_path, monkeypatch):
    config = replace(CONFIG, steps=40, rate=100 * CONFIG.rate)
    model, rows = run(tmp_path, config)
    told = [row["rollback"] for row in rows if "rollback" in row]
    assert told
    assert "the network gap is" in told[-1]
    assert rows[-1]["step"] == 40
    assert max(row["rate"] for row in rows) < config.rate / 8
    assert torch.isfinite(weights(model)).all()
    widest = max(abs(sum(row["gap"] for row in rows[i : i + 10])) / 10 for i in range(31))
    assert widest < config.gap_limit

    monkeypatch.setattr(training, "trouble", lambda *_: "")  # what the guard has prevented
    _, wild = run(tmp_path, config, "unguarded")
    assert max(abs(row["gap"]) for row in wild) > 10 * config.gap_limit


def test_other_data_or_another_reference_on_resume_is_an_error(tmp_path):
    run(tmp_path)
    x, components = data()
    with pytest.raises(ValueError, match="model and data"):
        train(small_model(trained=False), x + 1, components, CONFIG, tmp_path / "run")
    other = small_model(trained=False)
    other.reference.mean += 1
    with pytest.raises(ValueError, match="model and data"):
        train(other, x, components, CONFIG, tmp_path / "run")


def test_hopeless_data_ends_with_one_error(tmp_path, monkeypatch):
    plant(monkeypatch, at=0, value=torch.nan)
    with pytest.raises(training.Diverged, match="diverged 9 times"):
        train(small_model(), *data(), CONFIG, tmp_path / "run", progress=False)


def test_the_three_refresh_rules():
    config = replace(CONFIG, interval=10, pool=2, per_component=2)
    assert refresh_cause(10, [], 1.0, 64, config) == "interval"
    assert refresh_cause(3, [], 0.9, 64, config) == ""
    assert refresh_cause(3, [], 0.4, 64, config).startswith("ESS/N")
    assert refresh_cause(4, [0.9] * 4, 0.9, 64, config).startswith("accuracy")
    assert refresh_cause(3, [0.9] * 3, 0.9, 64, config) == "", "192 clips are too few"
    assert refresh_cause(4, [0.6] * 4, 0.9, 64, config) == ""
    fixed = replace(config, adaptive=False)
    assert refresh_cause(4, [0.9] * 4, 0.1, 64, fixed) == ""
    assert refresh_cause(10, [], 1.0, 64, fixed) == "interval"


def test_a_long_interval_is_cut_short_when_the_model_runs_ahead(tmp_path):
    config = replace(CONFIG, interval=50, pool=2, per_component=2, rate=0.05)
    _, rows = run(tmp_path, config)
    early = [row["refresh"] for row in rows if row.get("refresh") not in (None, "start")]
    assert early
    assert all(why.startswith(("ESS/N", "accuracy")) for why in early)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, r"train\.steps must be at least 1, found 0; give 1 or more"),
        ({"interval": 0}, r"train\.interval must be at least 1, found 0; give 1 or more"),
        ({"nu": 0}, r"train\.nu must be at least 1, found 0"),
        ({"nu": 1.5}, r"train\.nu must be a whole number, found 1\.5"),
        ({"interval": math.nan}, r"train\.interval must be a whole number, found nan"),
        ({"noise": "gausian"}, r"train\.noise=gausian: there are self, pcd, gaussian, flow"),
        ({"dlogz": "pol"}, r"train\.dlogz=pol: there are pool, learned, cancelled"),
        ({"beta1": 1.0}, r"train\.beta1 must be at least 0 and less than 1"),
        ({"rate": -1.0}, r"train\.rate must be positive, found -1\.0; the default is 0\.0003"),
        ({"temperature": 0.0}, r"train\.temperature must be positive, found 0\.0"),
        ({"temperature": math.inf}, r"train\.temperature must be positive, found inf"),
        ({"loss": "hinge"}, "no loss named 'hinge'"),
        ({"loss": "alpha", "alpha": 0.0}, "alpha must be a positive number"),
        ({"ema": 1.0}, r"train\.ema must be at least 0 and less than 1, found 1\.0"),
        ({"fresh": 1.5}, r"train\.fresh must be at least 0"),
        ({"interval": 4, "pool": 1}, "dlogZ.* needs at least 4 samples of each: raise"),
        ({"pool": 0}, r"train\.pool must be at least 1, found 0"),
        ({"pool": 9}, r"train\.pool=9 must lie between 1 and train\.groups=2: lower the one"),
        ({"nu": 2, "pool": 1}, r"train\.pool=1 groups are smaller than a batch of noise"),
        ({"noise": "gaussian", "interval": 4}, r"train\.noise=gaussian is new at every step"),
        ({"noise": "pcd", "interval": 4}, r"train\.noise=pcd is new at every step"),
        ({"dlogz": "cancelled"}, r"does not cancel in train\.loss=logistic; take train\.dlogz"),
        ({"weighted": True, "pool": 1}, r"train\.weighted needs chains that are all advanced"),
        ({"weighted": True, "fresh": 0.1, "per_component": 4}, r"give train\.pool=2 and"),
        (
            {"weighted": True},
            r"train\.weighted leaves a quarter.*groups=2, train\.per_component=1",
        ),
        ({"min_ess": 1.5}, r"train\.min_ess and train\.max_accuracy are shares"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize("noise", ["self", "pcd", "gaussian", "flow"])
@pytest.mark.parametrize("dlogz", ["pool", "learned"])
def test_every_noise_trains_and_resumes_to_the_bit(tmp_path, noise, dlogz):
    config = replace(CONFIG, noise=noise, dlogz=dlogz, pool=2, per_component=2, flow_transforms=2)
    whole, rows = run(tmp_path, config, "whole")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert {"gap", "accuracy", "pool_ess", "log_z", "log_z_error", "refresh"} <= rows[-1].keys()
    assert ("displacement" in rows[0]) == (noise in ("self", "pcd"))

    def kill(step, row, model):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, "broken", callbacks=(kill,))
    resumed, again = run(tmp_path, config, "broken")
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(resumed.density.log_z, whole.density.log_z)
    assert again == rows


def test_persistent_contrastive_divergence_is_self_noise_at_every_step(tmp_path):
    a, _ = run(tmp_path, CONFIG, "self")
    settings = {**asdict(CONFIG), "noise": "pcd"}
    b, _ = run(tmp_path, TrainConfig.persistent_contrastive_divergence(**settings), "pcd")
    assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_ledger_goes_on_after_a_resume_and_is_exported(tmp_path, weighted):
    config = replace(CONFIG, weighted=weighted, pool=2, per_component=8, rate=3e-3, interval=2)

    def kill(step, row, model):
        if step == 7:
            raise KeyboardInterrupt

    whole, rows = run(tmp_path, config, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, "broken", callbacks=(kill,))
    resumed, again = run(tmp_path, config, "broken")
    assert again == rows
    assert [row["log_z"] for row in rows] != [0.0] * 12
    for model in (whole, resumed):
        assert model.density.log_z.abs().min() > 0
        assert (model.density.log_z_error > 0).all()
    assert torch.equal(whole.density.log_z, resumed.density.log_z)
    found = whole.log_prob(torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)), 4000)
    assert (found.standard_error > 0).all()
    bits = -found.nats / (256 * math.log(2))
    torch.testing.assert_close(found.bits_per_dimension, bits)
    resumed.save_pretrained(tmp_path)
    loaded = type(whole).from_pretrained(tmp_path)
    assert torch.equal(loaded.density.log_z_error, whole.density.log_z_error)


def test_an_alarm_is_raised_once_when_a_figure_leaves_its_range(tmp_path, capsys):
    model = small_model(trained=False)
    x, components = data()
    config = replace(CONFIG, steps=60, rate=1e-2, langevin_steps=1, gap_limit=1e6)
    rows = train(model, x + 2, components, config, tmp_path / "run", progress=False)
    told = [row["step"] for row in rows if "gap" in row.get("alarm", "")]
    assert len(told) == 1
    assert "gap" in capsys.readouterr().out


def test_fewer_clips_than_a_batch(tmp_path):
    x, components = data()
    config = replace(CONFIG, per_component=11)
    with pytest.raises(ValueError, match=r"30 training clips are fewer than a batch of 33 \("):
        train(small_model(), x, components, config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists(), "before any work starts"


def test_features_that_are_not_finite(tmp_path):
    x, components = data()
    x[7, 0, 3, 3] = torch.inf
    with pytest.raises(ValueError, match="training clip 7 holds NaN or infinite features"):
        train(small_model(), x, components, CONFIG, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_data_outside_the_support_of_the_noise(tmp_path, monkeypatch):
    """Noise on a ball: what lies beyond has no density."""

    def bounded(self, x, c):
        return torch.where(x.flatten(1).norm(dim=1) < 1.0, 0.0, torch.inf)

    monkeypatch.setattr(GaussianNoise, "frozen_energy", bounded)
    config = replace(CONFIG, noise="gaussian", per_component=4)
    with pytest.raises(ValueError, match=r"3 of 3 training clips .* lie outside the support"):
        train(small_model(), *data(), config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_component_without_clips(tmp_path):
    x, components = data()
    with pytest.raises(ValueError, match=r"no training clips for components \[2\]"):
        train(small_model(), x, components.clamp_max(1), CONFIG, tmp_path, progress=False)


class OnDisk:
    """Clips that are read when asked for, and only ever a few at once."""

    def __init__(self, x: torch.Tensor, most: int):
        self.x, self.most = x, most

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor:
        assert isinstance(rows, slice) or rows.device.type == "cpu"
        found = self.x[rows]
        assert len(found) <= self.most, "the corpus is not loaded whole"
        return found.clone()


def test_clips_that_are_read_when_asked_for_train_the_same_weights(tmp_path):
    x = torch.randn(1100, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    models, rows = [], []
    for name, clips in {"tensor": x, "disk": OnDisk(x, 1024)}.items():
        models.append(small_model(trained=False))
        arguments = (clips, torch.arange(1100) % 3, CONFIG, tmp_path / name)
        rows.append(train(models[-1], *arguments, progress=False))
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert rows[0] == rows[1]


def test_the_fingerprint_reads_a_thousand_clips_at_a_time():
    g, model = torch.Generator().manual_seed(0), small_model()
    x, components = torch.randn(2500, 1, 16, 16, generator=g), torch.arange(2500) % 3
    whole = fingerprint(model, x, components)
    assert fingerprint(model, OnDisk(x, 1024), components) == whole
    x[-1, 0, -1, -1] += 1e-3
    assert fingerprint(model, OnDisk(x, 1024), components) != whole


def test_clips_and_components_of_different_numbers(tmp_path):
    x, components = data()
    with pytest.raises(ValueError, match="30 clips and 29 components"):
        train(small_model(), x, components[:29], CONFIG, tmp_path, progress=False)


@pytest.mark.parametrize(
    "change",
    [{"langevin_steps": 40}, {"langevin_steps": 10, "interval": 4, "nu": 2}],
    ids=["K = 1", "K = 4, nu = 2"],
)
def test_learning_moves_generated_clips_to_the_data(tmp_path, change):
    """Data that the reference misses by half a standard deviation, in every cell.

    K = 1 needs the longer chains: with 10 steps they lag behind the model by 60 nats.
    """
    model = small_model(trained=False)
    g = torch.Generator().manual_seed(0)
    c = torch.arange(300) % 3
    x = model.reference.sample(c, g).view(-1, 1, 16, 16) + 0.5
    config = replace(CONFIG, steps=300, rate=3e-3, per_component=4, gap_limit=200.0, **change)
    train(model, x, c, config, tmp_path, progress=False)
    drawn, _ = model.draw([0, 1, 2] * 20, range(60), steps=200)
    plain, _ = model.draw([0, 1, 2] * 20, range(60), reference_only=True)
    assert 0.25 < float(drawn.mean() - plain.mean()) < 0.75


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("loss", [*PAIRS, *RANKED])
def test_every_loss_trains(tmp_path, loss, interval):
    config = replace(CONFIG, loss=loss, interval=interval, pool=2, per_component=2)
    model, rows = run(tmp_path, config)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert not any("rollback" in row for row in rows)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert not torch.equal(weights(model), weights(small_model(trained=False)))
    counted = {row.get("saturated") for row in rows}
    assert counted == ({0} if config.saturates else {None})


@pytest.mark.slow
def test_training_on_real_sizes_gains_on_held_out_clips(tmp_path):
    """The drums preset, half its steps: held-out density above the reference by 3 errors."""
    recipe = load_recipe("drums")
    options = recipe.PRESETS["cpu"]
    options = replace(options, run=tmp_path / "run", train=replace(options.train, steps=200))
    recipe.main(options)
    gain = json.loads((tmp_path / "run" / "results.json").read_text())["held_out_gain"]
    assert gain["mean"] > 3 * gain["standard_error"]
