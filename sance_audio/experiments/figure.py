"""The figure of an experiment on update intervals."""

from __future__ import annotations

__all__ = ["figure"]

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sance_audio.experiments.comparison import Interval, interval
from sance_audio.experiments.tables import BESIDE_REFERENCE, MEASURES, Measure
from sance_audio.experiments.verdict import curve

Results = dict[str, Any]
Runs = Mapping[str, Sequence[Results]]


def figure(
    by_arm: Runs, intervals: Sequence[int], suffix: str, beyond: Sequence[str], floor: Results
) -> bytes:
    """KID, FID and held-out gain against K with their intervals, and KID along training; a PNG.
    An arm far worse than the reference is an arrow at the edge, with its figure.

    Arguments:
        by_arm: Runs of the arms.
        intervals: Values of K, the first arm's first.
        suffix: That the names of arms of equal work end with.
        beyond: Other arms to be shown beside those.
        floor: KID and FID of real clips.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(sheet)
    panels = sheet.subplots(2, 2).flat
    first, *more = intervals
    for axis, name in zip(panels, ("kid", "fid", "gain"), strict=False):
        _reference(axis, MEASURES[name], by_arm[f"K{first}"], floor)
        _against_k(axis, MEASURES[name], by_arm, intervals, suffix, beyond)
    along = panels[3]
    _reference(along, MEASURES["kid"], by_arm[f"K{first}"], floor)
    for name in [f"K{first}", *(f"K{k}{suffix}" for k in more)]:
        runs = [curve(run, "evaluations") for run in by_arm[name] if run["kid"] is not None]
        runs = [points for points in runs if len(points) == max(map(len, runs))]
        if runs:
            x, y = np.array(runs, dtype=float).mean(0).T
            along.plot(x, 1000 * y, "o-", ms=3, label=name)
    along.set_xlabel("gradient evaluations of the sampler")
    along.set_ylabel("KID x1000 along training")
    lines, names = along.get_legend_handles_labels()
    along.legend(lines[2:], names[2:], fontsize=8)  # the first two as above
    sheet.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    buffer = io.BytesIO()
    sheet.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _reference(axis: Any, measure: Measure, first: Sequence[Results], floor: Results) -> None:
    """What the reference alone and real clips come to."""
    if measure.name in BESIDE_REFERENCE:
        alone = interval([run["reference"][measure.name] for run in first])
        ends = (alone[k] if alone[k] is not None else alone["mean"] for k in ("low", "high"))
        axis.axhspan(*(measure.scale * v for v in ends), color="0.85", label="reference only")
        axis.axhline(measure.scale * floor[measure.name], color="0.5", ls=":", label="real clips")
    else:
        axis.axhline(0, color="0.85", lw=3)
    axis.set_ylabel(f"{measure.title}, test clips")


def _against_k(
    axis: Any,
    measure: Measure,
    by_arm: Runs,
    intervals: Sequence[int],
    suffix: str,
    beyond: Sequence[str],
) -> None:
    """The measure over K, and at places of their own beyond the last K the other arms."""
    places = [intervals[-1] * 4 ** (i + 1) for i in range(len(beyond))]
    equal = {k: f"K{k}" for k in intervals}
    longer = {k: f"K{k}{suffix}" for k in intervals[1:]}
    lines = (
        (equal, "equal steps", 0.94, "o-"),
        (equal | longer, "equal sampler evaluations", 1.06, "o-"),
        (dict(zip(places, beyond, strict=True)), "others, equal steps", 1.0, "s"),
    )
    found = {a: interval([measure.of(r) for r in runs]) for a, runs in by_arm.items()}
    shown = {a for names, *_ in lines for a in names.values() if found[a]["n"]}
    limit = _limit(measure, by_arm[f"K{intervals[0]}"], [found[a]["mean"] for a in shown])
    for line, (names, title, shift, style) in enumerate(lines):
        at = {k * shift: found[a] for k, a in names.items()}
        near = {k: f for k, f in at.items() if f["n"] and measure.better * (f["mean"] - limit) > 0}
        half = [f["high"] - f["mean"] if f["n"] > 1 else 0.0 for f in near.values()]
        y = measure.scale * np.array([f["mean"] for f in near.values()])
        error = measure.scale * np.array(half)
        drawn = axis.errorbar(list(near), y, error, fmt=style, ms=4, capsize=3, label=title)
        colour = drawn.lines[0].get_color()
        for x, f in at.items():
            if x not in near:
                _beyond(axis, measure, x, f, colour, 7 + 10 * (line == 1))
    if math.isfinite(limit):
        end = measure.scale * limit
        axis.set_ylim(**({"top": end} if measure.better < 0 else {"bottom": end}))
    axis.set_xscale("log", base=4)
    axis.set_xticks([*intervals, *places], [*map(str, intervals), *beyond], rotation=30)
    axis.minorticks_off()
    axis.set_xlabel("K, optimiser steps between snapshots")


def _limit(measure: Measure, first: Sequence[Results], means: Sequence[float]) -> float:
    """Where the axis ends on its worse side: as much worse than the reference as the best arm is
    better; infinite where none is better.
    """
    alone = 0.0
    if measure.name in BESIDE_REFERENCE:
        alone = interval([run["reference"][measure.name] for run in first])["mean"]
    best = max((measure.better * (v - alone) for v in means), default=0.0)
    return alone - measure.better * (best if best > 0 else math.inf)


def _beyond(axis: Any, measure: Measure, x: float, f: Interval, colour: str, gap: float) -> None:
    """An arrow at the worse edge with the figure in words, `gap` points inside."""
    marker, edge, up = ("^", 1.0, -gap - 8) if measure.better < 0 else ("v", 0.0, gap)
    words = f"{measure.scale * f['mean']:.{measure.digits}f}" if f["n"] else "diverged"
    place = axis.get_xaxis_transform()  # x as in the data, y from 0 to 1 over the panel
    axis.plot([x], [edge], marker, color=colour, clip_on=False, transform=place)
    axis.annotate(
        words,
        (x, edge),
        xycoords=place,
        xytext=(0, up),
        textcoords="offset points",
        ha="center",
        color=colour,
        fontsize=7,
    )
