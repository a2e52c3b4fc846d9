"""Alternating timings in one process: medians and ratios."""

from __future__ import annotations

__all__ = ["alternate", "table"]

import statistics
import time
from collections.abc import Callable


def alternate(
    contestants: dict[str, Callable[[], object]], rounds: int = 7
) -> dict[str, list[float]]:
    """Seconds of each contestant, one after the other, `rounds` times, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def table(title: str, seconds: dict[str, list[float]], per: float, unit: str) -> None:
    """Print medians, each divided by `per`, and ratios to the first contestant, round by round."""
    names = list(seconds)
    print(f"\n{title}\n{'':44}{unit:>12}{'ratio':>9}")
    for name in names:
        ratios = [a / b for a, b in zip(seconds[name], seconds[names[0]], strict=True)]
        median = statistics.median(seconds[name]) / per
        print(f"{name:44}{median:12.4f}{statistics.median(ratios):9.2f}")
