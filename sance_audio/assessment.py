"""The later steps that recipes share: judging generated clips, and detection."""

from __future__ import annotations

__all__ = ["classify", "Generated", "generate", "analyse", "write_clips", "evaluate", "detect"]

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sance_audio import audio, evaluation
from sance_audio.detection import EnergyDetector
from sance_audio.model import AudioEBM
from sance_audio.weights import load_weights, save_weights
from sance_audio.workflow import Material, Options, Results


def classify(
    material: Material, options: Options, labels: tuple[str, ...]
) -> evaluation.Classifier:
    """The evaluating classifier: trained on the training clips once, kept in the run."""
    path = options.run / "classifier.safetensors"
    if path.exists():
        settings, tensors = load_weights(path, "classifier")
        classifier = evaluation.Classifier(**settings["classifier"])
        classifier.load_state_dict(tensors)
        return classifier.eval()
    classifier = evaluation.train_classifier(
        material.x["train"],
        material.y["train"],
        len(labels),
        epochs=options.classifier_epochs,
        seed=options.seed,
    )
    save_weights(path, "classifier", {"classifier": classifier.settings}, classifier.state_dict())
    return classifier


@dataclass
class Generated:
    """Clips made by a model."""

    waves: Tensor
    """`(n, window)`."""
    classes: list[int]
    x: Tensor
    """`(n, 1, M, T)`: the log-mels of the waveforms."""


def generate(model: AudioEBM, n: int, seed: int, *, reference_only: bool = False) -> Generated:
    """n clips in balanced classes, and their sounds analysed again."""
    generator = torch.Generator().manual_seed(seed)
    waves = model.generate(n, generator, reference_only=reference_only)
    return Generated(waves, model.classes(n), analyse(model, waves))


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
    model: AudioEBM, classifier: evaluation.Classifier, material: Material, options: Options
) -> Results:
    """The table: real test clips, the same through inversion, the reference alone, the model; and
    what it shows.

    Writes the model's first `options.clips` clips, and examples of the other rows, into the run
    folder.
    """
    labels, n = model.labels, options.evaluate
    began = time.perf_counter()
    ours = generate(model, max(n, options.clips), options.seed)
    seconds = time.perf_counter() - began
    alone = generate(model, n, options.seed, reference_only=True)
    test_y = material.y["test"]
    order = torch.randperm(
        len(test_y), generator=torch.Generator().manual_seed(0)
    )  # any first rows are a fair draw
    x_test, test_y = material.x["test"][order], test_y[order]
    again = model.invert(x_test.to(model.device))

    real, _ = classifier.describe(material.x["train"])
    n_equal = min(n, len(test_y))
    described, table = {}, {}
    for name, x, meant in (
        ("real test clips", x_test, test_y),
        ("real through inversion", analyse(model, again), test_y),
        ("reference only", alone.x, torch.tensor(alone.classes)),
        ("ours", ours.x[:n], torch.tensor(ours.classes[:n])),
    ):
        phi, p = classifier.describe(x.cpu())
        described[name] = phi, p.argmax(1) == meant.numpy()
        table[name] = evaluation.row(phi, p, meant.numpy(), real, labels, n_equal)

    (phi, right), (phi_0, right_0) = described["ours"], described["reference only"]
    fid = evaluation.paired_interval(
        lambda i: (
            evaluation.frechet_distance(phi[i], real) - evaluation.frechet_distance(phi_0[i], real)
        ),
        n,
        seed=options.seed,
    )
    accuracy = evaluation.paired_interval(
        lambda i: float(right[i].mean() - right_0[i].mean()), n, seed=options.seed
    )

    folder = options.run / "clips"
    for old in folder.glob("[0-9][0-9][0-9][0-9]*.wav"):
        old.unlink()
    written = ours.waves[: options.clips]
    names = write_clips(model, written, ours.classes[: options.clips], folder)
    energies = model.energy_of(ours.x[: options.clips])
    examples = [
        {
            "file": f"clips/{name}",
            "kind": "generated",
            "label": labels[y],
            "seed": options.seed,
            "index": i,
        }
        | {"energy": float(e)}
        for i, (name, y, e) in enumerate(zip(names, ours.classes, energies, strict=False))
    ]
    for y, label in enumerate(labels):
        row = int((test_y == y).nonzero()[0]) if (test_y == y).any() else None
        if row is None:
            continue
        for kind, wave in (
            ("real", material.waves["test"][int(order[row])]),
            ("resynthesised", again[row]),
        ):
            file = f"samples/{kind}_{audio.file_label(label)}.wav"
            audio.write(options.run / file, wave.cpu(), model.sample_rate)
            energy = float(model.energy_of(analyse(model, [wave]))[0])
            examples.append({"file": file, "kind": kind, "label": label, "energy": energy})
    peaks = written.abs().amax(1)
    memory = evaluation.neighbour_ratio(ours.x[:n].cpu(), material.x["train"], x_test)
    return {
        "table": table,
        "n_equal": n_equal,
        "fid_difference": fid,
        "accuracy_difference": accuracy,
        "nearest_training_neighbour": memory,
        "generation": {
            "clips_scaled_down": int((peaks > audio.PEAK).sum()),
            "quietest_rms_dbfs": float(
                20 * written.square().mean(1).sqrt().min().clamp_min(1e-9).log10()
            ),
            "real_time_factor": seconds / (len(ours.waves) * model.window / model.sample_rate),
        },
        "examples": examples,
    }


