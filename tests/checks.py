"""Statistical asserts with a false-alarm rate below 1e-6 over the whole suite.

A check fails only if it exceeds 4 standard errors on its first seed and again on a fresh one: two
independent failures of probability 6e-5 each, 4e-9 a check.
"""

from collections.abc import Callable

from torch import Tensor


def holds_on_a_fresh_seed(zscores: Callable[[int], Tensor], limit: float = 4.0) -> None:
    """Assert that every z-score of `zscores(seed)` lies within `limit` on one of two seeds.

    With many scores at once the limit applies to each score that failed before.
    """
    first = zscores(0).abs()
    failed = first > limit
    if failed.any():
        again = zscores(1).abs()[failed]
        assert (again <= limit).all(), f"z-scores {first[failed].tolist()}, again {again.tolist()}"
