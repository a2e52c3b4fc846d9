"""The steps that recipes share before and while a model is trained: run folder, training, log Z.

Each step takes what it needs and returns what it made; nothing is remembered here. A recipe is the
list of its choices and the calls of these steps.
"""

from __future__ import annotations

__all__ = ["connect", "start", "fit", "estimate_log_z"]

import json
import math
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sance_audio
from sance_audio import processes
from sance_audio.chunks import chunk_size, chunked
from sance_audio.conditional_training import train_conditional
from sance_audio.diagnostics import LogZ, annealed_log_z
from sance_audio.files import read_json, write_json
from sance_audio.labels import train_labels
from sance_audio.model import AudioEBM
from sance_audio.options import FREE, Options, Results, RunOptions
from sance_audio.preparation import Material
from sance_audio.trackers import Samples, TensorBoard
from sance_audio.training import Callbacks, train
from sance_audio.tuning import tune

LEARNT = 20_000
"""Rows of a split that the label network learns from, or is measured on, at most."""
OWN_SEED = 2**32
"""Added to the run's seed for the label network: no judge may have its batches."""
JUDGED = 2000
"""Held-out rows that the gain over the reference is taken over, at most."""


def connect(options: RunOptions) -> torch.device:
    """The device of a run; several processes, where a launcher started them, are connected on it.

    Raises:
        ValueError: a device that is not there.
    """
    device = _device(options)
    if device.type == "cpu":
        torch.set_num_threads(1)  # chunks run side by side instead: see chunks.py
    processes.join(device)
    return device


def start(options: RunOptions, recipe: str, device: torch.device) -> None:
    """Check the run folder, then record settings and environment in it.

    Raises:
        ValueError: a folder that is no run of this recipe, or one with other settings, each named.
    """
    processes.on_main(lambda: _claim(options, recipe, device))


def _claim(options: RunOptions, recipe: str, device: torch.device) -> None:
    """Make the run folder this run's, or find that it is."""
    run, config = options.run, options.run / "config.json"
    settings = {"recipe": recipe, **_plain(options)}
    data = getattr(options, "data", None)
    if data is not None:  # found again from wherever `evaluate` is called
        settings["data"] = str(data.resolve())
    if run.exists() and not run.is_dir():
        raise ValueError(f"--run {run}: a file stands there; name a folder")
    if not config.exists() and run.is_dir() and any(run.iterdir()):
        raise ValueError(f"--run {run}: not empty and not a run folder; name another one")
    if config.exists():
        before = read_json(config)
        if not isinstance(before, dict) or before.get("recipe") != recipe:
            raise ValueError(f"--run {run}: holds a run of another recipe; name another folder")
        usual = _plain(type(options)())  # of an option that the run is older than
        before["train"] = usual["train"] | before.get("train", {})
        changed = [
            f"{key}: {before.get(key, usual.get(key))} -> {value}"
            for key, value in settings.items()
            if key not in FREE and before.get(key, usual.get(key)) != value
        ]
        if changed:
            raise ValueError(
                f"--run {run} was started with other settings ({'; '.join(changed)}): give those "
                f"again, or another --run"
            )
    write_json(config, settings)
    environment = {
        "sance_audio": sance_audio.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "threads_per_chunk": 1,
        "processes": processes.count(),
    }
    write_json(run / "environment.json", environment)


