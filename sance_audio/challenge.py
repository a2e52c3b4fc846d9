r"""Official scores and submission files of DCASE's task 2 (anomalous sounds of machines).

Of one section, with a(N, A) the AUC of normal clips N against odd ones A, and p(N, A) the same up
to a false-alarm rate of .1, standardised (`ranking.pauc`); s and t are the domains source, target:

| year | figures of a section | mean |
|---|---|---|
| 2020 | a(N, A), p(N, A) | arithmetic: over sections (ids), then over machines |
| 2021 | a(N_s, A_s), p(N_s, A_s), a(N_t, A_t), p(N_t, A_t) | harmonic, over all |
| 2022 on | a(N_s, A), a(N_t, A), p(N, A) | harmonic, over all |

A figure below the smallest rounding unit counts as that in a harmonic mean, as in the official
evaluators: one figure of zero makes the score zero for all purposes. In 2020 teams were ranked by
the mean of their ranks; the single number is ours.
"""

from __future__ import annotations

__all__ = ["YEARS", "Figures", "Section", "comparisons", "figures", "official", "submit"]

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sance_audio.datasets.sections import DOMAINS
from sance_audio.files import write_whole
from sance_audio.ranking import auc, pauc

YEARS = range(2020, 2027)

Array = np.ndarray


class Figures(NamedTuple):
    """Of one section."""

    known: dict[str, float]
    """By name: "AUC", "source AUC", "pAUC"."""
    missing: dict[str, str]
    """What cannot be told, and why."""


class Section(NamedTuple):
    """What is submitted of one section: its clips, in any order."""

    machine: str
    section: str
    files: Sequence[str]
    """Names without folders."""
    domains: Sequence[str]
    scores: Sequence[float]
    threshold: float
    """Scores above it are decided to be odd."""


def figures(year: int, odd: Array, domains: Sequence[str], scores: Array) -> Figures:
    """The figures of one section, as the rules of a year have them.

    Arguments:
        year: 2020 to 2026.
        odd: `(B,)`, boolean.
        domains: Of each clip; not looked at in 2020.
        scores: `(B,)`, higher is odder.

    Raises:
        ValueError: another year; a domain that is none.

    >>> odd, domains = np.array([False, False, True]), ["source", "target", "source"]
    >>> figures(2020, odd, domains, np.array([1.0, 3.0, 2.0])).known["AUC"]
    0.5
    >>> figures(2022, odd, domains, np.array([1.0, 3.0, 2.0])).known["target AUC"]
    0.0
    """
    known, missing = {}, {}
    for name, normal, anomaly in comparisons(year, odd, domains):
        taken = normal | anomaly
        if normal.any() and anomaly.any():
            score = pauc if name.endswith("pAUC") else auc
            known[name] = float(score(odd[taken], scores[taken]))
        else:
            missing[name] = _why(name, bool(normal.any()), bool(anomaly.any()))
    return Figures(known, missing)


def comparisons(year: int, odd: Array, domains: Sequence[str]) -> list[tuple[str, Array, Array]]:
    """What the rules of a year compare: the name of each figure, and which clips `(B,)` are the
    normal and the odd ones of it.

    Raises:
        ValueError: as `figures`.
    """
    _check(year)
    if year == 2020:
        return [(name, ~odd, odd) for name in ("AUC", "pAUC")]
    strange = sorted(set(domains) - set(DOMAINS))
    if strange:
        raise ValueError(
            f"a domain is source or target in {year}, found {', '.join(map(repr, strange))}: only "
            f"clips whose domain is known can be judged by that year's rules"
        )
    inside = {d: np.asarray(domains, dtype=object) == d for d in DOMAINS}
    if year == 2021:
        return [
            (f"{d} {name}", ~odd & inside[d], odd & inside[d])
            for d in DOMAINS
            for name in ("AUC", "pAUC")
        ]
    return [*((f"{d} AUC", ~odd & inside[d], odd) for d in DOMAINS), ("pAUC", ~odd, odd)]


def _why(name: str, normal: bool, odd: bool) -> str:
    lacking = [what for what, there in (("normal", normal), ("odd", odd)) if not there]
    return (
        f"no {name}: among the clips that it compares there is no {' and no '.join(lacking)} one"
    )


def official(year: int, machines: Mapping[str, Sequence[Figures]]) -> float | None:
    """The score over the sections of machines; of what is known, None where nothing is.

    Arguments:
        machines: By name, the figures of each one's sections.

    Raises:
        ValueError: another year.
    """
    _check(year)
    each = [[v for one in found for v in one.known.values()] for found in machines.values()]
    each = [values for values in each if values]
    if not each:
        return None
    if year == 2020:
        return float(np.mean([np.mean(values) for values in each]))
    values = np.maximum(np.concatenate(each), sys.float_info.epsilon)
    return float(1 / np.mean(1 / values))


def submit(folder: str | Path, year: int, sections: Iterable[Section]) -> list[Path]:
    """Write the files of a submission, whole or not at all, one row a clip in the order of names.

    In 2020 there are scores only; in 2021 each domain has files of its own.

    Returns:
        Their paths.

    Raises:
        ValueError: another year; a score that is no number; a clip given twice.
        OSError: a full disk, or whatever else kept a file from being written.
    """
    _check(year)
    written = []
    for one in sections:
        _check_rows(one)
        for part, domain in _parts(year, one):
            rows = sorted(
                (file, float(score))
                for file, d, score in zip(one.files, one.domains, one.scores, strict=True)
                if domain in ("", d)
            )
            tables: dict[str, list[tuple[str, float]]] = {"anomaly_score": rows}
            if year > 2020:
                tables["decision_result"] = [(f, int(s > one.threshold)) for f, s in rows]
            for what, table in tables.items():
                path, text = Path(folder) / f"{what}_{part}.csv", io.StringIO(newline="")
                csv.writer(text, lineterminator="\n").writerows(table)  # a name may hold commas
                write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))
                written.append(path)
    return written


def _parts(year: int, one: Section) -> list[tuple[str, str]]:
    """Names of a section's files, and the domain that each holds; "" for all."""
    if year == 2020:
        return [(f"{one.machine}_id_{one.section}", "")]
    name = f"{one.machine}_section_{one.section}"
    if year == 2021:
        return [(f"{name}_{d}_test", d) for d in DOMAINS if d in one.domains]
    return [(f"{name}_test", "")]


def _check(year: int) -> None:
    if year not in YEARS:
        raise ValueError(f"task 2 is known of {YEARS[0]} to {YEARS[-1]}, found {year}")


def _check_rows(one: Section) -> None:
    about = f"{one.machine}, section {one.section}"
    if not np.isfinite(one.scores).all():
        raise ValueError(f"{about}: a score is NaN or infinite, which no evaluator takes")
    if len(set(one.files)) < len(one.files):
        raise ValueError(
            f"{about}: {len(one.files)} clips, {len(set(one.files))} names: a name "
            f"stands for one clip"
        )
