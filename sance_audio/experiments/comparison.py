r"""What runs say together: means over seeds with Student's t, paired differences, trends.

    mean +- t_{n - 1}(0.975) s / sqrt n

Two arms are compared by the differences of the runs that share a seed. A difference counts only
if its interval leaves out zero.
"""

from __future__ import annotations

__all__ = [
    "Interval",
    "interval",
    "paired",
    "shown",
    "clear",
    "slope",
    "passage",
    "markdown",
    "summarised",
    "write_csv",
    "tables",
]

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sance_audio.rows import Rows

Results = dict[str, Any]
Interval = dict[str, Any]


def interval(values: Sequence[float | None]) -> Interval:
    """Mean of the runs that have a value, `n` of them, with its 95 % interval; `low` and `high`
    are None for a single run, and `mean` too for none.

    >>> interval([1.0, 2.0, 3.0, None])["mean"], interval([4.0])["low"]
    (2.0, None)
    """
    from scipy.stats import t

    x = np.array([v for v in values if v is not None], dtype=float)
    n = len(x)
    if n < 2:
        return {"mean": float(x[0]) if n else None, "low": None, "high": None, "n": n}
    half = float(t.ppf(0.975, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return {"mean": float(x.mean()), "low": x.mean() - half, "high": x.mean() + half, "n": n}


def paired(
    ours: Sequence[Results], others: Sequence[Results], value: Callable[[Results], float | None]
) -> Interval:
    """The interval of `value(ours) - value(other)` over the runs that share a `seed` and have it.

    >>> a = [{"seed": 1, "kid": 3.0}, {"seed": 2, "kid": 5.0}, {"seed": 3, "kid": None}]
    >>> b = [{"seed": 2, "kid": 2.0}, {"seed": 1, "kid": 1.0}]
    >>> paired(a, b, lambda run: run["kid"])["mean"]
    2.5
    """
    known = {run["seed"]: value(run) for run in others}
    both = [(value(run), known.get(run["seed"])) for run in ours]
    return interval([a - b for a, b in both if a is not None and b is not None])


def shown(found: Interval, scale: float = 1.0, digits: int = 1, sign: bool = False) -> str:
    """An interval as text.

    >>> shown({"mean": 0.5, "low": 0.25, "high": 0.75, "n": 3}, scale=100, digits=0)
    '50 [25, 75]'
    """
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    if found["mean"] is None:
        return "-"
    mean = form.format(scale * found["mean"])
    if found["low"] is None:
        return mean
    return f"{mean} [{', '.join(form.format(scale * found[k]) for k in ('low', 'high'))}]"


def clear(found: Interval) -> int:
    """1 or -1 where an interval lies above or below zero, 0 where it does not tell.

    >>> clear({"mean": 2.0, "low": 1.0, "high": 3.0}), clear({"mean": 2.0, "low": -1, "high": 5})
    (1, 0)
    """
    if found["low"] is None:
        return 0
    return int(found["low"] > 0) - int(found["high"] < 0)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least squares line through points.

    >>> round(slope([0, 1, 2], [1.0, 3.0, 5.0]), 6)
    2.0
    """
    u = np.asarray(x, dtype=float) - np.mean(x)
    return float(u @ np.asarray(y, dtype=float) / (u @ u))


def passage(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """Where a curve through points `(t, value)`, t rising, first falls to the target; None where
    it never does.

    >>> passage([(0, 4.0), (10, 2.0), (20, 3.0)], 3.0), passage([(0, 4.0), (10, 2.0)], 1.0)
    (5.0, None)
    """
    before = None
    for t, value in points:
        if value <= target:
            if before is None:
                return float(t)
            return float(before[0] + (t - before[0]) * (before[1] - target) / (before[1] - value))
        before = (t, value)
    return None


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows with the same keys, which are its titles."""
    titles = list(rows[0])
    lines = [titles, ["---"] * len(titles), *([str(row[t]) for t in titles] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Arms: the runs of one setting, over seeds


def _kid(run: Results) -> float | None:
    return run["kid"]


def summarised(runs: list[Results], first: list[Results]) -> Results:
    """An arm's figures over its seeds; differences are paired by seed."""
    alone = [run["reference"] | {"seed": run["seed"]} for run in runs]
    gains = [run["gain"] and run["gain"]["mean"] for run in runs]
    plain = ["kid", "fid", "accuracy", "steps", "evaluations", "refreshes", "rollbacks"]
    plain += ["seconds", "peak_mib"]
    return {
        **{name: interval([run[name] for run in runs]) for name in plain},
        "gain": interval(gains),
        "kid_less_first": paired(runs, first, _kid),
        "kid_less_reference": paired(runs, alone, _kid),
        "extra_bytes": runs[0]["extra_bytes"],
        "parameters": runs[0]["parameters"],
        "rate": runs[0]["rate"],
        "runs": len(runs),
        "diverged": sum(run["diverged"] is not None for run in runs),
    }


COLUMNS: tuple[str, ...] = ("arm", "seed", "split", "rate", "kid", "fid", "accuracy", "gain")
COLUMNS += ("gain_error", "kid_reference", "fid_reference", "steps", "evaluations", "refreshes")
COLUMNS += ("causes", "rollbacks", "diverged", "seconds", "peak_mib", "extra_bytes")
COLUMNS += ("parameters",)


def write_csv(path: Path, results: list[Results]) -> None:
    with Rows(path, COLUMNS) as rows:
        for r in results:
            gain = r["gain"] or {"mean": None, "standard_error": None}
            own = {"gain": gain["mean"], "gain_error": gain["standard_error"]}
            own |= {f"{k}_reference": r["reference"][k] for k in ("kid", "fid")}
            own["causes"] = " ".join(f"{k}:{n}" for k, n in r["causes"].items())
            rows.append([{k: v for k, v in (r | own).items() if k in COLUMNS}])


def tables(summary: Results, first: Sequence[Results], floor: Results) -> str:
    """Quality, then cost, in Markdown."""
    names = ("kid", "fid", "accuracy")
    alone = {k: interval([run["reference"][k] for run in first]) for k in names}

    def quality(name: str, found: Results) -> Results:
        nothing = interval([])
        return {
            "arm": name,
            "rate": f"{found['rate']:g}" if "rate" in found else "-",
            "KID x1000": shown(found["kid"], 1000),
            "less the first": shown(found.get("kid_less_first", nothing), 1000, sign=True),
            "less reference": shown(found.get("kid_less_reference", nothing), 1000, sign=True),
            "FID": shown(found["fid"], digits=2),
            "accuracy": shown(found.get("accuracy", nothing), digits=3),
            "gain, nats": shown(found.get("gain", nothing), sign=True),
            "diverged": f"{found['diverged']} of {found['runs']}" if "runs" in found else "-",
        }

    ends = {k: interval([floor[k]]) for k in ("kid", "fid")}
    rows = [quality("real validation clips", ends), quality("reference only", alone)]
    rows += [quality(arm, found) for arm, found in summary.items()]
    costs = [
        {
            "arm": arm,
            "steps": f"{found['steps']['mean']:.0f}",
            "sampler gradients": f"{found['evaluations']['mean']:.0f}",
            "refreshes": f"{found['refreshes']['mean']:.0f}",
            "rollbacks": f"{found['rollbacks']['mean']:.1f}",
            "seconds": shown(found["seconds"], digits=0),
            "peak MiB": f"{found['peak_mib']['mean']:.0f}",
            "extra MiB of noise": f"{found['extra_bytes'] / 2**20:.2f}",
            "trained parameters": found["parameters"],
        }
        for arm, found in summary.items()
    ]
    return f"{markdown(rows)}\n\n{markdown(costs)}\n"
