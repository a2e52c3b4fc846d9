"""The commands that find what is odd: fit a detector to normal recordings, score others."""

from __future__ import annotations

__all__ = ["Detect", "Score", "detect", "score"]

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Detect:
    """Fit a detector to normal recordings, nothing else needed; `score` reads it."""

    normals: Positional[list[Path]]
    """Audio files or folders, of nothing but normal sounds."""
    run: Path
    """Folder to write detector.safetensors into."""
    recording: Literal["file", "folder"] = "file"
    """What stays together: each file is a recording of its own, or those of one folder (a
    machine, a session) are one."""
    alpha: float = 0.05
    """False-alarm rate; lower ones need more recordings."""
    calibration: float | None = None
    """Share of the recordings that calibrate. 0: none, for scores without p-values."""
    preset: Literal["smoke", "cpu", "gpu"] = "cpu"
    """How long energies are learnt; smoke is for seeing that all works."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True)
class Score:
    """Score files, or whole folders: one row a file, to a CSV; --page: to hear and see, too."""

    run: Positional[str]
    """Run folder, with a detector, and its model if it has one."""
    paths: Positional[list[Path]]
    """Audio files or folders."""
    out: Path = Path("scores.csv")
    """File to write; until the end, finished rows stand in OUT.part."""
    page: Path | None = None
    """HTML file to write: ranking, histogram, players, spectrograms with odd regions outlined.
    One file, sounds and pictures in it; none when left out."""
    show: int = 6
    """Oddest, and most ordinary, recordings to hear on the page."""


def detect(args: Detect) -> None:
    from sance_audio.audio import find_audio
    from sance_audio.detection import EnergyDetector

    file = args.run / "detector.safetensors"
    if file.exists():
        raise ValueError(f"--run {args.run}: holds a detector; name another folder, or delete it")
    paths = _usable(find_audio(list(args.normals)))
    groups = [str(p.parent) for p in paths] if args.recording == "folder" else None
    detector = EnergyDetector(
        preset=args.preset, seed=args.seed, alpha=args.alpha, calibration=args.calibration
    )
    detector.fit(paths, groups=groups)
    detector.save_pretrained(args.run)
    print(f"{len(paths)} normal files at {detector.sample_rate_} Hz")
    if detector.calibration_ is None:
        print("no calibration: scores without p-values")
    else:
        print(
            f"{detector.calibration_.recordings} recordings calibrate; odd at alpha = "
            f"{args.alpha:g}: scores above {detector.threshold():.2f}"
        )
        fitted = len(detector.normal_scores_)
        if fitted < len(detector.calibration_.scores):
            print(
                f"only {fitted} files are left to fit, since alpha = {args.alpha:g} needs "
                f"{detector.calibration_.recordings} recordings that calibrate: with a larger "
                f"--alpha, or more recordings, more is found"
            )
    print(f"detector in {file}; next: sance-audio score {args.run} PATH --page page.html")


def _usable(paths: list[Path]) -> list[Path]:
    """Those that can be decoded and are not silent; the others are named on standard error."""
    from sance_audio.audio import AudioError
    from sance_audio.decoding import shown
    from sance_audio.streams import listen

    usable, problems = [], []
    for path in paths:
        try:
            sound = listen(path, 16000, 160000)
        except AudioError as error:
            problems.append(str(error))
            continue
        if sound.silent or sound.constant:
            problems.append(f"{shown(path)}: silent")
        else:
            usable.append(path)
    if not usable:
        raise ValueError(f"none of {len(paths)} files could be used; the first: {problems[0]}")
    for problem in problems[:10]:
        print(f"left out: {problem}", file=sys.stderr)
    if problems:
        print(f"{len(problems)} of {len(paths)} normal files left out", file=sys.stderr)
    return usable


def score(args: Score) -> None:
    from sance_audio.audio import find_audio
    from sance_audio.detection import EnergyDetector
    from sance_audio.rows import Rows
    from sance_audio.scoring import COLUMNS, check_output, score_files

    check_output(args.out)
    _check_page(args)
    detector = EnergyDetector.from_pretrained(args.run)
    paths = find_audio(list(args.paths))
    rows = Rows(args.out, COLUMNS)
    told: list[dict[str, Any]] = []
    try:
        with rows:
            scored = score_files(detector, paths, _both(rows.append, told, args.page is not None))
            if scored.failed == scored.files:
                rows.discard()
    except KeyboardInterrupt:
        print(f"sance-audio: interrupted; {rows.kept()}", file=sys.stderr)
        raise SystemExit(130) from None
    if scored.failed == scored.files:
        raise ValueError(
            f"none of {scored.files} files could be scored; the first: {scored.problem}"
        )
    print(
        f"{scored.files - scored.failed} files scored, {scored.failed} could not be read; "
        f"rows in {args.out}\n"
        f"{scored.seconds_of_sound:.1f} s of sound in {scored.seconds:.2f} s: real-time factor "
        f"{scored.real_time_factor:.4f}"
    )
    if args.page is not None:
        _write_page(detector, told, args, args.page)


def _both(
    append: Callable[[list[dict[str, Any]]], None], told: list[dict[str, Any]], keep: bool
) -> Callable[[list[dict[str, Any]]], None]:
    """Rows go to the file, and into memory where a page is made of them."""

    def take(rows: list[dict[str, Any]]) -> None:
        append(rows)
        if keep:
            told.extend(rows)

    return take


def _check_page(args: Score) -> None:
    """Raise ValueError, before any work is done, where no page could be written."""
    if args.show < 1:
        raise ValueError(f"--show must be at least 1, found {args.show}")
    if args.page is None:
        return
    if args.page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--page {args.page}: expected a name ending in .html")
    if args.page.is_dir():
        raise ValueError(f"--page {args.page}: a folder stands there; name a file")


def _write_page(detector: Any, rows: list[dict[str, Any]], args: Score, page: Path) -> None:
    from sance_audio import scored_page

    found = [
        scored_page.Scored(
            row["path"], row["anomaly_score"], row.get("p_value"), row["path"], row["notes"]
        )
        for row in rows
        if "anomaly_score" in row
    ]
    refused = [row["notes"] for row in rows if "anomaly_score" not in row]
    part = scored_page.section(detector, found, scored_page.embedded, show=args.show)
    title = f"{len(found)} recordings, scored by {args.run}"
    print(f"look: {scored_page.write(page, title, [part], refused=refused).resolve()}")
