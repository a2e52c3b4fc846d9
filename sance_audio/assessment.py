"""Judging generated clips: the steps that recipes and `sance-audio evaluate` share."""

from __future__ import annotations

__all__ = [
    "Generated",
    "Made",
    "analyse",
    "classify",
    "evaluate",
    "examples",
    "generate",
    "make",
    "write_clips",
]

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sance_audio import audio, evaluation, metrics
from sance_audio.files import write_json
from sance_audio.judges import Judge, classify, judged_in
from sance_audio.model import AudioEBM
from sance_audio.options import Options, Results
from sance_audio.preparation import Material
from sance_audio.report.nearest import blocks, flat, nearest

COMPARED, TESTED = 2_500, 2_000
"""Rows, at most: of training clips that others are compared with, of test clips."""
FEW = 640
"""Clips (ten for each of the 64 features) below which KID, unbiased, is the figure to read."""
COPIES = 200
"""Training clips that show what copies would look like."""
PAIRS = 3
"""Generated clips nearest to a training clip, written beside it."""


@dataclass
class Generated:
    """Clips made by a model."""

    waves: Tensor
    """`(n, window)`."""
    classes: list[int]
    x: Tensor
    """`(n, 1, M, T)`: the log-mels of the waveforms."""
    seconds: float
    """That generating them took."""


def generate(model: AudioEBM, n: int, seed: int, **how: Any) -> Generated:
    """n clips in balanced classes, and their sounds analysed again; `how` as of
    `AudioEBM.generate`.
    """
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    waves = model.generate(n, generator, **how)
    seconds = time.perf_counter() - began
    return Generated(waves, model.classes(n), analyse(model, waves), seconds)


def analyse(model: AudioEBM, waves: Sequence[Tensor] | Tensor) -> Tensor:
    """Log-mels `(B, 1, M, T)` of the first window of each clip."""
    return model.log_mels(torch.stack([model.windows(w)[0] for w in waves]))


def write_clips(model: AudioEBM, waves: Tensor, classes: Sequence[int], folder: Path) -> list[str]:
    """Write `{index:04d}_{label}.wav` (`{index:04d}.wav` for an unlabelled model); returns the
    names.
    """
    names = []
    for i, (wave, y) in enumerate(zip(waves, classes, strict=True)):
        name = (
            f"{i:04d}_{audio.file_label(model.labels[y])}.wav" if model.labels else f"{i:04d}.wav"
        )
        audio.write(folder / name, wave, model.sample_rate)
        names.append(name)
    return names


@dataclass
class Made:
    """Clips that a table is made of."""

    ours: Generated
    alone: Generated
    """Of the reference only."""
    truncated: Generated | None
    """Of the reference, truncated as ours are; None where those are not."""
    x_test: Tensor
    """`(n, 1, M, T)`: log-mels of test clips."""
    rows: Tensor
    """`(n,)`: which of the test rows they are."""
    again: Tensor
    """`(n, 1, M, T)`: the same through inversion."""


def make(model: AudioEBM, material: Material, options: Options) -> Made:
    """Generate what `evaluate` judges."""
    n, seed = options.evaluate, options.seed
    truncated = None
    if model.truncates:
        how: Any = {"reference_only": True, "truncation": model.truncation}
        truncated = generate(model, n, seed, **how)
    x_test, rows = _shuffled(material, "test", TESTED, seed=0)
    again = analyse(model, model.invert(x_test.to(model.device)))
    alone = generate(model, n, seed, reference_only=True)
    return Made(generate(model, n, seed), alone, truncated, x_test, rows, again)


