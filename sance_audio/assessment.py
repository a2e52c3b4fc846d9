"""Judging generated clips: the steps that recipes and `sance-audio evaluate` share."""

from __future__ import annotations

__all__ = ["classify", "Generated", "generate", "analyse", "write_clips", "evaluate", "examples"]

import hashlib
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
from sance_audio.model import AudioEBM
from sance_audio.options import Options, Results
from sance_audio.preparation import Material
from sance_audio.report.nearest import blocks, flat, nearest
from sance_audio.weights import WeightsError, load_weights, save_weights

TAUGHT, COMPARED, TESTED = 10_000, 2_500, 2_000
"""Rows, at most: of training clips that the classifier learns from, of training clips that others
are compared with, of test clips.
"""
FEW = 640
"""Clips (ten for each of the 64 features) below which KID, unbiased, is the figure to read."""
CLASSIFIER_SEED = 0
"""One for all runs, whatever theirs, so that their figures compare."""
COPIES = 200
"""Training clips that show what copies would look like."""
PAIRS = 3
"""Generated clips nearest to a training clip, written beside it."""


@dataclass(frozen=True)
class Judge:
    """The evaluating classifier of a run."""

    classifier: evaluation.Classifier
    kinds: tuple[str, ...]
    """What it tells apart: the labels, or clusters of the training clips where there are none."""
    sha256: str
    """Of its file: the same hash, the same judge."""


def classify(model: AudioEBM, material: Material, options: Options) -> Judge:
    """The judge of a run: trained on the training clips once, and kept in the run folder.

    An unlabelled model's clips have no classes; its classifier learns to tell clusters of them
    apart, which gives features to compare sets of clips in.

    Raises:
        WeightsError: the file in the run is no classifier of this model.
    """
    path = options.run / "classifier.safetensors"
    if not path.exists():
        x, rows = material.some("train", TAUGHT)
        y = material.y["train"][rows] if model.labels else _kinds(x)
        kinds = model.labels or tuple(f"kind {k + 1}" for k in range(int(y.max()) + 1))
        epochs = options.classifier_epochs
        trained = evaluation.train_classifier(
            x, y, len(kinds), epochs=epochs, seed=CLASSIFIER_SEED
        )
        about = {"classifier": trained.settings, "kinds": kinds, "epochs": epochs}
        save_weights(path, "classifier", about, trained.state_dict())
    settings, tensors = load_weights(path, "classifier")
    kinds = tuple(settings.get("kinds", model.labels))
    try:
        classifier = evaluation.Classifier(**settings["classifier"])
        classifier.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: not a classifier of this version ({error})") from error
    if model.labels and kinds != model.labels:
        raise WeightsError(f"{path}: tells {', '.join(kinds)} apart, not the model's labels")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Judge(classifier.eval(), kinds, digest)


def _kinds(x: Tensor) -> Tensor:
    """Clusters `(N,)` of log-mels `(N, 1, M, T)`, by each band's mean and deviation over time."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    bands = torch.cat([x.mean(3), x.std(3)], 2).squeeze(1).cpu().numpy()
    k = max(2, min(10, len(x) // 20))
    found = KMeans(k, n_init=4, random_state=0).fit_predict(StandardScaler().fit_transform(bands))
    return torch.from_numpy(found).long()


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


def generate(model: AudioEBM, n: int, seed: int, *, reference_only: bool = False) -> Generated:
    """n clips in balanced classes, and their sounds analysed again."""
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    waves = model.generate(n, generator, reference_only=reference_only)
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


def evaluate(
    model: AudioEBM, judge: Judge, material: Material, options: Options
) -> tuple[Results, Generated]:
    """The table: real test clips, the same through inversion, the reference alone, the model; and
    what it shows. Written to `evaluation.json`, with the closest pairs as WAVs in `evaluation/`.

    Returns:
        The results, and the clips that the model made.
    """
    n = options.evaluate
    ours = generate(model, n, options.seed)
    alone = generate(model, n, options.seed, reference_only=True)
    x_test, rows = _shuffled(material, "test", TESTED, seed=0)
    again = analyse(model, model.invert(x_test.to(model.device)))

    def described(x: Tensor, y: Tensor, owner: Tensor | None = None) -> evaluation.Described:
        labels = y if model.labels else None
        own = owner if material.windows > 1 else None
        return evaluation.describe(judge.classifier, x, labels, own)

    x_real, real_rows = _shuffled(material, "train", COMPARED, seed=1)
    real = described(x_real, material.y["train"][real_rows], material.owner["train"][real_rows])
    y_test, owner = material.y["test"][rows], material.owner["test"][rows]
    sets = {
        "real test clips": described(x_test, y_test, owner),
        "real through inversion": described(again, y_test, owner),
        "reference only": described(alone.x, torch.tensor(alone.classes)),
        "ours": described(ours.x, torch.tensor(ours.classes)),
    }
    n_equal = min(n, len(rows), len(x_real))
    judged_by = {"sha256": judge.sha256, "seed": CLASSIFIER_SEED, "kinds": judge.kinds}
    results = {
        "table": {k: evaluation.row(s, real, judge.kinds, n_equal) for k, s in sets.items()},
        "n_equal": n_equal,
        "headline": "kid" if n_equal < FEW else "fid",
        "classifier": judged_by,
        "seed": options.seed,
        "differences": _differences(sets["ours"], sets["reference only"], real),
        "memorisation": _memorisation(model, material, options.run, judge, ours, again, real),
        "generation": _levels(model, ours),
    }
    write_json(options.run / "evaluation.json", results)
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
        files = [f"evaluation/closest_{k}_{what}.wav" for what in ("generated", "training")]
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
