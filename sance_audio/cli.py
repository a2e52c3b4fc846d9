"""The command line: `sance-audio train | generate | restore | score | evaluate | page |
info`.

A user's mistake ends in one line on standard error and exit status 2; only our own mistakes show a
traceback.
"""

from __future__ import annotations

__all__ = ["main"]

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from sance_audio.options import parse
from sance_audio.recipe import load_recipe, one_line_errors, recipe_names

DESCRIPTION = "Energy-based models of sound: train, generate, score, listen."


@dataclass(frozen=True)
class Generate:
    """Write new clips as WAVs: clips/0000_label.wav and so on, labels in balanced turn."""

    run: Positional[str]
    """Run folder (or hf:owner/name)."""
    num: int = 16
    """Number of clips."""
    seed: int = 0
    """Clip i of a seed is the same whatever the number."""
    out: Path = Path("clips")
    """Folder to write to."""
    label: str | None = None
    """One class only, by name."""
    steps: int | None = None
    """Langevin steps; the model's own number when left out."""
    reference_only: bool = False
    """Leave the network out: exact samples of the Gaussian reference."""


@dataclass(frozen=True)
class Restore:
    """Fill a hole in a recording; every sample beyond 10 ms of it stays as it is, to the bit."""

    run: Positional[str]
    """Run folder (or hf:owner/name)."""
    recording: Positional[Path]
    """What to restore: any number of channels, any rate."""
    out: Positional[Path]
    """WAV to write, of the recording's own rate, channels and sample format."""
    start: Annotated[float, arg(name="from")]
    """Where the hole begins, in seconds."""
    end: Annotated[float, arg(name="to")]
    """Where it ends."""
    samples: int = 16
    """Posterior samples that the filling is the mean of."""
    draw: bool = False
    """One draw of the posterior instead of its mean."""
    seed: int = 0
    """Of the samples, and of first phases."""
    label: str | None = None
    """What the recording is of, by name; over all classes when left out."""


@dataclass(frozen=True)
class Score:
    """Score files, or whole folders: one row a file, to a CSV."""

    run: Positional[str]
    """Run folder, with model and detector."""
    paths: Positional[list[Path]]
    """Audio files or folders."""
    out: Path = Path("scores.csv")
    """File to write; until the end, finished rows stand in OUT.part."""


@dataclass(frozen=True)
class Evaluate:
    """Judge a finished run anew: print the table, write evaluation.json and the closest pairs."""

    run: Positional[str]
    """Run folder."""
    data: Path | None = None
    """Folder of the corpus; where the run found it when left out."""
    num: int | None = None
    """Clips to generate; the run's own number when left out."""
    seed: int | None = None
    """Of the clips; the run's own when left out."""


@dataclass(frozen=True)
class Page:
    """(Re)build the listening page of a finished run."""

    run: Positional[str]
    """Run folder."""


@dataclass(frozen=True)
class Info:
    """Say what a run or model file holds."""

    run: Positional[str]
    """Run folder (or hf:owner/name)."""


def generate(args: Generate) -> None:
    from sance_audio.assessment import write_clips
    from sance_audio.model import AudioEBM

    if args.num < 1:
        raise ValueError(f"--num must be at least 1, found {args.num}")
    model = AudioEBM.from_pretrained(args.run)
    label = _class(model.labels, args.label)
    waves = model.generate(
        args.num,
        _seeded(args.seed),
        label,
        steps=args.steps,
        reference_only=args.reference_only,
    )
    names = write_clips(model, waves, model.classes(args.num, label), args.out)
    print(f"{len(names)} clips of {model.window / model.sample_rate:.2f} s in {args.out}/")


