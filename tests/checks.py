"""Statistical asserts with a false-alarm rate below 1e-6 over the whole suite.

A check fails only if it exceeds 4 standard errors on its first seed and again on a fresh one: two
independent failures of probability 6e-5 each, 4e-9 a check. Where the standard error is that of a
few runs, the score has Student's distribution, and the limit is as far out as leaves it the same
probability.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def holds_on_a_fresh_seed(
    zscores: Callable[[int], Tensor], limit: float = 4.0, df: int | None = None
) -> None:
    """Assert that every z-score of `zscores(seed)` lies within `limit` on one of two seeds.

    With many scores at once the limit applies to each score that failed before.

    Arguments:
        limit: In standard errors, of a normal score.
        df: Degrees of freedom of the standard errors, one less than the runs they are estimated
            from; None where they are known.
    """
    limit = limit if df is None else student_limit(limit, df)
    first = zscores(0).abs()
    failed = first > limit
    if failed.any():
        again = zscores(1).abs()[failed]
        assert (again <= limit).all(), f"z-scores {first[failed].tolist()}, again {again.tolist()}"


def student_limit(limit: float, df: int) -> float:
    """What a score of Student's distribution passes as often as a normal one passes `limit`.

    With t = sqrt(df) tan a the tail is `int_a^(pi/2) cos(a)^(df - 1) da` over its whole, found by
    bisection of a.
    """
    tail = math.erfc(limit / math.sqrt(2)) / 2
    whole = math.sqrt(math.pi) * math.exp(math.lgamma(df / 2) - math.lgamma((df + 1) / 2))
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        a = torch.linspace(middle, math.pi / 2, 10_001, dtype=torch.float64)
        beyond = float(torch.trapezoid(a.cos().clamp_min(0) ** (df - 1), a)) / whole
        low, high = (middle, high) if beyond > tail else (low, middle)
    return math.sqrt(df) * math.tan(low)
