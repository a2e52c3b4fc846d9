"""Generators of digits, judged side by side: the table of `generation` and its differences."""

from __future__ import annotations

__all__ = ["judged", "difference", "show"]

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sance_audio import evaluation, metrics
from sance_audio.assessment import COMPARED, Judge
from sance_audio.preparation import Material
from sance_audio.report.nearest import blocks, flat

Results = dict[str, Any]
Sets = dict[str, tuple[Tensor, Tensor]]
"""By name: log-mels of sounds `(n, 1, M, T)`, and the classes they are or were meant to be `(n,)`.
"""


def judged(real: Sets, made: Sets, judge: Judge, material: Material) -> Results:
    """Rows of the table, and differences of ours and each other set that was made.

    Arguments:
        real: Two sets of held-out clips: as they are, and through inversion.
        made: Generated clips, equally many each.
        judge: The classifier.
        material: For the training clips, which all are compared with.

    Returns:
        `n_equal`; `classifier`, the judge's digest; `table`: of each set `evaluation.row`,
        `nearest` and, if it was made, `held_out`; `less`: `difference` by name, where there is
        an ours.
    """
    x, rows = material.some("train", COMPARED)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    known = evaluation.describe(judge.classifier, x[order])
    sets = real | made
    seen = {k: evaluation.describe(judge.classifier, *pair) for k, pair in sets.items()}
    plain, through = real
    n = min(*(len(z.phi) for z in seen.values()), len(known.phi))
    train = material.x["train"]
    near = {k: metrics.nearest(flat(z), blocks(train))[0] for k, (z, _) in sets.items()}
    low = {k: float(np.quantile(d, 0.05)) for k, d in near.items()}
    table = {k: evaluation.row(z, known, judge.kinds, n) for k, z in seen.items()}
    for name, row in table.items():
        row["nearest"] = low[name] / low[through]
        if name in made:
            apart = metrics.kernel_distances(seen[name].phi, seen[plain].phi)
            row["held_out"] = metrics.percentiles(apart)
    others = [name for name in made if "ours" in made and name != "ours"]
    less = {name: difference(seen["ours"], seen[name], known) for name in others}
    return {"n_equal": n, "classifier": judge.sha256, "table": table, "less": less}


def difference(
    ours: evaluation.Described, other: evaluation.Described, real: evaluation.Described
) -> dict[str, dict[str, float]]:
    """KID, FID and accuracy of ours less another's, with 95 % intervals over generated clips, the
    same places of both drawn together; the training clips are what they are.
    """
    a, b, n = ours.phi, other.phi, len(ours.phi)
    kid, kid_b = (metrics.kernel_distances(z, real.phi, fixed=True) for z in (a, b))
    assert ours.right is not None
    assert other.right is not None
    gained = ours.right.astype(float) - other.right
    return {
        "kid": metrics.percentiles(kid - kid_b),
        "fid": metrics.paired_interval(
            lambda i: (
                metrics.frechet_distance(a[i], real.phi) - metrics.frechet_distance(b[i], real.phi)
            ),
            n,
        ),
        "accuracy": metrics.paired_interval(lambda i: float(gained[i].mean()), n),
    }


def show(results: Results) -> None:
    """Print the table, then what ours is less each other."""
    print(
        f"\n{results['minutes']:g} minutes of training each, {results['device']}, seed "
        f"{results['seed']}; {results['n_equal']} clips of each where numbers are equal"
    )
    heads = ["trained", "stored", "min", "steps", "acc.", "IS", "KID x1000", "held out", "FID"]
    heads += ["prec.", "recall", "nearest", "s/1000", "RTF"]
    rows = {name: _cells(row) for name, row in results["table"].items()}
    _print({"": heads, **rows})
    for name, row in results["table"].items():
        if row.get("broken"):
            print(f"{name}: {row['broken']} clips were not finite, and made silent")
    if results["less"]:
        print()
        less = {name: _less(row) for name, row in results["less"].items()}
        _print({"ours less": ["KID x1000", "FID", "accuracy"], **less})


def _cells(row: Results) -> list[str]:
    """One row as text, empty where it has no value."""
    own = {"trained": "d", "stored": "d", "minutes": ".1f", "steps": "d"}
    last = {"seconds_per_1000": ".1f", "real_time_factor": ".3f"}
    middle = {"precision": ".3f", "recall": ".3f", "nearest": ".2f"}
    kid = [f"{1000 * row['kid'][side]:.0f}" for side in ("value", "low", "high")]

    def text(columns: dict[str, str]) -> list[str]:
        return [f"{row[key]:{how}}" if key in row else "" for key, how in columns.items()]

    held_out = f"{1000 * row['held_out']['value']:.0f}" if "held_out" in row else ""
    cells = [*text(own), f"{row['accuracy']:.3f}", f"{row['inception_score']:.2f}"]
    cells += [f"{kid[0]} [{kid[1]}, {kid[2]}]", held_out, f"{row['fid']:.2f}"]
    return [*cells, *text(middle), *text(last)]


def _less(row: Results) -> list[str]:
    """KID, FID and accuracy of ours less another's, as text."""
    cells = []
    for key, scale, how in (("kid", 1000, "+.1f"), ("fid", 1, "+.2f"), ("accuracy", 1, "+.3f")):
        value, low, high = (scale * row[key][side] for side in ("value", "low", "high"))
        cells.append(f"{value:{how}} [{low:{how}}, {high:{how}}]")
    return cells


def _print(rows: dict[str, list[str]]) -> None:
    """Rows of text in columns, the names first."""
    columns = list(zip(*rows.values(), strict=True))
    widths = [max(map(len, column)) for column in columns]
    first = max(map(len, rows))
    for name, cells in rows.items():
        texts = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join([name.ljust(first), *texts]).rstrip())
