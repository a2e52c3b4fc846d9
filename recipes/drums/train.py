"""Drums, synthesised from code: train, generate, score, listen.

    python recipes/drums/train.py --run runs/drums --preset cpu

Six kinds of drum are learnt; four further kinds of sound, never trained on, show what the detector
finds odd.
"""

from dataclasses import dataclass
from pathlib import Path

from sance_audio import LogMel, TrainConfig
from sance_audio.anomalies import detect
from sance_audio.assessment import classify, evaluate, examples
from sance_audio.datasets import Corpus, drums
from sance_audio.options import SMOKE, Options
from sance_audio.preparation import build, prepare
from sance_audio.recipe import conclude, launch
from sance_audio.workflow import connect, fit, start


@dataclass(frozen=True)
class DrumOptions(Options):
    """Options of the drums recipe."""

    run: Path = Path("runs/drums")
    """Run folder. The same command again resumes."""
    data: Path | None = None
    """Not used: the corpus is made from code."""
    size: int = 1200
    """Training clips; validation and test have two fifths of it each, the unseen kinds a fifth."""


PRESETS = {
    "smoke": DrumOptions(
        **SMOKE
        | {
            "train": TrainConfig(steps=10, langevin_steps=5, sample_every=10, checkpoint_every=5),
            "generation_steps": 10,
            "annealing": 5,
            "classifier_epochs": 2,
            "evaluate": 24,
            "clips": 16,
        },
        size=240,
    ),
    "cpu": DrumOptions(
        preset="cpu",
        components=2,
        rank=24,
        train=TrainConfig(steps=400, per_component=2, sample_every=100, checkpoint_every=100),
        generation_steps=100,
        truncation=0.1,
        label_epochs=6,
        annealing=40,
        classifier_epochs=6,
    ),
    "gpu": DrumOptions(
        preset="gpu",
        size=6000,
        network="gpu",
        train=TrainConfig(steps=4000, per_component=8),
        classifier_epochs=12,
        evaluate=1000,
    ),
}


def corpus(options: DrumOptions) -> Corpus:
    size = options.size
    return drums.prepare(size, 2 * size // 5, 2 * size // 5, size // 5, seed=options.seed)


def main(options: DrumOptions) -> None:
    device = connect(options)
    sounds = corpus(options)
    start(options, "drums", device)
    features = LogMel(
        drums.SAMPLE_RATE, n_fft=512, hop_length=128, n_mels=64, f_min=20.0, floor=5e-5
    )
    material = prepare(sounds, features, options)
    model, components = build(material, sounds, features, options)
    model.to(device)

    results = fit(model, material, components, options)
    results["evaluation"], ours = evaluate(
        model, classify(model, material, options), material, options
    )
    results["examples"] = examples(model, material, options, ours)
    odd = [(f"{c.label} ({c.name})", c.source.load().waveform) for c in sounds.split("odd")]
    results["anomalies"] = detect(model, material, options, odd)
    conclude("drums", results, options)


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
