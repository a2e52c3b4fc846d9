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
]

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

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
