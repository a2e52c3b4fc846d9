"""Commands that write sounds: generate, restore, invert."""

from __future__ import annotations

__all__ = ["Generate", "Invert", "Restore", "generate", "invert", "restore"]

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg


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
    temperature: float | None = None
    """Below 1: likelier and less varied clips; the model's own when left out."""
    truncation: float | None = None
    """Share of recordings less surely recognised than a clip must be; the model's own when left
    out, 0 for all clips as they come; those of several runs (--with) are not truncated."""
    reference_only: bool = False
    """Leave the network out: exact samples of the Gaussian reference."""
    others: Annotated[UseAppendAction[tuple[str, ...]], arg(name="with")] = ()
    """RUN:LABEL: a class of another run on the same log-mels. Clips are of both, or of all: drawn
    from the mean of the runs' energies."""


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
class Invert:
    """Take a recording to mels and back: hear what an analysis and its inversion lose."""

    recording: Positional[Path]
    """What to analyse: any number of channels, any rate."""
    out: Positional[Path]
    """WAV to write, of the recording's own rate, channels and sample format."""
    n_mels: int = 80
    """Mel bands."""
    n_fft: int | None = None
    """Window in samples; the power of two closest to 55 ms when left out. A hop is a quarter."""
    quality: Literal["fast", "default", "best"] | None = None
    """12, 32 (when left out) or 100 iterations."""
    n_iter: int | None = None
    """Iterations, instead of a quality."""
    seed: int = 0
    """Of the first phases."""


def generate(args: Generate) -> None:
    from sance_audio.assessment import write_clips
    from sance_audio.model import AudioEBM

    if args.num < 1:
        raise ValueError(f"--num must be at least 1, found {args.num}")
    model = AudioEBM.from_pretrained(args.run)
    label = _class(model.labels, args.label)
    if args.others:
        _compose(args, model)
        return
    waves = model.generate(
        args.num,
        _seeded(args.seed),
        label,
        steps=args.steps,
        temperature=args.temperature,
        truncation=args.truncation,
        reference_only=args.reference_only,
    )
    names = write_clips(model, waves, model.classes(args.num, label), args.out)
    print(f"{len(names)} clips of {model.window / model.sample_rate:.2f} s in {args.out}/")


def _compose(args: Generate, model: Any) -> None:
    """Clips of a class of each run, named by all of them."""
    from sance_audio import audio
    from sance_audio.composition import compose
    from sance_audio.model import AudioEBM

    if args.label is None:
        raise ValueError("--with needs --label: the class of the first run")
    if args.truncation:
        raise ValueError("--truncation: not of a sum of energies; leave it out with --with")
    parts = [(model, args.label)]
    for other in args.others:
        run, colon, label = other.rpartition(":")
        if not (run and colon and label):
            raise ValueError(f"--with {other}: expected RUN:LABEL")
        parts.append((AudioEBM.from_pretrained(run), label))
    own = 1.0 if args.reference_only else model.sampling_temperature
    tau = own if args.temperature is None else args.temperature
    if not tau > 0:
        raise ValueError(f"--temperature must be positive, found {tau}")
    how: Any = {"steps": args.steps, "reference_only": args.reference_only}
    how["weights"] = [1 / (len(parts) * tau)] * len(parts)
    waves = compose(parts, args.num, _seeded(args.seed), **how)
    name = "_".join(audio.file_label(label) for _, label in parts)
    for i, wave in enumerate(waves):
        audio.write(args.out / f"{i:04d}_{name}.wav", wave, model.sample_rate)
    print(f"{len(waves)} clips of {model.window / model.sample_rate:.2f} s in {args.out}/")


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


def invert(args: Invert) -> None:
    from sance_audio.resynthesis import resynthesise_file

    track, done, gain = resynthesise_file(
        args.recording,
        args.out,
        n_mels=args.n_mels,
        n_fft=args.n_fft,
        n_iter=args.n_iter,
        quality=args.quality,
        generator=_seeded(args.seed),
    )
    if track.partial:
        print(f"{args.recording}: {track.partial}", file=sys.stderr)
    for channel, figures in enumerate(zip(done.residual, done.convergence, strict=True), 1):
        residual, convergence = map(float, figures)
        name = f"channel {channel}: " if len(done.residual) > 1 else ""
        print(f"{name}mel residual {residual:.2f} dB, spectral convergence {convergence:.3f}")
    if gain < 1:
        print(f"scaled by {gain:.3g} so as not to clip")
    length = len(track.samples) / track.sample_rate
    print(
        f"{length:.2f} s in {done.seconds:.2f} s, real-time factor {done.seconds / length:.4f}; "
        f"in {args.out}"
    )


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