def detect(
    model: AudioEBM,
    material: Material,
    options: Options,
    odd: Sequence[tuple[str, Tensor]] = (),
    show: int = 6,
) -> Results:
    """Fit the detector on the validation clips, score the test clips and the odd ones, compare
    with baselines.

    Arguments:
        odd: Sounds of no class, as (name, waveform at the model's rate); none leaves out the AUCs.
        show: Oddest and most ordinary clips written for the page.
    """
    empty: Results = {"oddest": [], "most_ordinary": [], "auc": {}, "note": ""}
    try:
        detector = EnergyDetector(model, seed=options.seed).fit(material.waves["valid"])
        alone = EnergyDetector(model, seed=options.seed, learnt=False).fit(material.waves["valid"])
    except ValueError as error:
        print(f"no detector: {error}", file=sys.stderr)
        return empty | {"note": str(error)}
    detector.save_pretrained(options.run)
    names = [f"{clip.label} ({clip.name})" for clip in material.clips["test"]] + [
        name for name, _ in odd
    ]
    waves = [*material.waves["test"], *(wave for _, wave in odd)]
    marks = detector.assess(waves)
    is_odd = np.arange(len(waves)) >= len(material.waves["test"])

    def card(i: int, kind: str, rank: int) -> Results:
        file = f"samples/{kind}_{rank}.wav"
        audio.write(options.run / file, waves[i], model.sample_rate)
        return {"file": file, "label": names[i], "odd": bool(is_odd[i])} | {
            key: float(value[i]) for key, value in marks.items()
        }

    order = np.argsort(-marks["anomaly_score"], kind="stable")
    auc = {}
    if is_odd.any():
        normal = material.x["valid"]
        baselines = {
            "ours": marks["anomaly_score"],
            "reference only": alone.anomaly_score(waves),
            "log-mel statistics + kNN": evaluation.knn_scores(normal, analyse(model, waves)),
        }
        auc = {name: _auc(is_odd, score) for name, score in baselines.items()}
    false_alarms = float((marks["p_value"][~is_odd] <= detector.alpha).mean())
    return empty | {
        "oddest": [card(int(i), "oddest", k) for k, i in enumerate(order[:show])],
        "most_ordinary": [card(int(i), "ordinary", k) for k, i in enumerate(order[::-1][:show])],
        "auc": auc,
        "false_alarms_at_0.05": false_alarms,
    }


def _auc(is_odd: np.ndarray, score: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    return {
        "auc": float(roc_auc_score(is_odd, score)),
        "pauc": float(roc_auc_score(is_odd, score, max_fpr=0.1)),
    }
