"""Does a shorter update interval of the noise make better sound? Spoken digits, with error bars.

    python recipes/noise_interval/train.py --data DIR --run runs/noise_interval --preset cpu

Xu (2022, arXiv 2211.02650) reports for self-adapting noise-contrastive estimation that "shorter
update intervals are conducive to higher synthesis quality". Here K, the optimiser steps between
two snapshots of the model, is varied at equal optimiser steps and at equal work of the sampler;
beside it noise that is fixed or is a flow of its own, and the other losses. Each arm has the
learning rate that was best on the validation split; figures come from the test split and other
seeds. The same command again resumes, run by run.
"""

import io
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sance_audio import AudioEBM, LogMel, TrainConfig, processes
from sance_audio.assessment import Judge, classify
from sance_audio.chunks import cores
from sance_audio.datasets import Corpus, fsdd
from sance_audio.evaluation import describe
from sance_audio.experiments import (
    ALONG,
    Interval,
    Job,
    clear,
    distances,
    finish,
    interval,
    passage,
    perform,
    read_job,
    run_jobs,
    shown,
    slope,
    summarised,
    tables,
    write_csv,
)
from sance_audio.files import read_json, write_json, write_whole
from sance_audio.options import SMOKE, Options, Results, options_from
from sance_audio.preparation import Material, build, prepare
from sance_audio.recipe import launch, one_line_errors
from sance_audio.workflow import connect, start


@dataclass(frozen=True)
class IntervalOptions(Options):
    """Options of the experiment. `train` holds what all arms share."""

    run: Path = Path("runs/noise_interval")
    """Run folder. The same command again resumes."""
    intervals: tuple[int, ...] = (1, 4, 16, 64)
    """Values of K, the first to be compared with."""
    losses: tuple[str, ...] = (
        "kl",
        "least_squares",
        "exponential",
        "alpha",
        "donsker_varadhan",
        "ranking",
    )
    """Tried beside the logistic loss, at the best K above 1 and with its rate."""
    noises: tuple[str, ...] = ("gaussian", "flow")
    """Tried beside self noise."""
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    """Learning rates that each arm chooses from."""
    seeds: int = 3
    """Runs that are reported of each arm of self noise, none with the seed that chose its rate."""
    other_seeds: int = 3
    """The same for the other noises and losses."""
    sets: int = 5
    """Sets of `evaluate` clips that a run's figures are means over."""
    points: int = 5
    """Times that a reported run is judged while it trains."""
    jobs: int = 0
    """Runs side by side, one thread each; one for each core when 0."""


SHARED = TrainConfig(
    steps=576, per_component=4, groups=4, langevin_steps=10, adaptive=False, sample_every=0
)
FRONT: Results = {"frames": 32, "components": 1, "evaluate": 300}
FRONT |= {"generation_steps": 20, "annealing": 60}

LONG = "-long"
"""What the name of an arm ends with that has as many sampler gradients as the first."""
STARTING = 8.0
"""Seconds that a process takes to start, about."""

PRESETS = {
    "smoke": IntervalOptions(
        **SMOKE
        | {
            "frames": 32,
            "train": replace(SHARED, steps=8, langevin_steps=2),
            "evaluate": 40,
        },
        intervals=(1, 4),
        losses=(),
        noises=(),
        rates=(3e-4,),
        seeds=1,
        other_seeds=1,
        sets=1,
        points=2,
    ),
    "cpu": IntervalOptions(
        preset="cpu", **FRONT, network="smoke", train=SHARED, classifier_epochs=10
    ),
    "gpu": IntervalOptions(
        preset="gpu",
        **FRONT,
        network="cpu",
        train=replace(SHARED, steps=2304, langevin_steps=20),
        seeds=8,
        other_seeds=4,
        jobs=1,
    ),
}


def corpus(options: Options) -> Corpus:
    return fsdd.prepare(options.data)


def front_end() -> LogMel:
    return LogMel(fsdd.SAMPLE_RATE, n_fft=512, hop_length=256, n_mels=32, f_min=20.0, floor=5e-5)


# The arms


