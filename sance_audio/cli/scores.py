"""The command that scores recordings."""

from __future__ import annotations

__all__ = ["Score", "score"]

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Score:
    """Score files, or whole folders: one row a file, to a CSV."""

    run: Positional[str]
    """Run folder, with model and detector."""
    paths: Positional[list[Path]]
    """Audio files or folders."""
    out: Path = Path("scores.csv")
    """File to write; until the end, finished rows stand in OUT.part."""


def score(args: Score) -> None:
    from sance_audio.audio import find_audio
    from sance_audio.detection import EnergyDetector
    from sance_audio.rows import Rows
    from sance_audio.scoring import COLUMNS, check_output, score_files

    check_output(args.out)
    detector = EnergyDetector.from_pretrained(args.run)
    paths = find_audio(list(args.paths))
    rows = Rows(args.out, COLUMNS)
    try:
        with rows:
            scored = score_files(detector, paths, rows.append)
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