def evaluate(
    model: AudioEBM, judge: Judge, material: Material, options: Options, made: Made | None = None
) -> tuple[Results, Generated]:
    """The table: real test clips, the same through inversion, the reference alone, the model; and
    what it shows. Written to `evaluation.json`, with the closest pairs as WAVs in `evaluation/`.

    Arguments:
        made: The clips to judge, where they are there already.

    Returns:
        The results, and the clips that the model made.
    """
    made = make(model, material, options) if made is None else made
    ours, again, rows = made.ours, made.again, made.rows

    def described(x: Tensor, y: Tensor, owner: Tensor | None = None) -> evaluation.Described:
        labels = y if model.labels else None
        own = owner if material.windows > 1 else None
        return evaluation.describe(judge.classifier, x, labels, own)

    x_real, real_rows = _shuffled(material, "train", COMPARED, seed=1)
    real = described(x_real, material.y["train"][real_rows], material.owner["train"][real_rows])
    y_test, owner = material.y["test"][rows], material.owner["test"][rows]
    sets = {
        "real test clips": described(made.x_test, y_test, owner),
        "real through inversion": described(again, y_test, owner),
    }
    others = {"reference only": made.alone, "reference, truncated": made.truncated, "ours": ours}
    sets |= {k: described(g.x, torch.tensor(g.classes)) for k, g in others.items() if g}
    differences = _differences(sets["ours"], sets["reference only"], real)
    if made.truncated is not None:
        fair = _differences(sets["ours"], sets["reference, truncated"], real)
        differences |= {f"{what}, truncated": found for what, found in fair.items()}
    n_equal = min(len(ours.waves), len(rows), len(x_real))
    judged_by = {"sha256": judge.sha256, "seed": judge.seed, "kinds": judge.kinds}
    results = {
        "table": {k: evaluation.row(s, real, judge.kinds, n_equal) for k, s in sets.items()},
        "n_equal": n_equal,
        "headline": "kid" if n_equal < FEW else "fid",
        "classifier": judged_by,
        "seed": options.seed,
        "differences": differences,
        "memorisation": _memorisation(model, material, options.run, judge, ours, again, real),
        "generation": _levels(model, ours),
    }
    write_json(options.run / judged_in(judge.seed), results)
    return results, ours