def arms(options: IntervalOptions) -> dict[str, TrainConfig]:
    """Settings of the arms that are known from the start, but for their rates.

    The pool grows with the square root of K, so that a longer interval has more noise to choose
    from and still less work for the sampler: pool / K of what K = 1 does. An arm `K...-long` takes
    as many more optimiser steps.
    """
    base, found = options.train, {}

    def with_pool(pool: int, **more: Any) -> TrainConfig:
        return replace(base, pool=pool, groups=max(base.groups, pool), **more)

    for k in options.intervals:
        found[f"K{k}"] = with_pool(min(8, math.isqrt(k)), interval=k)
    for k in options.intervals[1:]:
        own = found[f"K{k}"]
        found[f"K{k}{LONG}"] = replace(own, steps=base.steps * k // own.pool_groups)
    found["never"] = with_pool(16, interval=base.steps)
    found["adaptive"] = with_pool(8, interval=max(options.intervals), adaptive=True)
    for noise in options.noises:
        found[noise] = with_pool(1, noise=noise, dlogz="learned")
    return found


def seeds_of(options: IntervalOptions, config: TrainConfig) -> int:
    """How many runs of an arm are reported."""
    plain = config.noise == "self" and config.loss == options.train.loss
    return options.seeds if plain else min(options.seeds, options.other_seeds)


def job_of(options: IntervalOptions, arm: str, config: TrainConfig, seed: int, split: str) -> Job:
    """A run of an arm: reported where it is judged on the test clips, chosen from otherwise."""
    config = replace(config, checkpoint_every=max(1, config.steps // options.points))
    names = ("evaluate", "generation_steps", "annealing", "sets")
    settings: Results = {name: getattr(options, name) for name in names}
    settings["points"] = options.points if split == "test" else 0
    settings |= {"arm": arm, "seed": seed, "split": split, "train": asdict(config)}
    return Job(f"{arm}.rate{config.rate:g}.{split}{seed}", settings)


def chosen(
    options: IntervalOptions, found: dict[str, TrainConfig], run: Callable[[list[Job]], Results]
) -> dict[str, Results]:
    """By arm: the rate of least KID on the validation clips, and what all rates came to. A longer
    run of a K has the rate of that K.
    """
    if len(options.rates) == 1:  # nothing to choose
        return {arm: {"rate": options.rates[0], "kid": None, "tried": {}} for arm in found}
    tried = {
        (arm, rate): job_of(options, arm, replace(config, rate=rate), options.seed, "valid")
        for arm, config in found.items()
        for rate in options.rates
        if not arm.endswith(LONG)
    }
    results = run(list(tried.values()))
    out = {}
    for arm in found:
        own = arm.removesuffix(LONG)
        kids = {rate: results[tried[own, rate].name]["kid"] for rate in options.rates}
        best = min(kids, key=lambda rate: (kids[rate] is None, kids[rate] or 0.0, rate))
        named = {f"{rate:g}": kid for rate, kid in kids.items()}
        out[arm] = {"rate": best, "kid": kids[best], "tried": named}
        out[arm]["at_the_end"] = best in (min(options.rates), max(options.rates))
    return out


# One run, in a process of its own


ABOUT = ("arm", "split", "points")
"""Settings of a job that are no options."""


def one(folder: Path) -> None:
    """Train and judge the run whose folder it is, with the settings there."""
    job, home = read_job(folder), folder.parents[1]
    told = options_from(read_json(home / "config.json"), PRESETS["cpu"])
    settings = {k: v for k, v in job.settings.items() if k not in ABOUT}
    options = replace(
        told,
        **settings | {"train": TrainConfig(**settings["train"])},
        run=folder,
        cache=told.cache or home / "features",
    )
    device = connect(options)
    digits, features = corpus(options), front_end()
    material = prepare(digits, features, options)
    model, components = build(material, digits, features, options)
    model.to(device)
    judge = classify(model, material, replace(options, run=home))
    asked = {name: job.settings[name] for name in ("split", "points", "sets")}
    done = perform(model, components, material, judge, options, **asked)
    about = {name: job.settings[name] for name in ("arm", "seed", "split")}
    finish(folder, about | {"rate": options.train.rate} | done)


# The experiment


class Diary:
    """Prints the plan, then a line for each run that a process has finished."""

    def __init__(self, options: IntervalOptions, model: AudioEBM):
        self.side_by_side = options.jobs or cores()
        self.options, self.gradient = options, _seconds_of_a_gradient(model)
        self.components = model.reference.n_components
        self.expected, self.done, self.began = 0.0, 0.0, time.monotonic()

    def seconds(self, train: Results, split: str) -> float:
        """What a run should take, in gradients of one row: those of the sampler, 1.5 for each row
        that the network is trained on, less for each that it is only computed on.
        """
        config, options = TrainConfig(**train), self.options
        batch = config.per_component * self.components
        pool = config.pool_groups * batch
        per_step = 4.0 * batch + 0.2 * pool * (config.interval > 1)
        if config.noise in ("self", "pcd"):
            per_step += pool * config.langevin_steps / config.interval
        judging = options.evaluate * options.generation_steps
        judging *= options.sets + ALONG * options.points * (split == "test")
        judging += 24 * self.components * options.annealing * (split == "test")
        return STARTING + self.gradient * (config.steps * per_step + judging)

    def plan(self, found: dict[str, TrainConfig]) -> None:
        """Say what is to come; of the losses, which K they take is not known yet."""
        options = self.options
        first = found[f"K{options.intervals[0]}"]
        every = found | {loss: replace(first, loss=loss) for loss in options.losses}
        choosing = len(options.rates) if len(options.rates) > 1 else 0
        own = [arm for arm in found if not arm.endswith(LONG)]  # these choose a rate
        choices = choosing * len(own)
        for arm, config in every.items():
            times_chosen = choosing * (arm in own)
            for split, times in (("valid", times_chosen), ("test", seeds_of(options, config))):
                self.expected += times * self.seconds(asdict(config), split)
        reported = sum(seeds_of(options, config) for config in every.values())
        minutes = self.expected / self.side_by_side / 60
        print(
            f"{len(every)} arms: {choices} runs to choose rates, {reported} to "
            f"report; {choices + reported} in all, {self.side_by_side} at once, "
            f"about {minutes:.0f} minutes at this machine's speed of now"
        )

    def skip(self, jobs: list[Job]) -> None:
        """Runs that were finished before take no time."""
        for job in jobs:
            self.expected -= self.seconds(job.settings["train"], job.settings["split"])

    def write(self, job: Job, result: Results, left: int) -> None:
        self.done += self.seconds(job.settings["train"], job.settings["split"])
        ahead = max(0.0, self.expected - self.done) / self.done
        minutes = (time.monotonic() - self.began) / 60
        kid = "diverged" if result["kid"] is None else f"KID x1000 {1000 * result['kid']:.1f}"
        print(
            f"{job.name}: {kid}, {result['seconds'] or 0:.0f} s; {left} to go here, about "
            f"{minutes * ahead:.0f} minutes left in all",
            flush=True,
        )


def _seconds_of_a_gradient(model: AudioEBM) -> float:
    """Of one row, in one thread: the least of several tries, since other work only adds."""
    took, rows, steps = [], list(range(16)), 10
    for _ in range(5):
        began = time.perf_counter()
        model.draw([0] * len(rows), rows, steps=steps)
        took.append(time.perf_counter() - began)
    return min(took) / (len(rows) * steps)


def main(options: IntervalOptions) -> None:
    if processes.count() > 1:
        raise ValueError("start this recipe in one process: it starts its own, --jobs of them")
    device = connect(options)
    digits, features = corpus(options), front_end()
    start(options, "noise_interval", device)
    options = replace(options, cache=options.cache or options.run / "features")
    material = prepare(digits, features, options)
    model = build(material, digits, features, options)[0].to(device)
    judge = classify(model, material, options)
    diary, first = Diary(options, model), arms(options)
    diary.plan(first)

    def run(jobs: list[Job]) -> dict[str, Results]:
        diary.skip([j for j in jobs if (options.run / "runs" / j.name / "result.json").exists()])
        return run_jobs(
            jobs,
            options.run / "runs",
            lambda job: [sys.executable, __file__, "--one", str(options.run / "runs" / job.name)],
            at_once=options.jobs,
            say=diary.write,
        )

    choices = chosen(options, first, run)
    # At K = 1 all losses have one gradient but for a factor: they part where K is larger.
    longer = (f"K{k}" for k in options.intervals if k > 1)
    best = min(longer, key=lambda arm: _or_infinite(choices[arm]))
    others = {loss: replace(first[best], loss=loss) for loss in options.losses}
    choices |= dict.fromkeys(others, choices[best])
    write_json(options.run / "choices.json", {"losses_at": best, "arms": choices})
    reported = [
        job_of(options, arm, replace(config, rate=choices[arm]["rate"]), seed, "test")
        for seed in range(options.seed + 1, options.seed + 1 + options.seeds)
        for arm, config in (first | others).items()
        if seed <= options.seed + seeds_of(options, config)
    ]
    results = run(reported)
    conclude(options, choices, best, results, real(judge, material, options))


def _or_infinite(choice: Results) -> float:
    return math.inf if choice["kid"] is None else choice["kid"]


def real(judge: Judge, material: Material, options: Options) -> Results:
    """Validation clips against as many test clips: what a perfect model would come to."""
    n = min(options.evaluate, len(material.y["valid"]), len(material.y["test"]))
    phi = {s: describe(judge.classifier, material.some(s, n)[0]).phi for s in ("valid", "test")}
    return {"clips": n} | distances(phi["valid"], phi["test"])


# What it says


def conclude(
    options: IntervalOptions,
    choices: Results,
    best: str,
    results: dict[str, Results],
    floor: Results,
) -> None:
    """Write `table.csv`, `table.md`, `figure.png` and `results.json`; print table and verdict."""
    by_arm: dict[str, list[Results]] = {arm: [] for arm in choices}
    for result in results.values():
        by_arm[result["arm"]].append(result)
    first = f"K{options.intervals[0]}"
    summary = {arm: summarised(runs, by_arm[first]) for arm, runs in by_arm.items()}
    trends = {
        "equal steps": trend(options, by_arm, ""),
        "equal evaluations": trend(options, by_arm, LONG),
    }
    reach = {arm: reaching(by_arm[arm], by_arm[first]) for arm in by_arm if arm.startswith("K")}
    words = verdict(first, trends, reach, summary)
    every = [
        read_json(p)
        for p in sorted((options.run / "runs").glob("*/result.json"))
        if p.parent.name in results or ".valid" in p.parent.name
    ]
    write_csv(options.run / "table.csv", every)
    text = tables(summary, by_arm[first], floor)
    write_whole(options.run / "table.md", text.encode())
    write_whole(options.run / "figure.png", figure(options, by_arm, floor))
    write_json(
        options.run / "results.json",
        {
            "recipe": "noise_interval",
            "verdict": words,
            "losses_at": best,
            "real": floor,
            "arms": summary,
            "trends": trends,
            "reaching": reach,
            "choices": choices,
        },
    )
    print("\n" + text)
    print("\n".join(f"- {line}" for line in words))
    print(f"\nfigures in {options.run.resolve()}: table.csv, table.md, figure.png, results.json")


def trend(options: IntervalOptions, by_arm: dict[str, list[Results]], kind: str) -> Interval:
    """Slope of KID over log4 K, seed by seed: above zero, shorter intervals are better."""
    first, *more = options.intervals
    names = [f"K{first}", *(f"K{k}{kind}" for k in more)]
    known = [{run["seed"]: run["kid"] for run in by_arm[name]} for name in names]
    x, slopes = [math.log(k, 4) for k in options.intervals], []
    for seed in known[0]:
        kids = [arm.get(seed) for arm in known]
        slopes.append(None if None in kids else slope(x, kids))  # type: ignore[arg-type]
    return interval(slopes)


def reaching(runs: list[Results], first: list[Results]) -> Results:
    """How many times the first arm's evaluations and steps these runs took to come to the KID
    that the run of the first arm with their seed ended at; where both came to it for the first
    time, between points along training. Means are geometric; None: not one run, or the first
    arm's, came to it.
    """
    ratios: dict[str, list[float]] = {"evaluations": [], "steps": []}
    goal = {run["seed"]: run for run in first if run["kid"] is not None}
    seeds = [run for run in runs if run["seed"] in goal]
    for run in seeds:
        target = goal[run["seed"]]["points"][-1]["kid"]
        for name, found in ratios.items():
            theirs, ours = (passage(curve(r, name), target) for r in (goal[run["seed"]], run))
            if theirs and ours:
                found.append(math.log(ours / theirs))
    out: Results = {"seeds": len(seeds), "reached": len(ratios["steps"])}
    for name, logs in ratios.items():
        around = interval(logs)
        powers = {k: around[k] for k in ("mean", "low", "high")}
        out[name] = {k: None if v is None else math.exp(v) for k, v in powers.items()}
    return out


def curve(run: Results, name: str) -> list[tuple[float, float]]:
    """KID along training against `steps` or `evaluations`, from the reference on."""
    key = {"steps": "step"}.get(name, name)
    points = [(p[key], p["kid"]) for p in run["points"] if p["kid"] is not None]
    return [(0, run["reference_along"]), *points]


def verdict(first: str, trends: Results, reach: Results, summary: Results) -> list[str]:
    """The question answered in words that the figures decide."""
    lines = []
    for name, found in trends.items():
        word = {1: "reproduced", -1: "REVERSED: longer intervals are better", 0: "not decided"}
        lines.append(
            f"At {name}, 'shorter update intervals, higher quality' is {word[clear(found)]}: KID "
            f"x1000 changes by {shown(found, 1000, sign=True)} for each factor of 4 in K "
            f"({found['n']} seeds)."
        )
    for arm, found in reach.items():
        if arm == first or not found["seeds"]:
            continue
        if found["reached"] < found["seeds"]:
            lines.append(
                f"{arm} never came to the KID of {first} in "
                f"{found['seeds'] - found['reached']} of {found['seeds']} seeds: no ratio."
            )
        else:
            lines.append(
                f"{arm} came to the KID of {first} with {shown(found['evaluations'], digits=2)} "
                f"times its sampler gradient evaluations and {shown(found['steps'], digits=2)} "
                f"times its optimiser steps ({found['seeds']} seeds)."
            )
    word = {-1: "a gain", 1: "a loss", 0: "no difference that excludes chance"}
    for arm, found in summary.items():
        alone, beside = found["kid_less_reference"], found["kid_less_first"]
        line = f"{arm}, KID x1000: less reference only {shown(alone, 1000, sign=True)}, "
        line += word[clear(alone)]
        if arm != first:
            line += f"; less {first} {shown(beside, 1000, sign=True)}, {word[clear(beside)]}"
        if found["diverged"]:
            line += f"; diverged: {found['diverged']} of {found['runs']}"
        lines.append(line + ".")
    return lines


def figure(options: IntervalOptions, by_arm: dict[str, list[Results]], floor: Results) -> bytes:
    """KID against K with its intervals, and KID along training; as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(sheet)
    left, right = sheet.subplots(1, 2)
    first, *more = options.intervals
    alone = interval([run["reference"]["kid"] for run in by_arm[f"K{first}"]])
    for axis in (left, right):
        low, high = (alone[k] if alone[k] is not None else alone["mean"] for k in ("low", "high"))
        axis.axhspan(1000 * low, 1000 * high, color="0.85", label="reference only")
        axis.axhline(1000 * floor["kid"], color="0.5", ls=":", label="real clips")
        axis.set_ylabel("KID x1000, test clips")
    beyond = ["never", "adaptive", *options.noises]
    places = [options.intervals[-1] * 4 ** (i + 1) for i in range(len(beyond))]
    equal = {k: f"K{k}" for k in options.intervals}
    for names, title, shift, style in (
        (equal, "equal steps", 0.94, "o-"),
        (equal | {k: f"K{k}{LONG}" for k in more}, "equal sampler evaluations", 1.06, "o-"),
        (dict(zip(places, beyond, strict=True)), "", 1.0, "s"),
    ):
        found = {k * shift: interval([run["kid"] for run in by_arm[a]]) for k, a in names.items()}
        found = {k: f for k, f in found.items() if f["n"]}
        half = [1000 * (f["high"] - f["mean"]) if f["n"] > 1 else 0.0 for f in found.values()]
        means = [1000 * f["mean"] for f in found.values()]
        left.errorbar(list(found), means, half, fmt=style, capsize=3, label=title)
    left.set_xscale("log", base=4)
    left.set_xticks(
        [*options.intervals, *places], [*map(str, options.intervals), *beyond], rotation=30
    )
    left.minorticks_off()
    left.set_xlabel("K, optimiser steps between snapshots")
    for name in [f"K{first}", *(f"K{k}{LONG}" for k in more)]:
        runs = [curve(run, "evaluations") for run in by_arm[name] if run["kid"] is not None]
        runs = [points for points in runs if len(points) == max(map(len, runs))]
        if runs:
            x, y = np.array(runs, dtype=float).mean(0).T
            right.plot(x, 1000 * y, "o-", ms=3, label=name)
    right.set_xlabel("gradient evaluations of the sampler")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    buffer = io.BytesIO()
    sheet.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:  # how the experiment calls itself
        with one_line_errors("one run"):
            one(Path(sys.argv[2]))
    else:
        launch(main, PRESETS, __doc__)
