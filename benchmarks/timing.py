"""Alternating timings in one process: medians and ratios."""

from __future__ import annotations

__all__ = ["alternate", "table"]

import statistics
from collections.abc import Callable

from sance_audio.samplers import timed


def alternate(
    contestants: dict[str, Callable[[], object]], rounds: int = 7
) -> dict[str, list[float]]:
    """Seconds of each contestant, one after the other, `rounds` times, after one warm-up each."""
    timed(contestants, 1)
    return timed(contestants, rounds)


def table(title: str, seconds: dict[str, list[float]], per: float, unit: str) -> None:
    """Print medians, each divided by `per`, and ratios to the first contestant, round by round."""
    names = list(seconds)
    print(f"\n{title}\n{'':44}{unit:>12}{'ratio':>9}")
    for name in names:
        ratios = [a / b for a, b in zip(seconds[name], seconds[names[0]], strict=True)]
        median = statistics.median(seconds[name]) / per
        print(f"{name:44}{median:12.4f}{statistics.median(ratios):9.2f}")
