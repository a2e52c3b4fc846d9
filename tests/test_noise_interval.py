"""The experiment on the update interval: its arithmetic, its jobs, its smoke preset."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checks import holds_on_a_fresh_seed
from conftest import small_model
from test_recipes import fsdd_tree

from sance_audio import TrainConfig, cli
from sance_audio.evaluation import Classifier
from sance_audio.experiments import (
    Job,
    added_by_noise,
    clear,
    compared,
    figure,
    interval,
    paired,
    passage,
    peak_mib,
    perform,
    reaching,
    run_jobs,
    slope,
    tables,
)
from sance_audio.model import AudioEBM
from sance_audio.options import Options
from sance_audio.recipe import load_recipe

recipe = load_recipe("noise_interval")
CPU = recipe.PRESETS["cpu"]


# Figures


def test_intervals_hold_the_mean_19_times_in_20():
    """Normal quantiles in place of Student's would hold it 17 times."""

    def zscores(seed):
        rng, n = np.random.default_rng(seed), 4000
        found = [interval(rng.normal(2.0, 3.0, 4).tolist()) for _ in range(n)]
        share = np.mean([f["low"] < 2 < f["high"] for f in found])
        return torch.tensor([(share - 0.95) / math.sqrt(0.95 * 0.05 / n)])

    holds_on_a_fresh_seed(zscores)


def test_one_run_has_no_interval_and_none_no_mean():
    assert interval([2.0]) == {"mean": 2.0, "low": None, "high": None, "n": 1}
    assert interval([None])["mean"] is None
    assert clear(interval([2.0])) == 0, "one run shows nothing"


def test_pairs_are_runs_of_one_seed():
    ours = [{"seed": s, "kid": 10.0 * s + 1} for s in (1, 2, 3)]
    others = [{"seed": s, "kid": 10.0 * s} for s in (3, 2)]
    found = paired(ours, others, lambda run: run["kid"])
    assert (found["mean"], found["n"]) == (1.0, 2)
    assert clear(found) == 1


def test_first_passage_lies_between_the_points_around_it():
    curve = [(0, 9.0), (10, 5.0), (20, 7.0), (30, 1.0)]
    for target in (8.0, 6.0, 5.0, 2.0):
        t = passage(curve, target)
        assert np.interp(t, *zip(*curve, strict=True)) == pytest.approx(target)
    assert passage(curve, 0.5) is None
    assert passage(curve, 9.5) == 0.0
    assert slope([0, 1, 2, 3], [1, 3, 5, 7]) == pytest.approx(2)


# Jobs


def sleeper(code: str):
    """The command line of a job: `code`, with its folder in `here`."""
    opening = "import json, os, sys, time; from pathlib import Path; here = Path(sys.argv[1]); "
    return lambda folder: (
        lambda job: [sys.executable, "-c", opening + code, str(folder / job.name)]
    )


WRITES = "(here / 'result.json').write_text(json.dumps({'began': time.time()})); time.sleep(0.5)"


def test_jobs_run_side_by_side_and_finished_ones_are_taken_as_they_are(tmp_path):
    jobs = [Job(name, {"n": n}) for n, name in enumerate("abc")]
    command = sleeper(WRITES)(tmp_path)
    said = []
    found = run_jobs(
        jobs[:2], tmp_path, command, at_once=2, say=lambda *args: said.append(args[0].name)
    )
    assert abs(found["a"]["began"] - found["b"]["began"]) < 0.5
    again = run_jobs(
        jobs, tmp_path, command, at_once=2, say=lambda *args: said.append(args[0].name)
    )
    assert {name: again[name] for name in "ab"} == found
    assert sorted(said) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="another n"):
        run_jobs([Job("a", {"n": 7})], tmp_path, command)


def test_a_failed_job_is_told_after_the_others_are_done(tmp_path):
    code = f"here.name == 'bad' and sys.exit('no such thing'); {WRITES}"
    with pytest.raises(ValueError, match="1 of 2 runs failed, the first with status 1: no such"):
        run_jobs([Job("bad", {}), Job("good", {})], tmp_path, sleeper(code)(tmp_path), at_once=1)
    assert (tmp_path / "good" / "result.json").exists()


