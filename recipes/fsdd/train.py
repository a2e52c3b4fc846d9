"""Spoken digits (Free Spoken Digit Dataset): train, generate, score, listen.

    python recipes/fsdd/train.py --data DIR --run runs/fsdd --preset cpu

DIR holds `recordings/`; without --data the corpus is downloaded once into data/. Digits played
backwards, which have the same spectra, levels and lengths, stand in for anomalies. The classes
are the digits, or the speakers (--by speaker).
"""

from dataclasses import dataclass
from pathlib import Path

from sance_audio import LogMel, TrainConfig
from sance_audio.anomalies import backwards, detect
from sance_audio.assessment import classify, evaluate, examples
from sance_audio.datasets import Corpus, fsdd
from sance_audio.options import SMOKE, Options
from sance_audio.preparation import build, prepare
from sance_audio.recipe import conclude, launch
from sance_audio.workflow import connect, fit, start


@dataclass(frozen=True)
class DigitOptions(Options):
    """Options of the spoken digits recipe."""

    run: Path = Path("runs/fsdd")
    """Run folder. The same command again resumes."""
    by: fsdd.By = "digit"
    """Classes: what is said, or who says it. Speakers take more --components each, such as 8."""


PRESETS = {
    "smoke": DigitOptions(**SMOKE),
    "cpu": DigitOptions(
        preset="cpu",
        components=4,
        train=TrainConfig(steps=4400, langevin_steps=10),
        generation_steps=300,
        classifier_epochs=10,
        evaluate=1000,
        clips=30,
    ),
    "gpu": DigitOptions(
        preset="gpu",
        components=4,
        network="gpu",
        train=TrainConfig(steps=4000, langevin_steps=10, per_component=2),
        generation_steps=300,
        truncation=0.1,
        classifier_epochs=10,
        evaluate=1000,
        clips=30,
    ),
}


def corpus(options: DigitOptions) -> Corpus:
    return fsdd.prepare(options.data, by=options.by)


def main(options: DigitOptions) -> None:
    device = connect(options)
    digits = corpus(options)
    start(options, "fsdd", device)
    features = LogMel(
        fsdd.SAMPLE_RATE, n_fft=512, hop_length=128, n_mels=64, f_min=20.0, floor=5e-5
    )
    material = prepare(digits, features, options)
    model, components = build(material, digits, features, options)
    model.to(device)

    results = fit(model, material, components, options)
    results["evaluation"], ours = evaluate(
        model, classify(model, material, options), material, options
    )
    results["examples"] = examples(model, material, options, ours)
    results["anomalies"] = detect(model, material, options, backwards(model, material))
    conclude("fsdd", results, options)


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
