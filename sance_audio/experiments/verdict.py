"""Are shorter update intervals of the noise better? Trends, ratios of work, and words for them.

    y(K) ~ a + b log4 K        b for each seed, its mean with Student's t over the seeds

Arms are named `K1`, `K4`, ... after their interval K; a suffix names those that train for longer,
`K4-long`, until they have as much work of the sampler as the first.
"""

from __future__ import annotations

__all__ = ["trend", "trends", "reaching", "curve", "verdict", "compared", "borne_out"]

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from sance_audio.experiments.comparison import (
    Interval,
    clear,
    interval,
    passage,
    shown,
    slope,
)
from sance_audio.experiments.tables import MEASURES, Measure, differences, summarised

Results = dict[str, Any]
Runs = Mapping[str, Sequence[Results]]
"""By arm."""
DECIDE = ("kid", "fid", "gain")
"""Measures that the question is put to."""


def trend(
    by_arm: Runs, intervals: Sequence[int], suffix: str = "", measure: Measure = MEASURES["kid"]
) -> Results:
    """Slope of a measure over log4 K.

    Arguments:
        by_arm: Runs of the arms.
        intervals: Values of K.
        suffix: That the names of all arms but the first end with.
        measure: What is followed; where lower is better, a slope above zero speaks for short
            intervals.

    Returns:
        The slope's `Interval` over the seeds of the first arm. An arm of which a run lacks the
        measure, since it diverged, has no part in it and is named in `without`. `pairs`: how many
        two runs of one seed there are, one of which is better, those that diverged being worst;
        `shorter`: in how many of them that is the one with the shorter interval.
    """
    first, *more = intervals
    names = [f"K{first}", *(f"K{k}{suffix}" for k in more)]
    known = {name: {run["seed"]: measure.of(run) for run in by_arm[name]} for name in names}
    without = [name for name in names[1:] if None in known[name].values()]
    at = {name: math.log(k, 4) for name, k in zip(names, intervals, strict=True)}
    x, slopes = [at[name] for name in names if name not in without], []
    better: list[bool] = []
    for seed in known[names[0]]:
        values = {name: known[name].get(seed) for name in names}
        y = [v for name, v in values.items() if v is not None and name not in without]
        slopes.append(slope(x, y) if len(y) == len(x) > 1 else None)
        ranks = [-math.inf if v is None else measure.better * v for v in values.values()]
        better += [a > b for a, b in combinations(ranks, 2) if a != b]
    return interval(slopes) | {"without": without, "pairs": len(better), "shorter": sum(better)}


def trends(by_arm: Runs, intervals: Sequence[int], suffix: str) -> Results:
    """The slopes of all measures, at equal steps and, with the suffix, at equal evaluations; and
    those of all K but the longest, which might decide them alone.
    """
    spans = {"": intervals}
    if len(intervals) > 2:
        spans[f", K up to {intervals[-2]}"] = intervals[:-1]
    return {
        title + which: {name: trend(by_arm, span, end, m) for name, m in MEASURES.items()}
        for which, span in spans.items()
        for title, end in (("equal steps", ""), ("equal sampler evaluations", suffix))
    }


def borne_out(name: str, found: Interval) -> str:
    """Whether the slope of a measure bears out that shorter intervals are better."""
    words = {1: "reproduced", -1: "REVERSED: longer intervals are better", 0: "not decided"}
    return words[-MEASURES[name].better * clear(found)]


def reaching(runs: Sequence[Results], first: Sequence[Results]) -> Results:
    """How many times the first arm's evaluations and steps these runs took to come to the KID
    that the run of the first arm with their seed ended at; where both came to it for the first
    time, between points along training.

    Returns:
        `seeds`: how many have such a goal, an end of the first arm's that is better than the
        reference. `reached`: how many came to it and did not diverge. `evaluations`, `steps`:
        ratios as intervals, their means geometric, over those.
    """
    goals = {run["seed"]: run for run in first if run["kid"] is not None}
    ratios: dict[str, list[float]] = {"evaluations": [], "steps": []}
    seeds = 0
    for run in runs:
        goal = goals.get(run["seed"])
        target = None if goal is None else goal["points"][-1]["kid"]
        if goal is None or target is None or goal["reference_along"] <= target:
            continue
        seeds += 1
        for name, found in ratios.items():
            theirs, ours = (passage(curve(r, name), target) for r in (goal, run))
            if theirs and ours and run["kid"] is not None:
                found.append(math.log(ours / theirs))
    out: Results = {"seeds": seeds, "reached": len(ratios["steps"])}
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