def test_a_job_killed_from_outside_goes_on_once(tmp_path):
    count = "tries = here / 'tries'; tries.open('a').write('x'); n = tries.stat().st_size; "
    kill = (
        "here.name == 'always' and os.kill(os.getpid(), 9); n == 1 and os.kill(os.getpid(), 9); "
    )
    with pytest.raises(ValueError, match="the first with status -9"):
        run_jobs(
            [Job("once", {}), Job("always", {})],
            tmp_path,
            sleeper(count + kill + WRITES)(tmp_path),
        )
    assert (tmp_path / "once" / "result.json").exists()
    assert (tmp_path / "always" / "tries").read_text() == "xx"


def test_an_interrupt_leaves_no_process_behind(tmp_path):
    code = f"(here / 'pid').write_text(str(os.getpid())); {WRITES}; time.sleep(60)"

    class Stop(BaseException):
        pass

    def stop(*_):
        raise Stop

    quick = sleeper(code.replace("time.sleep(60)", "here.name == 'slow' and time.sleep(60)"))
    with pytest.raises(Stop):
        run_jobs(
            [Job("slow", {}), Job("quick", {})], tmp_path, quick(tmp_path), at_once=2, say=stop
        )
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "slow" / "pid").read_text()), 0)


def test_peak_memory_is_the_process_s_own(tmp_path):
    """A small process that a large one starts is small."""
    held = torch.ones(100 * 2**20)  # 400 MiB
    assert peak_mib() > 400
    script = str(recipe.Path(recipe.__file__).parents[2] / "sance_audio/experiments/costs.py")
    code = (
        "import ast, sys; tree = ast.parse(open(sys.argv[1]).read()); "
        "tree.body = [n for n in tree.body if getattr(n, 'name', '') == 'peak_mib']; "
        "from pathlib import Path; exec(compile(tree, 'peak', 'exec')); print(peak_mib())"
    )
    said = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True)
    assert 1 < float(said.stdout) < 200, said.stderr
    del held


def test_what_noise_adds_is_counted_from_the_checkpoint(finished_run):
    model = AudioEBM.from_pretrained(finished_run)
    added = added_by_noise(finished_run)
    own = sum(p.numel() for p in model.density.network.parameters())
    assert added["parameters"] == added["network_parameters"] == own
    config = json.loads((finished_run / "config.json").read_text())["train"]
    m, t = model.shape
    chains = config["groups"] * config["per_component"] * model.reference.n_components
    assert added["extra_bytes"] >= 4 * (own + chains * m * t), "a frozen copy and the chains"
    assert added["extra_bytes"] < 3 * 4 * (own + chains * m * t)


def test_a_run_that_diverges_is_a_row_and_no_crash(tmp_path):
    torch.manual_seed(0)
    model = small_model(trained=False)
    x = torch.randn(30, 1, 16, 16)
    components = torch.arange(30) % 3
    material = SimpleNamespace(x={"train": x}, some=lambda split, n: (x[:n], torch.arange(n)))
    judge = SimpleNamespace(classifier=Classifier(3, width=4).eval())
    config = TrainConfig(steps=40, langevin_steps=2, sample_every=0, per_component=2)
    options = Options(run=tmp_path / "good", evaluate=12, annealing=3, train=config)
    good = perform(model, components, material, judge, options, split="test", sets=2, points=4)
    assert good["diverged"] is None
    assert [p["step"] for p in good["points"]] == [10, 20, 30, 40]
    assert good["evaluations"] == 40 * 6 * 2, "steps, chains, Langevin steps"
    assert good["points"][1]["evaluations"] == 20 * 6 * 2
    assert np.isfinite([good["kid"], good["fid"], good["gain"]["mean"]]).all()

    options = replace(options, run=tmp_path / "bad", train=replace(config, gap_limit=1e-9))
    bad = perform(
        small_model(trained=False), components, material, judge, options, split="test", points=4
    )
    assert "diverged" in bad["diverged"]
    assert bad["rollbacks"] == 8, "the ninth ends it"
    assert (bad["kid"], bad["gain"]) == (None, None)
    json.dumps(bad, allow_nan=False)


# The experiment


