"""What a recipe can be told on the command line."""

from __future__ import annotations

__all__ = [
    "RunOptions",
    "Options",
    "LargeOptions",
    "Results",
    "parse",
    "options_from",
    "SMOKE",
    "FREE",
]

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from sance_audio.config import TrainConfig

Results = dict[str, Any]


@dataclass(frozen=True)
class RunOptions:
    """What every recipe can be told."""

    run: Path = Path("runs/unnamed")
    """Run folder. The same command again resumes."""
    preset: Literal["smoke", "cpu", "gpu"] = "cpu"
    """smoke: under a minute, to see that all works. cpu: two cores. gpu: one modern GPU."""
    device: str = "auto"
    """cpu, cuda, or auto: the preset gpu on a GPU when there is one, everything else on the CPU.
    """
    seed: int = 0
    """Of everything random."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    named: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Options that the command line named, whatever their values."""


@dataclass(frozen=True)
class Options(RunOptions):
    """What a recipe of a corpus can be told on the command line."""

    data: Path | None = None
    """Folder of the corpus; downloaded where the recipe knows how when left out."""
    cache: Path | None = None
    """Folder for computed features, which runs may share; `features` in the run folder when left
    out."""
    log_with: Literal["none", "tensorboard"] = "none"
    """A tracker beside metrics.jsonl: scalars, spectrograms and clips, below RUN/tensorboard."""
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
    levels: int = 0
    """Levels of noise that one network holds the energies of, from --sigma up: a noise-conditional
    model. 0: a plain one."""
    sigma_max: float = 4.0
    """Standard deviation of the highest level of noise."""
    generation_steps: int = 200
    """Langevin steps of a generated clip."""
    sampling_temperature: float = 1.0
    """Of generated clips: below 1, likelier and less varied ones."""
    truncation: float = 0.0
    """Share of held-out windows that are less surely recognised than a generated clip must be,
    by a small network that learns the labels too; 0 keeps every clip."""
    label_epochs: int = 8
    """Passes of that network over the training clips."""
    annealing: int = 100
    """Temperatures of the estimate of log Z."""
    classifier_epochs: int = 12
    """Passes of the evaluating classifier over the training clips."""
    evaluate: int = 200
    """Generated clips that the table is computed on."""
    clips: int = 24
    """Generated clips written to clips/."""
    tune: bool = True
    """Measure, after training, how sampling is fastest on this machine, and store it."""

    def __post_init__(self) -> None:
        least = {"seed": 0, "frames": 16, "components": 1, "rank": 1, "generation_steps": 0}
        least |= {"annealing": 1, "classifier_epochs": 1, "evaluate": 2, "clips": 1}
        least |= {"label_epochs": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name} must be at least {value}, found {getattr(self, name)}")
        if not self.sampling_temperature > 0:
            raise ValueError(
                f"--sampling-temperature must be positive, found {self.sampling_temperature}"
            )
        if not 0 <= self.truncation < 1:
            raise ValueError(
                f"--truncation is a share from 0 to less than 1, found {self.truncation}"
            )
        if not self.sigma > 0:
            raise ValueError(f"--sigma must be positive, found {self.sigma}")
        if self.levels and not (self.levels >= 2 and self.sigma_max > self.sigma):
            raise ValueError(
                f"--levels must be 0 or at least 2, and --sigma-max above --sigma={self.sigma}: "
                f"found {self.levels} and {self.sigma_max}"
            )


@dataclass(frozen=True)
class LargeOptions(Options):
    """What a recipe of a corpus that takes days can be told besides."""

    most: int = 0
    """Clips of each label that are trained on, at most, and a fifth as many validated on and
    judged; 0 for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most < 0:
            raise ValueError(f"--most must be at least 0, found {self.most}")


SMOKE: dict[str, Any] = {
    "preset": "smoke",
    "components": 1,
    "rank": 8,
    "network": "smoke",
    "train": TrainConfig(steps=6, langevin_steps=4, sample_every=6, checkpoint_every=3),
    "generation_steps": 5,
    "annealing": 4,
    "classifier_epochs": 1,
    "evaluate": 20,
    "clips": 10,
    "tune": False,
}
"""The preset `smoke` of a recipe, for it to take over or to change."""

FREE = {"run", "data", "cache", "log_with", "device", "named", "jobs", "density", "machines"}
FREE |= {"evaluation"}
FREE |= {"seeds", "other_seeds", "sets", "points"}
FREE |= {"generation_steps", "sampling_temperature", "annealing", "evaluate", "clips", "tune"}
FREE |= {"truncation", "label_epochs"}
"""Options that a finished or interrupted run may be given anew; any other decides what it is."""

O = TypeVar("O", bound=RunOptions)


def parse(
    presets: dict[str, O],
    description: str,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> O:
    """Options from the command line: a preset, and whatever else is named changed in it.

    Arguments:
        presets: Options by preset name; "auto" is the default where there is one, else "cpu".
        description: Shown by --help.
        arguments: As in sys.argv[1:].
        program: Name shown by --help.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    usual = "auto" if "auto" in presets else "cpu"
    chosen = usual
    for i, word in enumerate(arguments):
        if word == "--preset" and i + 1 < len(arguments):
            chosen = arguments[i + 1]
        elif word.startswith("--preset="):
            chosen = word.partition("=")[2]
    default = presets.get(chosen, presets[usual])
    options = tyro.cli(
        type(default), default=default, args=arguments, description=description, prog=program
    )
    flags = (word.partition("=")[0] for word in arguments if word.startswith("--"))
    return replace(options, named=tuple(flag[2:].replace("-", "_") for flag in flags))


def options_from(settings: dict[str, Any], default: O) -> O:
    """Options as a run's `config.json` holds them.

    Raises:
        ValueError: settings that these options cannot have.
    """
    values = {f.name: settings[f.name] for f in fields(default) if f.name in settings}
    try:
        values["train"] = TrainConfig(**values["train"])
        values["named"] = tuple(values.get("named", ()))
        for name in ("run", "data", "cache"):
            values[name] = None if values.get(name) is None else Path(values[name])
        return type(default)(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"config.json: settings of another version ({error})") from error
