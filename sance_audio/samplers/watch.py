"""What happens to chains while they run, kept on their device and looked at once, at the end."""

from __future__ import annotations

__all__ = ["Watch", "Report"]

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sance_audio.samplers.interface import Info, State, per_row, row_sum

HOPELESS = 1e-3
"""Acceptance below which, in every chain at once, a step has rejected all there was."""


@dataclass(frozen=True)
class Report:
    """What happened to the chains of one chunk."""

    chains: int
    stopped: dict[int, int]
    """By which step a chain had stopped; 0 for one that could not start."""
    expected: float
    """Sum of the acceptance probabilities of all proposals."""
    rejected: int
    """Steps at which no chain had a chance to move."""


class Watch:
    """Follows chains from their first state; nothing here waits for the device but `report`.

    Arguments:
        state: Of B chains at their start.
    """

    def __init__(self, state: Any):
        self.finite = _finite(state)
        self.alarm = torch.zeros_like(state.value)
        self.stopped_at = torch.where(self.finite, -1, 0)
        self.expected = torch.zeros((), dtype=torch.float64, device=state.value.device)
        self.rejected = torch.zeros_like(self.expected)

    def step(self, state: Any, info: Info, count: int) -> None:
        """After a step, or `count` steps that are told of together: `info` then holds sums, of
        acceptances and of failures.
        """
        # NaN or infinite energies stay in the alarm, whatever comes after them
        self.alarm = torch.add(self.alarm, state.value, alpha=0)
        if info.failed is not None:
            self.alarm = self.alarm.masked_fill(info.failed, torch.nan)
            self.expected += info.accepted.sum()
            self.rejected += info.accepted.max() < HOPELESS * count

    def block(self, before: Any, after: Any, done: int) -> Any:
        """The state after some steps, in which chains that failed on the way, or before it, stand
        where they stood before.
        """
        good = self.finite & self.alarm.isfinite() & _finite(after)
        self.stopped_at = torch.where(self.finite & ~good, done, self.stopped_at)
        self.finite = good
        return _select(good, after, before)

    def report(self) -> Report:
        steps = self.stopped_at.tolist()
        stopped = {row: step for row, step in enumerate(steps) if step >= 0}
        return Report(len(steps), stopped, float(self.expected), int(self.rejected))


def _finite(state: Any) -> Tensor:
    """`(B,)`: chains whose place, energy and gradient are finite."""
    sums = row_sum(state.x) + row_sum(state.grad)
    return sums.isfinite() & state.value.isfinite()


def _select(good: Tensor, after: Any, before: Any) -> Any:
    """`after` for chains that are good, `before` for the others; of replicas, all of a chain's."""
    if hasattr(after, "replicas"):
        count = len(after.replicas.x) // len(good)
        replicas = _select(good.repeat(count), after.replicas, before.replicas)
        x, value, grad = (part[: len(good)] for part in replicas[:3])
        return after._replace(x=x, value=value, grad=grad, replicas=replicas)
    return State(
        torch.where(per_row(good, after.x), after.x, before.x),
        torch.where(good, after.value, before.value),
        torch.where(per_row(good, after.x), after.grad, before.grad),
        after.step,
    )