def restore(args: Restore) -> None:
    from sance_audio import restoration, tracks
    from sance_audio.model import AudioEBM

    if args.samples < 1:
        raise ValueError(f"--samples must be at least 1, found {args.samples}")
    if args.out.suffix.lower() != ".wav":
        raise ValueError(f"{args.out}: a WAV is written; expected a name that ends in .wav")
    model = AudioEBM.from_pretrained(args.run)
    label = _class(model.labels, args.label)
    track = tracks.read_track(args.recording)
    if track.partial:
        print(f"{args.recording}: {track.partial}", file=sys.stderr)
    done = restoration.fill(
        model,
        track.rows,
        track.sample_rate,
        args.start,
        args.end,
        args.samples,
        full_scale=track.full_scale,
        draw=args.draw,
        label=label,
        generator=_seeded(args.seed),
    )
    first, stop = done.changed
    track = track.replaced(done.samples, first)  # the one there was is let go
    tracks.write_track(args.out, track)
    for channel, gain in enumerate(done.gains, 1):
        if gain < 1:
            print(f"channel {channel}: filling scaled by {gain:.3g}, {restoration.SCALED}")
    rate = track.sample_rate
    note = f", band-limited to {model.sample_rate / 2:g} Hz" if rate > model.sample_rate else ""
    print(f"{first / rate:.3f} to {stop / rate:.3f} s, cross-fades included, in {args.out}{note}")


def _seeded(seed: int) -> Any:
    """A `torch.Generator` of a seed.

    Raises:
        ValueError: more than 64 bits.
    """
    import torch

    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"--seed must lie between -2^63 and 2^64 - 1, found {seed}")
    return torch.Generator().manual_seed(seed)


def _class(labels: Sequence[str], name: str | None) -> int | None:
    """Index of a class by name.

    Raises:
        ValueError: the model does not know it.
    """
    if name is None:
        return None
    if name not in labels:
        raise ValueError(f"--label {name}: the model knows {', '.join(labels) or 'no labels'}")
    return labels.index(name)


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


def evaluate(args: Evaluate) -> None:
    from sance_audio.recipe import evaluate_run
    from sance_audio.verdicts import evaluation_findings, table

    results = evaluate_run(Path(args.run), args.data, args.num, args.seed)
    print("\n".join(table(results)))
    for line in evaluation_findings(results):
        print(f"- {line}")
    print(f"figures in {Path(args.run) / 'evaluation.json'}")


def page(args: Page) -> None:
    from sance_audio.report import write_page

    print(write_page(args.run).resolve())


def info(args: Info) -> None:
    from sance_audio.model import AudioEBM

    model = AudioEBM.from_pretrained(args.run)
    facts: dict[str, Any] = {
        "labels": model.labels,
        "sample_rate": model.sample_rate,
        "window_seconds": model.window / model.sample_rate,
        "components": model.reference.n_components,
        "parameters": sum(p.numel() for p in model.density.network.parameters()),
        **model.settings,
    }
    print(json.dumps(facts, indent=2))


def train(arguments: Sequence[str]) -> None:
    """Run a recipe by name, with the rest of the command line as its own."""
    names = ", ".join(recipe_names())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: sance-audio train RECIPE [options]\n\nrecipes: {names}\noptions: "
            f"sance-audio train RECIPE --help"
        )
        return
    recipe = load_recipe(arguments[0])
    program = f"sance-audio train {arguments[0]}"
    recipe.main(parse(recipe.PRESETS, recipe.__doc__ or "", arguments[1:], program))


COMMANDS: dict[str, tuple[Any, Any]] = {
    "generate": (Generate, generate),
    "restore": (Restore, restore),
    "score": (Score, score),
    "evaluate": (Evaluate, evaluate),
    "page": (Page, page),
    "info": (Info, info),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `sance-audio`; exits with status 2 on a user's mistake."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with one_line_errors("sance-audio"):
        if name == "--version":
            from sance_audio import __version__

            print(__version__)
        elif name in ("-h", "--help"):
            print(
                f"usage: sance-audio COMMAND [options]\n\n{DESCRIPTION}\n\n  train     Run a "
                f"recipe."
            )
            for command, (options, _) in COMMANDS.items():
                print(f"  {command:9} {options.__doc__}")
            print("\nsance-audio COMMAND --help says more.")
        elif name == "train":
            train(rest)
        elif name in COMMANDS:
            options, function = COMMANDS[name]
            function(tyro.cli(options, args=rest, prog=f"sance-audio {name}"))
        else:
            raise ValueError(f"no command named {name!r}; there are: train, {', '.join(COMMANDS)}")