def _plain(options: RunOptions) -> dict[str, Any]:
    """Options as JSON has them."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(options), default=str))
    return plain


def _device(options: RunOptions) -> torch.device:
    wanted = options.device
    if wanted == "auto":
        large = options.preset in ("gpu", "auto")
        wanted = "cuda" if large and torch.cuda.is_available() else "cpu"
    if wanted not in ("cpu", "cuda"):
        raise ValueError(f"--device {wanted}: expected cpu, cuda or auto")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return torch.device(wanted)


def fit(model: AudioEBM, material: Material, components: Tensor, options: Options) -> Results:
    """Train, estimate log Z, save the model; then how much better than its reference it explains
    held-out clips.

    Of several processes all but the first end here, once the training is done.
    """
    learn = train_conditional if options.levels else train
    with _callbacks(model, options) as callbacks:
        learn(
            model,
            material.x["train"],
            components,
            options.train,
            options.run,
            seed=options.seed,
            callbacks=callbacks,
        )
    if not processes.is_main():
        raise SystemExit(0)  # what follows is one process's work
    ledger = model.density.log_z.clone(), model.density.log_z_error.clone()
    log_z = estimate_log_z(model, options)
    if options.train.weighted:
        model.density.log_z.copy_(ledger[0])
        model.density.log_z_error.copy_(ledger[1])
    if options.tune:
        planned = options.evaluate * model.steps
        model.compute = tune(model, model.step_size, model.cap, planned=planned)
    if options.truncation:
        _learn_labels(model, material, options)
    model.save_pretrained(options.run)
    x, chosen = material.some("test", JUDGED)
    held_out = x.to(model.device)
    gain = (model.energy_of(held_out, reference_only=True) - model.energy_of(held_out)).double()
    clips = material.owner["test"][chosen].unique(return_inverse=True)[1]
    per_clip = torch.zeros(int(clips.max()) + 1, dtype=torch.double)
    per_clip.index_add_(0, clips, gain.cpu()).div_(clips.bincount())
    error = model.density.log_z_error
    share = model.component_of(held_out).bincount(minlength=len(error)) / len(held_out)
    of_log_z = float((share * error).square().sum().sqrt())
    of_clips = float(per_clip.std() / len(per_clip) ** 0.5)  # windows of one clip are no two
    return {
        "corpus": material.facts,
        "compute": asdict(model.compute),
        "log_z": {
            "forward": float(log_z.forward.mean()),
            "reverse": float(log_z.reverse.mean()),
            "largest_standard_error": float(log_z.standard_error.max()),
            "ess": float(log_z.ess.mean()),
            "accepted": log_z.accepted,
            "ledger": float(ledger[0].mean()),
            "ledger_standard_error": _known(ledger[1].square().mean().sqrt()),
            "exported": "ledger" if options.train.weighted else "annealing",
        },
        "held_out_gain": {
            "mean": float(per_clip.mean()),
            "standard_error": math.hypot(of_clips, of_log_z),
            "standard_error_of_log_z": of_log_z,
            "clips": len(per_clip),
        },
    }


def _learn_labels(model: AudioEBM, material: Material, options: Options) -> None:
    """The label network, and how surely it recognises held-out recordings (`labels`)."""
    (x, rows), (held_out, others) = (material.some(s, LEARNT) for s in ("train", "valid"))
    y, known = material.y["train"][rows], material.y["valid"][others]
    seed = options.seed + OWN_SEED
    network = train_labels(x, y, len(model.labels), epochs=options.label_epochs, seed=seed)
    log_q = chunked(network, held_out, size=chunk_size(held_out.device))
    model.label_network = network.to(model.device)
    model.sureness = log_q[range(len(known)), known].sort()[0].to(model.device)


def estimate_log_z(model: AudioEBM, options: Options) -> LogZ:
    """Anneal log Z from both ends and give it to the model: the larger of the two estimates, so
    that likelihoods are understated rather than overstated; half their difference is part of its
    error.
    """
    log_z = annealed_log_z(
        model.density,
        model.shape,
        steps=options.annealing,
        settle=options.annealing,
        step_size=model.step_size,
        cap=model.cap,
        generator=torch.Generator(model.device).manual_seed(options.seed),
    )
    model.density.log_z.copy_(torch.maximum(log_z.forward, log_z.reverse))
    half = (log_z.forward - log_z.reverse).abs() / 2
    model.density.log_z_error.copy_(torch.hypot(log_z.standard_error, half))
    return log_z


def _known(value: Tensor) -> float | None:
    """A number that JSON can hold."""
    return float(value) if bool(value.isfinite()) else None


@contextmanager
def _callbacks(model: AudioEBM, options: Options) -> Iterator[Callbacks]:
    """Clips and pictures at intervals, and the tracker that is asked for; in the first process."""
    with ExitStack() as stack:
        callbacks: Callbacks = ()
        if processes.is_main():
            tracker = None
            if options.log_with == "tensorboard":
                tracker = stack.enter_context(TensorBoard(options.run))
                callbacks += (tracker,)
            if options.train.sample_every:
                callbacks += (Samples(model, options, tracker),)
        yield callbacks
