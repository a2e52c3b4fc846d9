"""Arms, the runs of one setting over seeds, as figures and as tables.

Quality is told by four measures, since KID alone scatters: KID and FID (lower is better), the
share of clips recognised and the held-out gain over the reference in nats (higher is better).
"""

from __future__ import annotations

__all__ = ["Measure", "MEASURES", "differences", "summarised", "write_csv", "tables"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sance_audio.experiments.comparison import Interval, interval, markdown, paired, shown
from sance_audio.rows import Rows

Results = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """A figure of a run, how it is shown, and which way is better."""

    name: str
    """In a run's result."""
    title: str
    scale: float
    """That it is shown times."""
    digits: int
    better: int
    """1: higher is better; -1: lower is."""

    def of(self, run: Results) -> float | None:
        """Its value; None for a run that diverged or was not judged by it."""
        value = run.get(self.name)
        return value["mean"] if isinstance(value, dict) else value

    def shown(self, found: Interval, sign: bool = False) -> str:
        return shown(found, self.scale, self.digits, sign)


MEASURES = {
    "kid": Measure("kid", "KID x1000", 1000.0, 1, -1),
    "fid": Measure("fid", "FID", 1.0, 2, -1),
    "accuracy": Measure("accuracy", "accuracy", 1.0, 3, 1),
    "gain": Measure("gain", "gain, nats", 1.0, 1, 1),
}
BESIDE_REFERENCE = ("kid", "fid", "accuracy")
"""Measures that the reference alone has too; the gain is relative to it already."""


def differences(runs: Sequence[Results], others: Sequence[Results]) -> Results:
    """By measure, runs less others, paired by seed."""
    return {name: paired(runs, others, m.of) for name, m in MEASURES.items()}


def summarised(runs: Sequence[Results], first: Sequence[Results]) -> Results:
    """An arm's figures over its seeds; `less_first` and `less_reference` hold differences, by
    measure, paired by seed.
    """
    alone = [run["reference"] | {"seed": run["seed"]} for run in runs]
    plain = ("steps", "evaluations", "refreshes", "rollbacks", "seconds", "peak_mib")
    return {
        **{name: interval([m.of(run) for run in runs]) for name, m in MEASURES.items()},
        **{name: interval([run[name] for run in runs]) for name in plain},
        "less_first": differences(runs, first),
        "less_reference": {n: paired(runs, alone, MEASURES[n].of) for n in BESIDE_REFERENCE},
        "extra_bytes": runs[0]["extra_bytes"],
        "parameters": runs[0]["parameters"],
        "network_parameters": runs[0]["network_parameters"],
        "rate": runs[0]["rate"],
        "runs": len(runs),
        "diverged": sum(run["diverged"] is not None for run in runs),
    }


COLUMNS: tuple[str, ...] = ("arm", "seed", "split", "rate", "kid", "fid", "accuracy", "gain")
COLUMNS += (
    "gain_error",
    "log_z_apart",
    "kid_reference",
    "fid_reference",
    "accuracy_reference",
    "steps",
)
COLUMNS += ("evaluations", "refreshes", "causes", "rollbacks", "diverged", "seconds", "peak_mib")
COLUMNS += ("extra_bytes", "parameters")


def write_csv(path: Path, results: Sequence[Results]) -> None:
    """A row for each run."""
    with Rows(path, COLUMNS) as rows:
        for r in results:
            gain = r["gain"] or {"mean": None, "standard_error": None}
            own = {"gain": gain["mean"], "gain_error": gain["standard_error"]}
            own["log_z_apart"] = gain.get("log_z_apart")
            own |= {f"{k}_reference": r["reference"][k] for k in BESIDE_REFERENCE}
            own["causes"] = " ".join(f"{k}:{n}" for k, n in r["causes"].items())
            rows.append([{k: v for k, v in (r | own).items() if k in COLUMNS}])


def tables(said: Results, by_arm: Mapping[str, Sequence[Results]], floor: Results) -> str:
    """Quality, what it differs by from the first arm and from the reference alone, trends over K,
    and cost; in Markdown.

    Arguments:
        said: What `compared` returns.
        by_arm: Runs of the arms.
        floor: KID and FID of real clips.
    """
    first, best, arms = said["first"], said["best"], said["arms"]
    others = {arm: found for arm, found in arms.items() if arm != first}
    losses = {arm: found for arm, found in arms.items() if "less_best" in found}
    parts = {
        "Quality": _quality(arms, by_arm[first], floor),
        f"Less {first}, run by run of one seed": _differences(others, "less_first"),
        f"The noise and rate of {best}, another loss: less {best}": _differences(
            losses, "less_best"
        ),
        "Less the reference alone, run by run": _differences(arms, "less_reference"),
        "Trends: change for each factor of 4 in K": _trends(said["trends"]),
        "Cost": _costs(arms),
    }
    return "\n".join(f"**{title}**\n\n{markdown(rows)}\n" for title, rows in parts.items() if rows)


def _quality(summary: Results, first: Sequence[Results], floor: Results) -> list[Results]:
    alone = {n: interval([run["reference"][n] for run in first]) for n in BESIDE_REFERENCE}
    ends = {n: interval([floor[n]]) for n in ("kid", "fid")}
    rows = {"real validation clips": ends, "reference only": alone, **summary}
    return [
        {
            "arm": arm,
            "rate": f"{found['rate']:g}" if "rate" in found else "-",
            **{
                m.title: m.shown(found.get(n, interval([])), sign=n == "gain")
                for n, m in MEASURES.items()
            },
            "diverged": f"{found['diverged']} of {found['runs']}" if "runs" in found else "-",
        }
        for arm, found in rows.items()
    ]


def _differences(summary: Results, which: str) -> list[Results]:
    return [
        {"arm": arm}
        | {MEASURES[n].title: MEASURES[n].shown(d, sign=True) for n, d in found[which].items()}
        for arm, found in summary.items()
    ]


def _trends(found: Results) -> list[Results]:
    return [
        {"at": title}
        | {m.title: m.shown(slopes[n], sign=True) for n, m in MEASURES.items()}
        | {"without": ", ".join(slopes["kid"]["without"]) or "-"}
        for title, slopes in found.items()
    ]


def _costs(summary: Results) -> list[Results]:
    return [
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
