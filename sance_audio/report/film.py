"""Clips that emerge: the first clips of a run after 0, 1, 3, 10, ... Langevin steps.

A chain of k steps is the beginning of the same chain of more: same seed, same noise. Each frame is
therefore drawn anew with its number of steps, by the very code that generates, and the last one is
the clip itself, or its first draw where truncation had it drawn anew. Frames are cleaned as clips
are; the first is the reference's own draw. The steps of a noise-conditional model are divided
among its levels: its frames are clips of one seed drawn in fewer steps.
"""

from __future__ import annotations

__all__ = ["film", "frames"]

import hashlib
from pathlib import Path
from typing import Any

import torch

from sance_audio import audio
from sance_audio.files import read_json, write_json
from sance_audio.model import AudioEBM
from sance_audio.pretrained import WEIGHTS
from sance_audio.samplers import clip_seeds

FILMED = 3
"""Clips, of as many classes where there are."""


def frames(steps: int) -> list[int]:
    """Steps that are shown: about three times as many from one to the next.

    >>> frames(200), frames(5), frames(0)
    ([0, 1, 3, 10, 30, 100, 200], [0, 1, 3, 5], [0])
    """
    at = [m * 10**k for k in range(7) for m in (1, 3)]
    return [0, *(k for k in at if k < 0.8 * steps), steps] if steps else [0]


def film(run: Path, seed: int) -> list[list[dict[str, Any]]]:
    """The frames of each filmed clip, written to `page/`; kept while model and seed are the same.

    Arguments:
        run: Run folder with a model.
        seed: Of the run's clips.
    """
    index = run / "page" / "film.json"
    digest = hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()
    about = {"model": digest, "seed": seed}
    known = read_json(index) if index.exists() else {}
    if isinstance(known, dict) and known.items() >= about.items():
        films = known["films"]
        if all((run / frame["file"]).is_file() for row in films for frame in row):
            return films
    for old in (run / "page").glob("film_*.wav"):
        old.unlink()
    films = _draw(AudioEBM.from_pretrained(run, _device(run)), run, seed)
    write_json(index, about | {"films": films})
    return films


def _device(run: Path) -> str:
    """Where the run drew its clips, if that is here: elsewhere the same seed gives others."""
    path = run / "environment.json"
    known = read_json(path) if path.exists() else {}
    cuda = isinstance(known, dict) and str(known.get("device", "cpu")).startswith("cuda")
    return "cuda" if cuda and torch.cuda.is_available() else "cpu"


def _draw(model: AudioEBM, run: Path, seed: int) -> list[list[dict[str, Any]]]:
    count = min(FILMED, len(model.labels)) or FILMED
    seeds = clip_seeds(torch.Generator().manual_seed(seed), count)
    classes = model.classes(count)
    films: list[list[dict[str, Any]]] = [[] for _ in classes]
    warm = model.sampling_temperature  # of the reference's draw too: it is where the chain starts
    for step in frames(model.steps):
        how: dict[str, Any] = {"reference_only": step == 0, "temperature": warm}
        x, _ = model.draw(classes, seeds, step, truncation=0.0, **how)
        waves = model.invert(x, seeds)
        windows = torch.stack([model.windows(wave)[0] for wave in waves])
        energies = model.energy_of(model.log_mels(windows)).tolist()
        for i, (wave, y, energy) in enumerate(zip(waves, classes, energies, strict=True)):
            file = f"page/film_{i}_{step:06d}.wav"
            audio.write(run / file, wave, model.sample_rate)
            label = model.labels[y] if model.labels else f"clip {i}"
            about = {"file": file, "label": label, "index": i, "step": step}
            films[i].append(about | {"energy": energy})
    return films