def verdict(
    first: str,
    found: Results,
    reach: Results,
    summary: Results,
    costs: tuple[Sequence[str], str] = ((), ""),
) -> list[str]:
    """The question answered in words that the figures decide.

    Arguments:
        first: The arm that others are compared with.
        found: What `trends` returns.
        reach: `reaching` by arm.
        summary: `summarised` by arm.
        costs: Arms of self noise, and one of other noise that their costs are compared with.
    """
    lines = [
        _answer(title, name, slopes[name]) for title, slopes in found.items() for name in DECIDE
    ]
    lines += [_reached(arm, first, f) for arm, f in reach.items() if arm != first and f["seeds"]]
    lines += [_compared(arm, first, f) for arm, f in summary.items()]
    own, other = costs
    if other in summary:
        lines.append(_what_noise_adds({arm: summary[arm] for arm in own}, other, summary[other]))
    return lines


def _answer(title: str, name: str, found: Results) -> str:
    measure = MEASURES[name]
    names = ", ".join(found["without"])
    left_out = f", without {names}, of which runs diverged" if names else ""
    return (
        f"At {title}, 'shorter update intervals, higher quality', by {measure.title}: "
        f"{borne_out(name, found)}; {measure.shown(found, sign=True)} for each factor "
        f"of 4 in K ({found['n']} seeds{left_out}); the shorter interval was better in "
        f"{found['shorter']} of {found['pairs']} pairs of runs."
    )


def _reached(arm: str, first: str, found: Results) -> str:
    if found["reached"] < found["seeds"]:
        missed = found["seeds"] - found["reached"]
        of = f"{missed} of {found['seeds']} seeds"
        return f"{arm} never came to the KID of {first} in {of}: no ratio."
    return (
        f"{arm} came to the KID of {first} with {shown(found['evaluations'], digits=2)} "
        f"times its sampler gradient evaluations and {shown(found['steps'], digits=2)} "
        f"times its optimiser steps ({found['seeds']} seeds)."
    )


def _compared(arm: str, first: str, found: Results) -> str:
    """An arm against the first and the reference alone; the figures stand in the tables."""
    words = {1: "better", -1: "WORSE", 0: "not decided"}

    def told(differences: Results) -> str:
        return ", ".join(
            f"{name.upper() if name != 'gain' else name} "
            f"{words[MEASURES[name].better * clear(differences[name])]}"
            for name in DECIDE
            if name in differences
        )

    line = f"{arm}: than the reference alone, {told(found['less_reference'])}"
    if arm != first:
        line += f"; than {first}, {told(found['less_first'])}"
    if found["diverged"]:
        line += f"; diverged: {found['diverged']} of {found['runs']}"
    return line + "."


def _what_noise_adds(own: Results, other: str, found: Results) -> str:
    """Memory and parameters that noise takes beside the network."""

    def told(arm: str, costs: Results) -> str:
        trained = costs["parameters"] - costs["network_parameters"]
        return f"{arm} {costs['extra_bytes'] / 2**20:.2f} MiB and {trained:,} trained parameters"

    each = ", ".join(told(arm, costs) for arm, costs in own.items())
    times = "; ".join(
        f"{found['extra_bytes'] / costs['extra_bytes']:.1f} times the memory of {arm}"
        for arm, costs in own.items()
    )
    network = f"beside the network's {found['network_parameters']:,}"
    return f"What noise adds: {each}; {told(other, found)}, {network} ({times})."


def compared(
    by_arm: Runs, intervals: Sequence[int], suffix: str, best: str, losses: Sequence[str] = ()
) -> Results:
    """All that the runs say together.

    Arguments:
        by_arm: Runs of the arms, at least one each.
        intervals: Values of K, the first arm's first.
        suffix: That the names of arms of equal work end with.
        best: Arm of self noise whose cost is told beside that of the first, and that losses
            differ from by the loss alone.
        losses: Arms of those.

    Returns:
        `first`, `best`; `arms`: `summarised` by arm; `trends`; `reaching` by arm; `verdict`.
    """
    first = f"K{intervals[0]}"
    arms = {arm: summarised(runs, by_arm[first]) for arm, runs in by_arm.items()}
    for loss in losses:
        arms[loss]["less_best"] = differences(by_arm[loss], by_arm[best])
    slopes = trends(by_arm, intervals, suffix)
    reach = {
        f"K{k}{end}": reaching(by_arm[f"K{k}{end}"], by_arm[first])
        for end in ("", suffix)
        for k in intervals[1:]
    }
    words = verdict(first, slopes, reach, arms, (tuple(dict.fromkeys((first, best))), "flow"))
    found = {"first": first, "best": best, "verdict": words, "arms": arms}
    return found | {"trends": slopes, "reaching": reach}
