"""Does a shorter update interval of the noise make better sound? Spoken digits, with error bars.

    python recipes/noise_interval/train.py --data DIR --run runs/noise_interval --preset cpu

Xu (2022, arXiv 2211.02650) reports for self-adapting noise-contrastive estimation that "shorter
update intervals are conducive to higher synthesis quality". Here K, the optimiser steps between
two snapshots of the model, is varied at equal optimiser steps and at equal work of the sampler;
beside it noise that is fixed or is a flow of its own, and the other losses. Each arm has the
learning rate that was best on the validation split; figures come from the test split and other
seeds. The same command again resumes, run by run.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sance_audio import LogMel, TrainConfig, experiments, processes
from sance_audio.assessment import classify
from sance_audio.datasets import Corpus, fsdd
from sance_audio.experiments import Job
from sance_audio.files import read_json, write_json, write_whole
from sance_audio.options import SMOKE, Options, Results, options_from
from sance_audio.preparation import build, prepare
from sance_audio.recipe import launch, one_line_errors
from sance_audio.workflow import connect, start

LOSSES = ("kl", "least_squares", "exponential", "alpha", "donsker_varadhan", "ranking")


@dataclass(frozen=True)
class IntervalOptions(Options):
    """Options of the experiment. `train` holds what all arms share."""

    run: Path = Path("runs/noise_interval")
    """Run folder. The same command again resumes."""
    intervals: tuple[int, ...] = (1, 4, 16, 64)
    """Values of K, the first to be compared with."""
    losses: tuple[str, ...] = LOSSES
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
    """Times that a reported run is judged while it trains, and once more at its end where its
    steps are no multiple."""
    jobs: int = 0
    """Runs side by side, one thread each; one for each core when 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        k = self.intervals
        if len(k) < 2 or k[0] < 1 or list(k) != sorted(set(k)):
            raise ValueError(f"--intervals must be two or more, rising from 1 or more, found {k}")
        if self.levels or self.truncation:
            raise ValueError("--levels and --truncation are no part of this experiment")
        for name in ("seeds", "other_seeds", "sets", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, found {getattr(self, name)}")


SHARED = TrainConfig(
    steps=576, per_component=4, groups=4, langevin_steps=10, adaptive=False, sample_every=0
)
FRONT: Results = {"frames": 32, "components": 1, "evaluate": 300}
FRONT |= {"generation_steps": 20, "annealing": 60}

LONG = "-long"
"""What the name of an arm ends with that has as many sampler gradients as the first."""

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
    as many more optimiser steps as give it the work of the first arm.
    """
    base, found = options.train, {}

    def with_pool(pool: int, **more: Any) -> TrainConfig:
        return replace(base, pool=pool, groups=max(base.groups, pool), **more)

    for k in options.intervals:
        found[f"K{k}"] = with_pool(min(8, math.isqrt(k)), interval=k)
    first, *more = (found[f"K{k}"] for k in options.intervals)
    for own in more:
        times = first.pool_groups * own.interval, own.pool_groups * first.interval
        found[f"K{own.interval}{LONG}"] = replace(own, steps=base.steps * times[0] // times[1])
    found["never"] = with_pool(16, interval=base.steps)
    found["adaptive"] = with_pool(8, interval=max(options.intervals), adaptive=True)
    for noise in options.noises:
        found[noise] = with_pool(1, noise=noise, dlogz="learned")
    return found


def with_losses(
    options: IntervalOptions, found: dict[str, TrainConfig], best: str
) -> dict[str, TrainConfig]:
    """The arms, and those of the other losses, which are the arm `best` but for the loss."""
    return found | {loss: replace(found[best], loss=loss) for loss in options.losses}


def job_of(options: IntervalOptions, arm: str, config: TrainConfig, seed: int, split: str) -> Job:
    """A run of an arm: reported where it is judged on the test clips, chosen from otherwise."""
    config = replace(config, checkpoint_every=max(1, config.steps // options.points))
    names = ("evaluate", "generation_steps", "annealing", "sets")
    settings: Results = {name: getattr(options, name) for name in names}
    settings["points"] = options.points if split == "test" else 0
    settings |= {"arm": arm, "seed": seed, "split": split, "train": asdict(config)}
    return Job(f"{arm}.rate{config.rate:g}.{split}{seed}", settings)


def choosing(options: IntervalOptions, found: dict[str, TrainConfig]) -> dict[Any, Job]:
    """By arm and rate, the runs that rates are chosen by. A longer run of a K has none: it takes
    the rate of that K.
    """
    if len(options.rates) == 1:  # nothing to choose
        return {}
    return {
        (arm, rate): job_of(options, arm, replace(config, rate=rate), options.seed, "valid")
        for arm, config in found.items()
        for rate in options.rates
        if not arm.endswith(LONG)
    }


def chosen(
    options: IntervalOptions, found: dict[str, TrainConfig], run: Callable[[list[Job]], Results]
) -> dict[str, Results]:
    """By arm: the rate of least KID on the validation clips, and what all rates came to."""
    tried = choosing(options, found)
    if not tried:
        return {arm: {"rate": options.rates[0], "kid": None, "tried": {}} for arm in found}
    results = run(list(tried.values()))
    out = {}
    for arm in found:
        own = arm.removesuffix(LONG)
        kids = {rate: results[tried[own, rate].name]["kid"] for rate in options.rates}
        best = min(kids, key=lambda rate: (kids[rate] is None, kids[rate] or 0.0, rate))
        named = {f"{rate:g}": kid for rate, kid in kids.items()}
        out[arm] = {"rate": best, "kid": kids[best], "tried": named}
    return out


def rates_at_an_end(options: IntervalOptions, choices: dict[str, Results]) -> list[str]:
    """In words, which arms might have done better with a rate that was not tried."""
    if len(options.rates) == 1:
        return []
    lines = []
    for word, end in (("least", min(options.rates)), ("largest", max(options.rates))):
        found = [arm for arm in arms(options) if choices[arm]["rate"] == end]
        found = [arm for arm in found if not arm.endswith(LONG)]
        if found:
            lines.append(f"The {word} rate tried, {end:g}, was best for {', '.join(found)}.")
    return lines


def best_of(options: IntervalOptions, choices: dict[str, Results]) -> str:
    """The K above 1 of least KID on the validation clips. Losses are compared there: at K = 1 all
    have one gradient but for a factor.
    """
    kids = {f"K{k}": choices[f"K{k}"]["kid"] for k in options.intervals if k > 1}
    return min(kids, key=lambda arm: math.inf if kids[arm] is None else kids[arm])


def reported(options: IntervalOptions, every: dict[str, TrainConfig]) -> list[Job]:
    """The runs that are reported, seed by seed: none has the seed that chose rates."""

    def seeds(config: TrainConfig) -> int:
        plain = config.noise == "self" and config.loss == options.train.loss
        return options.seeds if plain else min(options.seeds, options.other_seeds)

    return [
        job_of(options, arm, config, options.seed + i, "test")
        for i in range(1, options.seeds + 1)
        for arm, config in every.items()
        if i <= seeds(config)
    ]


# One run, in a process of its own


ABOUT = ("arm", "split", "points")
"""Settings of a job that are no options."""


def one(folder: Path) -> None:
    """Train and judge the run whose folder it is, with the settings there."""
    job, home = experiments.read_job(folder), folder.parents[1]
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
    done = experiments.perform(model, components, material, judge, options, **asked)
    about = {name: job.settings[name] for name in ("arm", "seed", "split")}
    experiments.finish(folder, about | {"rate": options.train.rate} | done)


# The experiment


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
    first, folder = arms(options), options.run / "runs"
    # Which K the losses take is not known yet: that of the second arm stands for it in the plan.
    guess = with_losses(options, first, f"K{options.intervals[1]}")
    diary = experiments.Diary(model, options.jobs)
    diary.plan(len(guess), list(choosing(options, first).values()), reported(options, guess))

    def run(jobs: list[Job]) -> dict[str, Results]:
        return diary.run(
            jobs, folder, lambda job: [sys.executable, __file__, "--one", str(folder / job.name)]
        )

    choices = chosen(options, first, run)
    best = best_of(options, choices)
    choices |= dict.fromkeys(options.losses, choices[best])
    write_json(options.run / "choices.json", {"losses_at": best, "arms": choices})
    every = {
        arm: replace(config, rate=choices[arm]["rate"])
        for arm, config in with_losses(options, first, best).items()
    }
    floor = experiments.real_clips(judge, material, options)
    conclude(options, choices, best, run(reported(options, every)), floor)


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
    said = experiments.compared(by_arm, options.intervals, LONG, best, options.losses)
    said["verdict"] += rates_at_an_end(options, choices)
    said |= {"recipe": "noise_interval", "real": floor, "choices": choices}
    write_json(options.run / "results.json", said)
    folders = sorted((options.run / "runs").glob("*/result.json"))
    runs = (p for p in folders if p.parent.name in results or ".valid" in p.parent.name)
    experiments.write_csv(options.run / "table.csv", [read_json(p) for p in runs])
    text = experiments.tables(said, by_arm, floor)
    write_whole(options.run / "table.md", text.encode())
    others = ("never", "adaptive", *options.noises)
    drawn = experiments.figure(by_arm, options.intervals, LONG, others, floor)
    write_whole(options.run / "figure.png", drawn)
    print("\n" + text)
    print("\n".join(f"- {line}" for line in said["verdict"]))
    print(f"\nfigures in {options.run.resolve()}: table.csv, table.md, figure.png, results.json")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:  # how the experiment calls itself
        with one_line_errors("one run"):
            one(Path(sys.argv[2]))
    else:
        launch(main, PRESETS, __doc__)
