"""Notes of musical instruments (NSynth): train, generate, score, listen.

    python recipes/nsynth/train.py --data DIR --run runs/nsynth

DIR holds nsynth-train/, nsynth-valid/ and nsynth-test/; without --data they are downloaded once
into data/ (some 39 GB unpacked). Acoustic instruments are learnt, by family, unless --source and
--labels say otherwise. Notes played backwards stand in for anomalies.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sance_audio import LogMel, TrainConfig
from sance_audio.anomalies import backwards, detect
from sance_audio.assessment import classify, evaluate, examples
from sance_audio.datasets import Corpus, nsynth
from sance_audio.options import SMOKE, LargeOptions
from sance_audio.preparation import build, prepare
from sance_audio.recipe import conclude, launch
from sance_audio.workflow import connect, fit, start


@dataclass(frozen=True)
class NoteOptions(LargeOptions):
    """Options of the recipe of musical notes."""

    run: Path = Path("runs/nsynth")
    """Run folder. The same command again resumes."""
    labels: Literal["family", "pitch", "none"] = "family"
    """family: of the instrument. pitch: as MIDI counts, 060 is middle C. none: no labels."""
    source: Literal["acoustic", "electronic", "synthetic", "all"] = "acoustic"
    """How the instruments sound."""


PRESETS = {
    "smoke": NoteOptions(**SMOKE, most=100),
    "cpu": NoteOptions(
        preset="cpu",
        most=1000,
        train=TrainConfig(steps=4000, langevin_steps=10),
        generation_steps=300,
        classifier_epochs=4,
        evaluate=1000,
        clips=30,
    ),
    "gpu": NoteOptions(
        preset="gpu",
        frames=256,
        components=4,
        network="gpu",
        train=TrainConfig(steps=20000, per_component=2),
        classifier_epochs=4,
        evaluate=2000,
        clips=50,
    ),
}
"""Of a window of 64 frames, a second, the model learns how a note begins; 256 hold all of it."""


def corpus(options: NoteOptions) -> Corpus:
    sources = nsynth.SOURCES if options.source == "all" else (options.source,)
    every = nsynth.prepare(options.data, labels=options.labels, sources=sources)
    return every.some(options.most)


def main(options: NoteOptions) -> None:
    device = connect(options)
    notes = corpus(options)
    start(options, "nsynth", device)
    rate = nsynth.SAMPLE_RATE
    features = LogMel(rate, n_fft=1024, hop_length=256, n_mels=64, f_min=20.0, floor=5e-5)
    material = prepare(notes, features, options)
    model, components = build(material, notes, features, options)
    model.to(device)

    results = fit(model, material, components, options)
    results["evaluation"], ours = evaluate(
        model, classify(model, material, options), material, options
    )
    results["examples"] = examples(model, material, options, ours)
    odd = backwards(model, material, model.window / rate)
    results["anomalies"] = detect(model, material, options, odd)
    conclude("nsynth", results, options)


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
