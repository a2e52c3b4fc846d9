r"""How well scores rank odd clips above normal ones, and by how much better than other scores.

With s_i the scores of odd clips and t_j those of normal ones, and weights w of the clips,

    AUC = sum_ij w_i w_j ([s_i > t_j] + [s_i = t_j] / 2) / (sum_i w_i sum_j w_j)

The interval of a difference is a paired bootstrap over source recordings: w counts how often a
recording was drawn, and all its clips, in all tasks, are drawn together.
"""

from __future__ import annotations

__all__ = ["Case", "auc", "paired_auc", "pauc", "shown_gain"]

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sance_audio import metrics

Array = np.ndarray


class Case(NamedTuple):
    """One task, and two scores of its clips."""

    odd: Array
    """`(B,)`, boolean."""
    groups: Sequence[str]
    """The source recording of each clip."""
    ours: Array
    """`(seeds, B)`."""
    other: Array
    """`(seeds, B)`."""


def auc(odd: Array, score: Array, weight: Array | None = None) -> float:
    """How often an odd clip scores above a normal one, ties counted half; clips `(B,)` may be
    weighted. NaN where either sort is missing.
    """
    return _weighted(_above(odd, score), odd, np.ones(len(odd)) if weight is None else weight)


def pauc(odd: Array, score: Array) -> float:
    """The same up to a false-alarm rate of .1, standardised as McClish does."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(odd, score, max_fpr=0.1))


def paired_auc(cases: Sequence[Case]) -> dict[str, float]:
    """Mean AUC of ours less the other's: `value`, and `low` and `high` of its 95 % interval. A
    task that a resample leaves without clips of either sort is left out of it.
    """
    names = sorted({group for case in cases for group in case.groups})
    number = {name: i for i, name in enumerate(names)}
    parts = [  # an AUC is linear in who is above whom: seeds and scores are subtracted once
        (
            sum(_above(c.odd, a) - _above(c.odd, b) for a, b in zip(c.ours, c.other, strict=True))
            / len(c.ours),
            c.odd,
            np.array([number[group] for group in c.groups]),
        )
        for c in cases
    ]

    def difference(drawn: Array) -> float:
        count = np.bincount(drawn, minlength=len(names)).astype(float)
        found = [_weighted(more, odd, count[who]) for more, odd, who in parts]
        whole = [value for value in found if value == value]
        return float(np.mean(whole)) if whole else float("nan")

    return metrics.paired_interval(difference, len(names))


def _above(odd: Array, score: Array) -> Array:
    return np.sign(score[odd][:, None] - score[~odd]) / 2 + 0.5


def _weighted(above: Array, odd: Array, weight: Array) -> float:
    w, v = weight[odd], weight[~odd]
    pairs = w.sum() * v.sum()
    return float(w @ above @ v / pairs) if pairs else float("nan")


def shown_gain(gain: dict[str, float] | None) -> str:
    """A difference and its interval, as `paired_auc` gives them; a dash for none.

    >>> shown_gain({"value": 0.0214, "low": 0.01, "high": 0.0321}), shown_gain(None)
    ('+0.021 [+0.010, +0.032]', '-')
    """
    if gain is None:
        return "-"
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
