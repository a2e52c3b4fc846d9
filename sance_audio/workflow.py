"""The first steps that recipes share: options, run folder, corpus, model, training.

Each step takes what it needs and returns what it made; nothing is remembered here. A recipe is the
list of its choices and the calls of these steps.
"""

from __future__ import annotations

__all__ = ["Options", "Material", "Results", "parse", "start", "prepare", "fit"]

import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

import sance_audio
from sance_audio import audio, pictures
from sance_audio.chunks import run_chunks, slices
from sance_audio.datasets import Clip, Corpus
from sance_audio.diagnostics import annealed_log_z
from sance_audio.energy import ReferencedEnergy
from sance_audio.features import LogMel
from sance_audio.files import read_json, write_json
from sance_audio.model import AudioEBM, clip_seeds
from sance_audio.networks import SIZES, ResidualEnergy
from sance_audio.reference import GaussianReference
from sance_audio.training import TrainConfig, train

Results = dict[str, Any]
PEAK = 0.5
"""Peak that clips are scaled to, so that level is no evidence; generated ones have room above it.
"""


@dataclass(frozen=True)
class Options:
    """What a recipe can be told on the command line."""

    run: Path = Path("runs/unnamed")
    """Run folder. The same command again resumes."""
    data: Path | None = None
    """Folder of the corpus; downloaded where the recipe knows how when left out."""
    preset: Literal["smoke", "cpu", "gpu"] = "cpu"
    """smoke: under a minute, to see that all works. cpu: two cores. gpu: one modern GPU."""
    device: str = "auto"
    """cpu, cuda, or auto: the preset gpu on a GPU when there is one, everything else on the CPU.
    """
    seed: int = 0
    """Of everything random."""
    frames: int = 64
    """Frames in the model's window."""
    components: int = 3
    """Gaussian components per class in the reference."""
    rank: int = 24
    """Principal directions per component."""
    sigma: float = 0.2
    """Standard deviation of the dequantisation noise."""
    network: Literal["smoke", "cpu", "gpu"] = "cpu"
    """Size of the energy network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    generation_steps: int = 200
    """Langevin steps of a generated clip."""
    annealing: int = 100
    """Temperatures of the estimate of log Z."""
    classifier_epochs: int = 12
    """Passes of the evaluating classifier over the training clips."""
    evaluate: int = 200
    """Generated clips that the table is computed on."""
    clips: int = 24
    """Generated clips written to clips/."""

    def __post_init__(self) -> None:
        least = {"seed": 0, "frames": 16, "components": 1, "rank": 1, "generation_steps": 0}
        least |= {"annealing": 1, "classifier_epochs": 1, "evaluate": 2, "clips": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name} must be at least {value}, found {getattr(self, name)}")
        if not self.sigma > 0:
            raise ValueError(f"--sigma must be positive, found {self.sigma}")


FREE = {"run", "data", "device", "generation_steps", "annealing", "evaluate", "clips"}
"""Options that a finished or interrupted run may be given anew; any other decides what it is."""

O = TypeVar("O", bound=Options)


def parse(
    presets: dict[str, O],
    description: str,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> O:
    """Options from the command line: a preset, and whatever else is named changed in it.

    Arguments:
        presets: Options by preset name; "cpu" is the default.
        description: Shown by --help.
        arguments: As in sys.argv[1:].
        program: Name shown by --help.
    """
    import tyro

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chosen = "cpu"
    for i, word in enumerate(arguments):
        if word == "--preset" and i + 1 < len(arguments):
            chosen = arguments[i + 1]
        elif word.startswith("--preset="):
            chosen = word.partition("=")[2]
    default = presets.get(chosen, presets["cpu"])
    return tyro.cli(
        type(default), default=default, args=arguments, description=description, prog=program
    )


@dataclass
class Material:
    """A corpus as the model sees it, by split."""

    waves: dict[str, list[Tensor]]
    """Waveforms at the model's rate."""
    clips: dict[str, list[Clip]]
    x: dict[str, Tensor]
    """`(N, 1, M, T)`, the log-mels of each clip's first window."""
    y: dict[str, Tensor]
    """`(N,)`, class indices, -1 for none."""
    facts: Results
    """Counts of clips, of those left out and those cut."""


