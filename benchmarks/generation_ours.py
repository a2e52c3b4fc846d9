"""The digits recipe in a given time: its own preparation, model and training; what it draws."""

from __future__ import annotations

__all__ = ["Prepared", "prepared", "untrained", "ours", "load", "draw"]

import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.generation_peers import Clock
from sance_audio import LogMel
from sance_audio.config import TrainConfig
from sance_audio.datasets import Corpus, fsdd
from sance_audio.model import AudioEBM
from sance_audio.options import Options
from sance_audio.preparation import Material, build, prepare
from sance_audio.recipe import load_recipe
from sance_audio.samplers import clip_seeds
from sance_audio.training import train

PROBE = 24
"""Steps that are timed, the first quarter left out."""
MARGIN = 0.97
"""Share of the time left that steps are planned for."""


@dataclass(frozen=True)
class Prepared:
    """What all generators are given."""

    material: Material
    corpus: Corpus
    features: LogMel
    """Fitted to the training clips."""
    options: Options
    """The recipe's preset for the device."""


def prepared(data: Path, run: Path, device: str, seed: int, **changed: Any) -> Prepared:
    """The recipe's preparation, kept below `run`; `changed` are options other than the preset's,
    which here does not truncate, as no peer does.

    Raises:
        ValueError: no corpus in `data`.
    """
    recipe = load_recipe("fsdd")
    preset = recipe.PRESETS["gpu" if device == "cuda" else "cpu"]
    changed = {"truncation": 0.0, "seed": seed, **changed}
    options = replace(preset, data=data, run=run, device=device, **changed)
    corpus = recipe.corpus(options)
    features = LogMel(  # as in the recipe's main
        fsdd.SAMPLE_RATE, n_fft=512, hop_length=128, n_mels=64, f_min=20.0, floor=5e-5
    )
    return Prepared(prepare(corpus, features, options), corpus, features, options)


def untrained(given: Prepared) -> tuple[AudioEBM, Tensor]:
    """The recipe's model before its first step, on the device, and each row's component `(N,)`."""
    model, components = build(given.material, given.corpus, given.features, given.options)
    return model.to(given.options.device), components


class OutOfTime(Exception):
    """The clock has run out before the last step."""


def ours(given: Prepared, clock: Clock, folder: Path) -> tuple[int, int, int]:
    """Train the recipe's model, by as many steps as the clock has time for, and save it.

    The reference is fitted and a few steps are timed first, all on the clock.

    Returns:
        Steps; numbers that gradients have trained; numbers that are kept to draw from.
    """
    model, components = untrained(given)
    config = given.options.train
    if clock.steps is None:
        config = replace(config, steps=_planned(given, model, components, clock))
    else:
        config = replace(config, steps=clock.steps)

    def count(step: int, *_: Any) -> None:
        clock.done = step
        if clock.elapsed() > clock.seconds:
            raise OutOfTime

    try:
        _train(given, model, components, config, count)
    except OutOfTime:  # the averaged weights are in the model after every step
        print(f"ours: out of time at step {clock.done} of {config.steps}", file=sys.stderr)
    model.save_pretrained(folder)
    weights = sum(p.numel() for p in model.density.network.parameters())
    return clock.done, weights, weights + sum(b.numel() for b in model.reference.buffers())


def _planned(given: Prepared, model: AudioEBM, components: Tensor, clock: Clock) -> int:
    """Steps that fit into what is left, by the time that the last of a few took."""
    times: list[float] = []
    config = replace(given.options.train, steps=PROBE)
    _train(given, deepcopy(model), components, config, lambda *_: times.append(clock.elapsed()))
    each = (times[-1] - times[PROBE // 4 - 1]) / (PROBE - PROBE // 4)
    end = clock.elapsed()
    after = end - times[-1]  # what follows the last step takes as long again
    return max(1, int(MARGIN * (clock.seconds - end - after) / each))


def _train(
    given: Prepared,
    model: AudioEBM,
    components: Tensor,
    config: TrainConfig,
    callback: Callable[..., None],
) -> None:
    """The recipe's training, in a folder that is not kept."""
    x, seed = given.material.x["train"], given.options.seed
    with tempfile.TemporaryDirectory() as run:
        train(model, x, components, config, run, seed=seed, callbacks=(callback,), progress=False)


def load(folder: Path, device: torch.device) -> AudioEBM:
    """What `ours` has saved."""
    return AudioEBM.from_pretrained(folder, device)


def draw(model: AudioEBM, y: Tensor, seed: int, **how: Any) -> Tensor:
    """Standardised log-mels `(n, 1, M, T)` of classes y `(n,)`, on the CPU."""
    seeds = clip_seeds(torch.Generator().manual_seed(seed), len(y))
    return model.draw(y.tolist(), seeds, **how)[0].cpu()