def work(config) -> float:
    """Chains of a group advanced over the run."""
    return -(-config.steps // config.interval) * config.pool_groups


def test_arms_are_equal_in_what_they_are_compared_at():
    found = recipe.arms(CPU)
    first = found["K1"]
    for k in CPU.intervals:
        assert found[f"K{k}"].steps == first.steps
        assert found[f"K{k}"].steps // k >= 9, "eight refreshes after the first"
    for k in CPU.intervals[1:]:
        assert work(found[f"K{k}-long"]) == work(first)
    assert found["never"].interval == found["never"].steps, "the first snapshot is the last"
    assert [name for name, c in found.items() if c.adaptive] == ["adaptive"]
    same = {f"{c.loss} {c.langevin_steps} {c.per_component} {c.nu}" for c in found.values()}
    assert len(same) == 1


def test_other_noise_learns_its_log_z_on_noise_of_the_first_arm_s_size():
    found = recipe.arms(CPU)
    for noise in CPU.noises:
        assert (found[noise].noise, found[noise].dlogz) == (noise, "learned")
        assert found[noise].pool_groups == found["K1"].pool_groups == 1
    assert {c.dlogz for name, c in found.items() if name not in CPU.noises} == {"pool"}


def test_work_is_equal_to_the_first_arm_s_whatever_its_interval():
    found = recipe.arms(replace(CPU, intervals=(4, 16)))
    assert work(found["K16-long"]) == work(found["K4"])
    for wrong in ((4,), (4, 1), (0, 4), (4, 4)):
        with pytest.raises(ValueError, match="--intervals"):
            replace(CPU, intervals=wrong)
    with pytest.raises(ValueError, match="--points must be at least 1"):
        replace(CPU, points=0)


def test_a_rate_is_chosen_by_validation_and_never_a_diverged_one():
    """And each arm is tried once at each rate, but for those that only train for longer."""
    kids, asked = {1e-4: 4.0, 3e-4: 3.0, 1e-3: 2.0, 3e-3: None}, []

    def run(jobs):
        assert {job.settings["split"] for job in jobs} == {"valid"}
        assert {job.settings["seed"] for job in jobs} == {CPU.seed}
        assert {job.settings["points"] for job in jobs} == {0}
        asked.append([job.name for job in jobs])
        return {job.name: {"kid": kids[job.settings["train"]["rate"]]} for job in jobs}

    arms = recipe.arms(CPU)
    found = recipe.chosen(CPU, arms, run)
    assert len(set(asked[0])) == len(asked[0]) == 8 * len(CPU.rates) == 32
    assert not any("-long" in name for name in asked[0])
    assert found.keys() == arms.keys()
    assert {choice["rate"] for choice in found.values()} == {1e-3}
    assert not recipe.rates_at_an_end(CPU, found)
    kids.update(dict.fromkeys(kids))
    found = recipe.chosen(CPU, arms, run)
    assert {choice["rate"] for choice in found.values()} == {1e-4}, "all diverged: the least"


def test_a_longer_run_has_the_rate_of_its_k_and_losses_that_of_the_best_k_above_1():
    best = {"K1": (1e-4, 0.1), "K4": (1e-3, 0.3), "K16": (3e-3, 0.2), "K64": (1e-4, None)}

    def run(jobs):
        def kid(job):
            rate, least = best.get(job.settings["arm"], (1e-3, 0.5))
            own = job.settings["train"]["rate"] == rate
            return least if least is None or own else least + 1

        return {job.name: {"kid": kid(job)} for job in jobs}

    found = recipe.chosen(CPU, recipe.arms(CPU), run)
    for k in CPU.intervals[1:]:
        assert found[f"K{k}-long"] == found[f"K{k}"]
    assert found["K16"]["rate"] == 3e-3
    assert recipe.rates_at_an_end(CPU, found) == [
        "The least rate tried, 0.0001, was best for K1, K64.",
        "The largest rate tried, 0.003, was best for K16.",
    ]
    assert recipe.best_of(CPU, found) == "K16", "K1 is better, and no place to compare losses"
    every = recipe.with_losses(CPU, recipe.arms(CPU), "K16")
    for loss in CPU.losses:
        assert every[loss] == replace(every["K16"], loss=loss)


def test_runs_that_are_reported_have_other_seeds_than_those_that_chose():
    every = recipe.with_losses(CPU, recipe.arms(CPU), "K4")

    def seeds(options, arm):
        jobs = recipe.reported(options, every)
        return [job.settings["seed"] for job in jobs if job.settings["arm"] == arm]

    assert (CPU.seeds, CPU.other_seeds, CPU.points) == (3, 3, 5)
    assert {tuple(seeds(CPU, arm)) for arm in every} == {(1, 2, 3)}
    more = replace(CPU, seeds=5)
    assert seeds(more, "never") == [1, 2, 3, 4, 5], "self noise"
    assert seeds(more, "flow") == seeds(more, "kl") == [1, 2, 3]
    assert seeds(replace(CPU, seeds=2), "flow") == [1, 2], "pairs with the first arm's"
    before = {job.name: job for job in recipe.reported(CPU, every)}
    after = {job.name: job for job in recipe.reported(more, every)}
    assert before.items() <= after.items(), "raising --seeds runs none again"


# What the figures say


def made_up(options, better: float, gain: float = 0.0, seeds=(1, 2, 3)):
    """Runs whose KID and FID change by `better` for each factor of 4 in K, the gain by `gain`, and
    all a little by seed.
    """
    by_arm = {}
    for arm, config in recipe.with_losses(options, recipe.arms(options), "K4").items():
        runs, k = [], math.log(config.interval, 4)
        for seed in seeds:
            noise = 0.01 * np.random.default_rng([seed, len(arm)]).normal()
            kid = 1.0 + better * k + noise
            run = {"arm": arm, "seed": seed, "kid": kid, "fid": 10 * kid, "accuracy": 0.9}
            run["gain"] = {"mean": 5.0 + gain * k + noise, "standard_error": 0.1}
            run["reference"] = {"kid": 9.0, "fid": 90.0, "accuracy": 0.5}
            run["points"] = [{"step": 10, "evaluations": 20 // config.interval + 1, "kid": kid}]
            run |= {"reference_along": 9.0, "diverged": None, "rate": 1e-3, "causes": {}}
            run |= dict.fromkeys(("steps", "evaluations", "refreshes", "rollbacks"), 1)
            run |= {"seconds": 1.0, "peak_mib": 1.0, "network_parameters": 1000}
            run |= {"extra_bytes": 2**20, "parameters": 1000}
            if config.noise == "flow":
                run |= {"extra_bytes": 3 * 2**20, "parameters": 3500}
            runs.append(run)
        by_arm[arm] = runs
    return by_arm


def said_of(by_arm):
    return compared(by_arm, CPU.intervals, recipe.LONG, "K4", CPU.losses)


@pytest.mark.parametrize(
    ("better", "word"), [(0.5, "reproduced"), (-0.2, "REVERSED"), (0.0, "not decided")]
)
def test_the_verdict_says_what_the_figures_say(better, word):
    said = said_of(made_up(CPU, better, gain=-10 * better))
    lines = said["verdict"]
    for line, (at, name) in zip(
        lines,
        [
            (at, name)
            for at in ("equal steps", "equal sampler evaluations")
            for name in ("KID x1000", "FID", "gain, nats")
        ],
        strict=False,
    ):
        assert line.startswith(f"At {at},"), line
        assert f"by {name}: {word}" in line, line
    if better > 0:
        assert "K4 never came to the KID of K1 in 3 of 3 seeds: no ratio." in lines
        assert any(line.endswith("than K1, KID WORSE, FID WORSE, gain WORSE.") for line in lines)
    if better < 0:
        assert any("K4 came to the KID of K1 with 0." in line for line in lines)
    assert lines[-1].startswith("What noise adds: K1 1.00 MiB and 0 trained parameters, K4 1.00")
    assert "flow 3.00 MiB and 2,500 trained parameters, beside the network's 1,000" in lines[-1]
    assert said["arms"]["K4"]["less_first"]["fid"]["mean"] == pytest.approx(10 * better, abs=0.3)
    assert "less_best" in said["arms"]["kl"]
    assert said["trends"]["equal steps"]["fid"]["mean"] == pytest.approx(10 * better, abs=0.1)


def test_a_higher_gain_is_better_and_a_higher_kid_worse():
    said = said_of(made_up(CPU, 0.5, gain=5.0))
    found = {line.split("by ")[1].split(":")[0]: line for line in said["verdict"][:3]}
    assert "reproduced" in found["KID x1000"]
    assert "REVERSED" in found["gain, nats"]


def test_ratios_are_over_the_seeds_that_have_a_goal():
    """Three seeds: one whose first arm diverged, one where it did no better than the reference."""
    by_arm = made_up(CPU, -0.2)
    ours, first = by_arm["K4"], by_arm["K1"]
    full = reaching(ours, first)
    assert (full["seeds"], full["reached"]) == (3, 3)
    assert full["steps"]["low"] < full["steps"]["mean"] < 1
    assert full["evaluations"]["mean"] < full["steps"]["mean"], "fewer gradients"
    first[0] |= {"kid": None, "points": []}
    first[1] |= {"reference_along": 0.5}
    found = reaching(ours, first)
    assert (found["seeds"], found["reached"], found["steps"]["low"]) == (1, 1, None)
    ours[2]["points"][0]["kid"] = 5.0
    found = reaching(ours, first)
    assert (found["seeds"], found["reached"], found["steps"]["mean"]) == (1, 0, None)


def test_runs_that_diverged_take_part_in_no_mean_and_are_counted():
    by_arm = made_up(CPU, 0.5)
    lost = dict.fromkeys(("kid", "fid", "accuracy", "gain", "seconds")) | {"diverged": "so it did"}
    by_arm["K16"][0] |= lost | {"points": []}
    for run in by_arm["ranking"]:
        run |= lost | {"points": []}
    said = said_of(by_arm)
    slopes = said["trends"]["equal steps"]["kid"]
    assert (slopes["n"], slopes["without"]) == (3, ["K16"])
    assert slopes["mean"] == pytest.approx(0.5, abs=0.02), "of the other three"
    assert (slopes["pairs"], slopes["shorter"]) == (18, 17), "K64 is better than none"
    assert said["trends"]["equal steps, K up to 16"]["kid"]["pairs"] == 9
    assert "without K16, of which runs diverged" in said["verdict"][0]
    assert said["trends"]["equal sampler evaluations"]["gain"]["n"] == 3
    assert any("K16: " in line and "diverged: 1 of 3" in line for line in said["verdict"])
    floor = {"kid": -0.01, "fid": 0.1}
    text = tables(said, by_arm, floor)
    assert "3 of 3" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows if "K16-long" in row} == {8, 6, 5, 10}
    others = ("never", "adaptive", *CPU.noises)
    for runs in (by_arm, {arm: runs[:1] for arm, runs in by_arm.items()}):
        assert figure(runs, CPU.intervals, recipe.LONG, others, floor).startswith(b"\x89PNG")
    json.dumps(said, allow_nan=False)


def test_the_smoke_preset_from_end_to_end(tmp_path, capsys):
    run = tmp_path / "run"
    options = replace(recipe.PRESETS["smoke"], run=run, data=fsdd_tree(tmp_path / "data"))
    recipe.main(options)
    said = capsys.readouterr().out
    arms = recipe.arms(options)
    assert all(f"| {arm} |" in said for arm in arms)
    for name in ("table.md", "figure.png", "choices.json"):
        assert (run / name).stat().st_size > 0
    with (run / "table.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows.keys() == arms.keys()
    assert rows["K4-long"]["evaluations"] == rows["K1"]["evaluations"]
    assert int(rows["K1"]["refreshes"]) == arms["K1"].steps
    assert rows["never"]["refreshes"] == "1"
    results = json.loads((run / "results.json").read_text())
    assert results["verdict"]
    assert np.isfinite(results["arms"]["K1"]["gain"]["mean"])

    # The same again, one run's result lost and its training interrupted: it alone is run, and
    # comes to the same figures.
    (folder,) = (run / "runs").glob("K4.*")
    lost = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    os.replace(folder / "state" / "previous.pt", folder / "state" / "latest.pt")
    capsys.readouterr()
    began = time.time()
    arguments = ["train", "noise_interval", "--preset", "smoke", "--run", str(run)]
    cli.main([*arguments, "--data", str(options.data)])
    assert "; 0 to go here" in capsys.readouterr().out
    again = json.loads((folder / "result.json").read_text())
    for key in ("kid", "fid", "accuracy", "gain", "evaluations", "refreshes"):
        assert again[key] == lost[key], key
    assert [p["kid"] for p in again["points"]] == [p["kid"] for p in lost["points"]]
    written = [p for p in (run / "runs").glob("*/result.json") if p.stat().st_mtime > began]
    assert [p.parent for p in written] == [folder]
    with pytest.raises(ValueError, match="other settings"):
        recipe.main(replace(options, rates=(0.5,)))


def test_presets_can_be_told_to_processes_that_know_only_the_run_folder():
    """What `one` makes of the settings written is what they were."""
    for arm, config in recipe.arms(CPU).items():
        job = recipe.job_of(CPU, arm, config, 3, "test")
        settings = json.loads(json.dumps(job.settings))
        assert settings == job.settings
        assert asdict(recipe.TrainConfig(**settings["train"])) == settings["train"]