def _shuffled(material: Material, split: str, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """As `Material.some`, in an order that makes any first rows a fair draw."""
    x, rows = material.some(split, most)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return x[order], rows[order]


def _differences(
    ours: evaluation.Described,
    alone: evaluation.Described,
    real: evaluation.Described,
) -> dict[str, dict[str, float]]:
    """Ours less reference only over all clips, pair by pair of the same seed, with 95 % intervals
    over the pairs; the training clips are what they are.
    """
    phi, phi_0, n = ours.phi, alone.phi, len(ours.phi)
    kid, kid_0 = (
        metrics.kernel_distances(z, real.phi, fixed=True, groups=(None, real.groups))
        for z in (phi, phi_0)
    )
    out = {
        "kid": metrics.percentiles(kid - kid_0),
        "fid": metrics.paired_interval(
            lambda i: (
                metrics.frechet_distance(phi[i], real.phi)
                - metrics.frechet_distance(phi_0[i], real.phi)
            ),
            n,
        ),
    }
    right, right_0 = ours.right, alone.right
    if right is not None and right_0 is not None:
        gained = right.astype(float) - right_0
        out["accuracy"] = metrics.paired_interval(lambda i: float(gained[i].mean()), n)
    return out


def _memorisation(
    model: AudioEBM,
    material: Material,
    run: Path,
    judge: Judge,
    ours: Generated,
    again: Tensor,
    real: evaluation.Described,
) -> Results:
    """Are generated clips copies? Distances to the nearest training clip (in features, of those in
    `real`; in log-mels, of all), over those of real test clips that went through inversion as
    generated ones did, `again`. What copies would give stands beside: training clips through
    inversion. The closest pairs are written as WAVs.
    """
    train = material.x["train"]
    copies = material.some("train", COPIES)[0]
    copies = analyse(model, model.invert(copies.to(model.device)))

    def phi(x: Tensor) -> np.ndarray:
        return evaluation.describe(judge.classifier, x).phi

    out: Results = {}
    sides = ("features", phi, iter([real.phi])), ("log_mel", flat, blocks(train))
    for name, of, others in sides:
        sets = [of(ours.x), of(again), of(copies)]
        both, where = metrics.nearest(np.concatenate(sets), others)
        mine, test, copied = np.split(both, np.cumsum([len(z) for z in sets])[:-1])
        out[name] = _ratios(mine, test) | {"copies": _ratios(copied, test)}
    # `mine` and `where` are those of the log-mels: the closest pairs there
    out["closest"] = []
    for k, i in enumerate(np.argsort(mine, kind="stable")[:PAIRS].tolist()):
        row = int(where[i])
        clip = material.clips["train"][int(material.owner["train"][row])]
        files = [f"{judge.folder}/closest_{k}_{what}.wav" for what in ("generated", "training")]
        sounds = ours.waves[i], material.window("train", row, model)
        for file, wave in zip(files, sounds, strict=True):
            audio.write(run / file, wave, model.sample_rate)
        out["closest"].append(
            {"generated": files[0], "training": files[1], "index": i, "name": clip.name}
            | {"distance": float(mine[i])}
        )
    return out


def _ratios(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Quantiles of distances a over those of b."""
    return {
        f"at_{name}": float(np.quantile(a, q) / max(float(np.quantile(b, q)), 1e-9))
        for name, q in (("5_percent", 0.05), ("median", 0.5))
    }


def _levels(model: AudioEBM, ours: Generated) -> Results:
    """Levels of generated clips, and what they cost."""
    peaks = ours.waves.abs().amax(1)
    quietest = ours.waves.square().mean(1).sqrt().min().clamp_min(1e-9)
    return {
        "clips_scaled_down": int((peaks > audio.PEAK).sum()),
        "quietest_rms_dbfs": float(20 * quietest.log10()),
        "real_time_factor": ours.seconds / (len(ours.waves) * model.window / model.sample_rate),
    }


def examples(
    model: AudioEBM, material: Material, options: Options, ours: Generated
) -> list[Results]:
    """Write clips for the page: the model's first into `clips/`, the training clips nearest to
    them into `page/`, recordings, and what inversion makes of them, into `samples/`; what each is,
    with its energy.
    """
    if len(ours.waves) < options.clips:
        ours = generate(model, options.clips, options.seed)
    folder = options.run / "clips"
    for old in folder.glob("[0-9][0-9][0-9][0-9]*.wav"):
        old.unlink()
    names = write_clips(model, ours.waves[: options.clips], ours.classes[: options.clips], folder)
    energies = model.energy_of(ours.x[: options.clips])
    near = _nearest(model, material, ours.x[: options.clips], options.run)
    cards: list[Results] = [
        {
            "file": f"clips/{name}",
            "kind": "generated",
            "label": model.labels[y] if model.labels else f"clip {i}",
            "seed": options.seed,
            "index": i,
            "energy": float(e),
            "nearest": near[i],
        }
        for i, (name, y, e) in enumerate(zip(names, ours.classes, energies, strict=False))
    ]
    for k, (label, row) in enumerate(_shown(model, material)):
        wave = material.window("test", row, model)
        x = material.x["test"][torch.tensor([row])].to(model.device)
        name = audio.file_label(label)
        for kind, sound in (("real", wave), ("resynthesised", model.invert(x)[0])):
            file = f"samples/{kind}_{k:02d}_{name}.wav"
            audio.write(options.run / file, sound, model.sample_rate)
            energy = float(model.energy_of(analyse(model, [sound]))[0])
            cards.append({"file": file, "kind": kind, "label": label, "energy": energy})
    return cards


def _nearest(model: AudioEBM, material: Material, x: Tensor, run: Path) -> list[Results]:
    """The training clip nearest to each log-mel: its sound, its class and its name."""

    def of(row: int) -> Results:
        clip = material.clips["train"][int(material.owner["train"][row])]
        return {"label": clip.label, "name": clip.name}

    train = material.x["train"]
    found = nearest(run, model, x, train, lambda row: material.window("train", row, model))
    return [about | of(about["row"]) for about in found]


def _shown(model: AudioEBM, material: Material) -> Iterator[tuple[str, int]]:
    """Test clips for the page, as (name, first row): one of each class, or six of no class."""
    owner, y = material.owner["test"], material.y["test"]
    if not model.labels:
        for clip in range(min(6, len(material.clips["test"]))):
            yield material.clips["test"][clip].name, int((owner == clip).nonzero()[0])
    for k, label in enumerate(model.labels):
        rows = (y == k).nonzero()
        if len(rows):
            yield label, int((owner == owner[rows[0]]).nonzero()[0])