def start(options: Options, recipe: str) -> torch.device:
    """Check the device and the run folder, then record settings and environment in the folder.

    Raises:
        ValueError: a device that is not there; a folder that is no run of this recipe, or one with
            other settings, each named.
    """
    device = _device(options)
    run, config = options.run, options.run / "config.json"
    settings = {"recipe": recipe, **json.loads(json.dumps(asdict(options), default=str))}
    if run.exists() and not run.is_dir():
        raise ValueError(f"--run {run}: a file stands there; name a folder")
    if not config.exists() and run.is_dir() and any(run.iterdir()):
        raise ValueError(f"--run {run}: not empty and not a run folder; name another one")
    if config.exists():
        before = read_json(config)
        if not isinstance(before, dict) or before.get("recipe") != recipe:
            raise ValueError(f"--run {run}: holds a run of another recipe; name another folder")
        changed = [
            f"{key}: {before.get(key)} -> {value}"
            for key, value in settings.items()
            if key not in FREE and before.get(key) != value
        ]
        if changed:
            raise ValueError(
                f"--run {run} was started with other settings ({'; '.join(changed)}): give those "
                f"again, or another --run"
            )
    if device.type == "cpu":
        torch.set_num_threads(1)  # chunks run side by side instead: see chunks.py
    write_json(config, settings)
    environment = {
        "sance_audio": sance_audio.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "threads_per_chunk": 1,
    }
    write_json(run / "environment.json", environment)
    return device


def _device(options: Options) -> torch.device:
    wanted = options.device
    if wanted == "auto":
        wanted = "cuda" if options.preset == "gpu" and torch.cuda.is_available() else "cpu"
    if wanted not in ("cpu", "cuda"):
        raise ValueError(f"--device {wanted}: expected cpu, cuda or auto")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return torch.device(wanted)


def prepare(
    corpus: Corpus,
    features: LogMel,
    options: Options,
    splits: Sequence[str] = ("train", "valid", "test"),
) -> tuple[AudioEBM, Material, Tensor]:
    """Read the corpus, fit features and reference on its training split, and build an untrained
    model.

    Returns:
        The model, the material, and the component of each training clip `(N,)`.
    """
    waves, clips = {}, {}
    for split in splits:
        waves[split], clips[split] = corpus.waveforms(split, features.sample_rate)
    for problem in corpus.problems:
        print(f"left out: {problem}", file=sys.stderr)
    length = features.length(options.frames)
    cut = sum(len(wave) > length for split in splits for wave in waves[split])
    y = {split: torch.tensor(corpus.index(members)) for split, members in clips.items()}
    missing = [label for i, label in enumerate(corpus.labels) if i not in y["train"]]
    if missing:
        raise ValueError(f"{corpus.name}: no training clip of {', '.join(missing)}")

    first = {s: torch.stack([audio.windows(w, length, PEAK)[0] for w in waves[s]]) for s in splits}
    features.fit(_log_mels(features, first["train"]))
    x = {
        split: features.standardise(_log_mels(features, windows))
        for split, windows in first.items()
    }

    reference, components = GaussianReference.fit(
        x["train"],
        y["train"],
        components=options.components,
        rank=options.rank,
        sigma=options.sigma,
        seed=options.seed,
    )
    torch.manual_seed(options.seed)
    size = SIZES[options.network]
    network = ResidualEnergy(reference.n_components, **size)
    positions = network.map(x["train"][:1]).numel()
    torch.manual_seed(options.seed)
    network = ResidualEnergy(reference.n_components, **size, positions=positions)
    model = AudioEBM(
        features,
        ReferencedEnergy(reference, network),
        corpus.labels,
        frames=options.frames,
        sigma=options.sigma,
        peak=PEAK,
        step_size=options.train.step_size,
        cap=options.train.cap,
        steps=options.generation_steps,
    )
    counts = {split: len(members) for split, members in clips.items()}
    print(
        f"{corpus.name}: {', '.join(f'{n} {split}' for split, n in counts.items())} clips, "
        f"{len(corpus.problems)} left out, {cut} longer than the window of "
        f"{length / features.sample_rate:.2f} s (its first window counts); "
        f"{reference.n_components} Gaussian components; "
        f"{sum(p.numel() for p in network.parameters())} parameters"
    )
    facts = {"clips": counts, "left_out": corpus.problems, "longer_than_window": cut}
    return model, Material(waves, clips, x, y, facts), components


