"""Spoken words (Speech Commands): train, generate, score, listen.

    python recipes/speech_commands/train.py --data DIR --run runs/sc09

DIR holds a folder of each word and the two lists; without --data the corpus is downloaded once
into data/ (2.3 GB). The ten digits, SC09, are learnt unless --words all is given. Words played
backwards, which have the same spectra, levels and lengths, stand in for anomalies.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sance_audio import LogMel, TrainConfig
from sance_audio.anomalies import backwards, detect
from sance_audio.assessment import classify, evaluate, examples
from sance_audio.datasets import Corpus, speech_commands
from sance_audio.options import SMOKE, LargeOptions
from sance_audio.preparation import build, prepare
from sance_audio.recipe import conclude, launch
from sance_audio.workflow import connect, fit, start


@dataclass(frozen=True)
class WordOptions(LargeOptions):
    """Options of the spoken words recipe."""

    run: Path = Path("runs/speech_commands")
    """Run folder. The same command again resumes."""
    words: Literal["digits", "all"] = "digits"
    """digits: the ten of SC09. all: every word, 35 in version 0.02."""


PRESETS = {
    "smoke": WordOptions(**SMOKE, most=100),
    "cpu": WordOptions(
        preset="cpu",
        most=1000,
        components=4,
        train=TrainConfig(steps=4000, langevin_steps=10),
        generation_steps=300,
        classifier_epochs=4,
        evaluate=1000,
        clips=30,
    ),
    "gpu": WordOptions(
        preset="gpu",
        components=4,
        network="gpu",
        train=TrainConfig(steps=20000, per_component=4),
        classifier_epochs=6,
        evaluate=2000,
        clips=50,
    ),
}


def corpus(options: WordOptions) -> Corpus:
    digits = options.words == "digits"
    every = speech_commands.prepare(options.data, words=speech_commands.DIGITS if digits else None)
    return every.some(options.most)


def main(options: WordOptions) -> None:
    device = connect(options)
    words = corpus(options)
    start(options, "speech_commands", device)
    rate = speech_commands.SAMPLE_RATE
    features = LogMel(rate, n_fft=1024, hop_length=256, n_mels=64, f_min=20.0, floor=5e-5)
    material = prepare(words, features, options)
    model, components = build(material, words, features, options)
    model.to(device)

    results = fit(model, material, components, options)
    results["evaluation"], ours = evaluate(
        model, classify(model, material, options), material, options
    )
    results["examples"] = examples(model, material, options, ours)
    results["anomalies"] = detect(model, material, options, backwards(model, material))
    conclude("speech_commands", results, options)


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
