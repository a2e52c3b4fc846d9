r"""How training fares: what must stop it, what calls for a refresh, what calls for attention.

Data is told from noise by `h > 0`: where that is right far more often than not, or where the
weights `exp(h)` of the pool fall on few samples, the noise no longer represents the model. The gap
`mean F(noise) - mean F(data)` tells of chains that lag behind; how far they move at a refresh,
against chains on the reference alone, of chains that stick or run.
"""

from __future__ import annotations

__all__ = ["trouble", "refresh_cause", "balanced_accuracy", "alarms", "summary", "RANGES"]

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sance_audio.config import TrainConfig

REFRESH_AFTER = 200
"""Clips that the balanced accuracy is taken over, at least."""
LATEST = 50
"""Steps that an alarm is decided on."""
RANGES: dict[str, tuple[float, float, str]] = {
    "gap": (
        -5.0,
        5.0,
        "nats: the chains lag behind the model, or the network behind the data; more "
        "train.langevin_steps, or a lower train.rate",
    ),
    "accuracy": (
        0.0,
        0.75,
        "of clips told from noise: it hardly overlaps the data; a shorter train.interval",
    ),
    "pool_ess": (
        0.2,
        1.0,
        "of the pool's effective size: the model has left its noise behind; a shorter "
        "train.interval, or a lower train.rate",
    ),
    "displacement": (
        0.3,
        3.0,
        "of the distance that chains of the reference cover: chains stick (below 1) or run "
        "(above); another train.step_size",
    ),
    "log_z_error": (
        0.0,
        10.0,
        "nats of standard error of the log-partition ledger: it says nothing; train.weighted",
    ),
}
"""Healthy range of the mean of a row's figure over the latest steps, and what leaving it means."""
EARLY = 0.5
"""Share of the latest refreshes that may come before their interval is over."""


def balanced_accuracy(h_data: Tensor, h_noise: Tensor) -> float:
    """How often `h > 0` is right, data and noise counting alike."""
    return 0.5 * float((h_data > 0).float().mean() + (h_noise <= 0).float().mean())


def refresh_cause(
    since: int, right: Sequence[float], pool_ess: float, batch: int, config: TrainConfig
) -> str:
    """Why the noise must be refreshed before the next step; empty when it need not be.

    Arguments:
        since: Steps since the last refresh.
        right: Balanced accuracies since then.
        pool_ess: ESS / N of the pool.
        batch: Data clips in a step, of all processes.
        config: Settings.
    """
    if since >= config.interval:
        return "interval"
    if not config.adaptive:
        return ""
    if pool_ess < config.min_ess:
        return f"ESS/N {pool_ess:.2f}"
    recent = right[-max(1, -(-REFRESH_AFTER // batch)) :]
    if len(recent) * batch >= REFRESH_AFTER and sum(recent) / len(recent) > config.max_accuracy:
        return f"accuracy {sum(recent) / len(recent):.2f}"
    return ""


def trouble(loss: float, norm: float, gaps: Sequence[float], limit: float) -> str:
    """What is wrong with a step, in words; empty when nothing is."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient's norm is {norm}"
    mean = sum(gaps) / len(gaps)
    if not abs(mean) <= limit:
        return f"the network gap is {mean:.1f} nats, beyond {limit:g}: the chains lag behind"
    return ""


def alarms(rows: Sequence[dict[str, Any]], config: TrainConfig) -> dict[str, str]:
    """What is out of its healthy range over the latest rows of metrics: name to words.

    Arguments:
        rows: The last `LATEST` are judged; fewer are not.
        config: Settings.

    >>> rows = [{"step": i, "gap": 8.0} for i in range(LATEST)]
    >>> alarms(rows, TrainConfig())["gap"][:18]
    'gap 8.00, beyond 5'
    """
    latest, found = rows[-LATEST:], {}
    if len(latest) < LATEST:
        return {}
    for name, (low, high, words) in RANGES.items():
        if not config.chains and name in ("gap", "accuracy", "pool_ess"):
            continue  # noise that does not follow the model is meant to be told from it
        values = [row[name] for row in latest if row.get(name) is not None]
        mean = sum(values) / len(values) if values else low
        if not low <= mean <= high:
            beyond = f"below {low:g}" if mean < low else f"beyond {high:g}"
            found[name] = f"{name} {mean:.2f}, {beyond} {words}"
    causes = [row["refresh"] for row in latest if row.get("refresh", "start") != "start"]
    early = sum(cause != "interval" for cause in causes)
    if causes and early > EARLY * len(causes) and config.interval > 1:
        found["refreshes"] = (
            f"{early} of the last {len(causes)} refreshes came early (last: {causes[-1]}): the "
            f"model leaves its noise within the interval of {config.interval}; a lower train.rate"
        )
    return found


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A finished training in words: every figure with its healthy range, refreshes and their
    causes, and what was raised on the way.

    Arguments:
        rows: All rows of metrics.
    """
    if not rows:
        return ["No training was recorded."]
    last, latest = rows[-1], rows[-LATEST:]
    causes: dict[str, int] = {}
    for row in rows:
        if row.get("refresh", "start") != "start":
            cause = row["refresh"].split(" ")[0]
            causes[cause] = causes.get(cause, 0) + 1
    told = ", ".join(f"{n} by {cause}" for cause, n in causes.items())
    words = [
        f"{last['step']} steps; the noise was refreshed {sum(causes.values()) + 1} times"
        + (f" (the start, {told})." if causes else " (the start).")
    ]
    names = {
        "gap": "Network gap, mean F(noise) - mean F(data), in nats",
        "accuracy": "Balanced accuracy of h > 0, data against noise",
        "pool_ess": "Effective share of the pool",
        "displacement": "Displacement of chains at a refresh over that of the reference's",
    }
    for name, title in names.items():
        low, high, _ = RANGES[name]
        values = [row[name] for row in latest if row.get(name) is not None]
        if values:
            mean = sum(values) / len(values)
            verdict = "healthy" if low <= mean <= high else "NOT HEALTHY"
            words.append(
                f"{title}, over the last {len(latest)} steps: {mean:.2f} ({verdict}: "
                f"{low:g} to {high:g})."
            )
    words += (
        []
        if "log_z" not in last
        else [
            f"Log-partition ledger of the raw weights: {last['log_z']:.1f} nats, "
            + (
                "of unknown error (too few samples)."
                if last["log_z_error"] is None
                else f"standard error {last['log_z_error']:.1f} (for independent samples of the "
                f"snapshots; chains that lag add to it, unless they are weighted)."
            )
        ]
    )
    words += [f"Alarm at step {row['step']}: {row['alarm']}." for row in rows if "alarm" in row]
    rollbacks = [row["rollback"] for row in rows if "rollback" in row]
    return words + (rollbacks or ["The divergence guard never stepped in."])