def fit(model: AudioEBM, material: Material, components: Tensor, options: Options) -> Results:
    """Train, estimate log Z, save the model; then how much better than its reference it explains
    held-out clips.
    """
    callbacks = (_show(model, options),) if options.train.sample_every else ()
    rows = train(
        model,
        material.x["train"],
        components,
        options.train,
        options.run,
        seed=options.seed,
        callbacks=callbacks,
    )
    log_z = annealed_log_z(
        model.density,
        model.shape,
        steps=options.annealing,
        settle=options.annealing,
        step_size=model.step_size,
        cap=model.cap,
        generator=torch.Generator(model.device).manual_seed(options.seed),
    )
    # The larger of the two estimates: likelihoods are understated rather than overstated.
    model.density.log_z.copy_(torch.maximum(log_z.forward, log_z.reverse))
    model.save_pretrained(options.run)
    held_out = material.x["test"].to(model.device)
    gain = (model.energy_of(held_out, reference_only=True) - model.energy_of(held_out)).double()
    share = model.component_of(held_out).bincount(minlength=len(log_z.forward)) / len(held_out)
    of_log_z = float((share.cpu() * log_z.standard_error.cpu()).square().sum().sqrt())
    of_clips = float(gain.std() / len(gain) ** 0.5)
    return {
        "corpus": material.facts,
        "log_z": {
            "forward": float(log_z.forward.mean()),
            "reverse": float(log_z.reverse.mean()),
            "largest_standard_error": float(log_z.standard_error.max()),
            "ess": float(log_z.ess.mean()),
            "accepted": log_z.accepted,
            "ledger": rows[-1]["log_z"],
        },
        "held_out_gain": {
            "mean": float(gain.mean()),
            "standard_error": math.hypot(of_clips, of_log_z),
            "standard_error_of_log_z": of_log_z,
            "clips": len(gain),
        },
    }


def _log_mels(features: LogMel, windows: Tensor) -> Tensor:
    return torch.cat(
        run_chunks(lambda part: features.log_mel(windows[part]), slices(len(windows), 64))
    )


def _show(model: AudioEBM, options: Options) -> Callable[[int, dict[str, Any], AudioEBM], None]:
    """A callback: every `sample_every` steps, clips and a picture from the same starts."""
    seeds = clip_seeds(torch.Generator().manual_seed(options.seed), 6)
    classes = model.classes(6)

    def show(step: int, row: dict[str, Any], averaged: AudioEBM) -> None:
        if step % options.train.sample_every and step != options.train.steps:
            return
        x, _ = averaged.draw(classes, seeds)
        folder = options.run / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step_{step:06d}.png").write_bytes(pictures.sheet(x))
        for i, wave in enumerate(averaged.invert(x, seeds)):
            label = audio.file_label(averaged.labels[classes[i]]) if averaged.labels else ""
            audio.write(
                folder / f"step_{step:06d}_{i}{label and '_' + label}.wav",
                wave,
                averaged.sample_rate,
            )

    return show
