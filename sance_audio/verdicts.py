"""An evaluation in a reader's words: the table as text, and what its figures say."""

from __future__ import annotations

__all__ = ["table", "columns", "left_out", "evaluation_findings"]

from typing import Any

Results = dict[str, Any]


TITLES = {
    "clips": "clips",
    "accuracy": "accuracy",
    "inception_score": "IS",
    "kid": "KID x1000 at {n}",
    "fid": "FID at {n}",
    "fid_all": "FID all",
    "precision": "prec.",
    "recall": "recall",
    "density": "dens.",
    "coverage": "cover.",
}
NEEDS = {
    "accuracy": "labels",
    "inception_score": "labels",
    "kid": "more than one recording in each row",
} | dict.fromkeys(("precision", "recall", "density", "coverage"), "more clips in each row")
"""What there is none of where a figure has no value."""


def columns(evaluation: Results) -> dict[str, str]:
    """Key of each column that the rows have a value for, and its title; `kid` is times 1000."""
    n, rows = evaluation["n_equal"], evaluation["table"].values()
    found = {k: title for k, title in TITLES.items() if all(r[k] is not None for r in rows)}
    return {k: title.format(n=n) for k, title in found.items()}


def left_out(evaluation: Results) -> list[str]:
    """A line on the figures without a value: which, and what they would need."""
    lacking: dict[str, list[str]] = {}
    for key in TITLES.keys() - columns(evaluation).keys():
        lacking.setdefault(NEEDS[key], []).append(key.replace("_", " "))
    return [
        f"Left out, for want of {need}: {', '.join(sorted(names))}."
        for need, names in sorted(lacking.items())
    ]


def cell(row: Results, key: str) -> str:
    """One figure as text."""
    value = row[key]
    if key == "kid":
        low, high = (1000 * value[side] for side in ("low", "high"))
        return f"{1000 * value['value']:.2f} [{low:.2f}, {high:.2f}]"
    if key == "clips":
        return str(value)
    return f"{value:.2f}" if key in ("inception_score", "fid", "fid_all") else f"{value:.3f}"


def table(evaluation: Results) -> list[str]:
    """Lines of the table: real test clips, real through inversion, reference only, ours."""
    titles = columns(evaluation)
    cells = [["", *titles.values()]]
    for name, row in evaluation["table"].items():
        cells.append([name, *(cell(row, key) for key in titles)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def evaluation_findings(evaluation: Results) -> list[str]:
    """What the table shows, and what it does not."""
    lines = left_out(evaluation)
    real = evaluation["table"]["real test clips"]
    if real["recordings"] < real["clips"]:
        lines.append(
            f"Real test clips are {real['clips']} windows of {real['recordings']} recordings: "
            f"their figures know no more than {real['recordings']} sounds tell."
        )
    headline = evaluation["headline"]
    if headline == "kid":
        lines.append(
            f"{evaluation['n_equal']} clips a row are few: KID, which has no bias, comes first."
        )
    better = {"kid": -1, "fid": -1, "accuracy": 1}
    differences = evaluation["differences"]
    for name in sorted(differences, key=lambda name: name != headline):
        what, _, both = name.partition(", ")
        d, scale = differences[name], 1000 if what == "kid" else 1
        clear = d["high"] < 0 if better[what] < 0 else d["low"] > 0
        worse = d["low"] > 0 if better[what] < 0 else d["high"] < 0
        verdict = "a gain" if clear else "a loss" if worse else "no gain that excludes chance"
        title = {"kid": "KID x1000", "fid": "FID"}.get(what, what)
        other = "truncated alike" if both else "only"
        lines.append(
            f"{title}, ours less reference {other}: {scale * d['value']:+.3f}, 95 % interval "
            f"[{scale * d['low']:+.3f}, {scale * d['high']:+.3f}], paired: {verdict}."
        )
    seen = evaluation["table"]["ours"]["seen_as"]
    absent = [label for label, count in seen.items() if count == 0]
    counts = ", ".join(f"{label} {count}" for label, count in seen.items())
    lines.append(
        f"Kinds the classifier hears in ours: "
        f"{counts}{'; ABSENT: ' + ', '.join(absent) if absent else ''}."
    )
    for space, name in (("features", "the classifier's features"), ("log_mel", "log-mels")):
        ratio = evaluation["memorisation"][space]
        lines.append(
            f"Distance to the nearest training clip in {name}, over that of real test clips, all "
            f"through inversion: {ratio['at_5_percent']:.2f} at the 5 % quantile, "
            f"{ratio['at_median']:.2f} in the median (copies of training clips: "
            f"{ratio['copies']['at_5_percent']:.2f} and {ratio['copies']['at_median']:.2f})."
        )
    made = evaluation["generation"]
    lines.append(
        f"Generation at {made['real_time_factor']:.2f} s of computing a second of sound; quietest "
        f"clip {made['quietest_rms_dbfs']:.1f} dBFS RMS; {made['clips_scaled_down']} clips scaled "
        f"down to avoid clipping."
    )
    return lines
