"""A folder of your own recordings: train, generate, score, listen.

    python recipes/folder/train.py --data DIR --run runs/mine

DIR holds audio files, anywhere below it, of any rate and length; its first level of folders gives
labels where there is more than one. Rate, window, network and steps are chosen from the files, and
the choices are told; whatever you name yourself stays as you say.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sance_audio import LogMel, TrainConfig
from sance_audio.anomalies import detect
from sance_audio.assessment import classify, evaluate, examples
from sance_audio.datasets import Corpus, folder
from sance_audio.options import SMOKE, Options
from sance_audio.preparation import Material, build, prepare
from sance_audio.processes import is_main
from sance_audio.recipe import conclude, launch
from sance_audio.workflow import connect, fit, start


@dataclass(frozen=True)
class FolderOptions(Options):
    """Options of the folder recipe."""

    run: Path = Path("runs/folder")
    """Run folder. The same command again resumes."""
    preset: Literal["auto", "smoke", "cpu", "gpu"] = "auto"  # type: ignore[assignment]
    """auto: chosen from the files and the machine. smoke: a minute, to see that all works."""
    sample_rate: int | None = None
    """In Hz; chosen from the files when left out."""
    window: float | None = None
    """Seconds that the model sees at once; chosen from the files when left out."""
    n_mels: int = 64
    """Mel bands; fewer where the sample rate has no room for them."""
    windows: int = 64
    """Windows of one recording that are trained on, at most, spread over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rate, window = self.sample_rate, self.window
        for name, value, good, wanted in (
            ("sample-rate", rate, rate is None or 500 <= rate <= 192000, "500 to 192000 Hz"),
            ("window", window, window is None or 0.02 <= window <= 60, "0.02 to 60 seconds"),
            ("n-mels", self.n_mels, 16 <= self.n_mels <= 512, "16 to 512 bands"),
            ("windows", self.windows, self.windows >= 1, "1 or more"),
        ):
            if not good:
                raise ValueError(f"--{name} {value}: expected {wanted}")


AUTO = FolderOptions(train=TrainConfig(langevin_steps=10))
PRESETS = {
    "auto": AUTO,
    "smoke": FolderOptions(**SMOKE),
    "cpu": FolderOptions(preset="cpu", train=TrainConfig(langevin_steps=10)),
    "gpu": FolderOptions(
        preset="gpu", network="gpu", train=TrainConfig(steps=8000, per_component=4), evaluate=1000
    ),
}


@dataclass
class Choices:
    """Settings decided from the data, and why."""

    options: FolderOptions
    reasons: list[str] = field(default_factory=list)

    def take(self, reason: str, values: dict[str, int | str], train: bool = False) -> None:
        """Set options (or those of training) that stand at the preset's default; tell the reason,
        and what the user said otherwise.
        """
        now: Any = self.options.train if train else self.options
        default = AUTO.train if train else AUTO
        free: dict[str, Any] = {
            k: v
            for k, v in values.items()
            if getattr(now, k) == getattr(default, k)
            and f"{'train.' * train}{k}" not in self.options.named
        }
        if train:
            self.options = replace(self.options, train=replace(self.options.train, **free))
        else:
            self.options = replace(self.options, **free)
        now = self.options.train if train else self.options
        kept = [f"but {k} {getattr(now, k)}, as you asked" for k in values if k not in free]
        self.reasons.append("; ".join([reason, *kept]))


def choose_features(choices: Choices, survey: folder.Survey) -> LogMel:
    """Rate: what nine files in ten have, up to 16 kHz. Window: a short clip, or a second."""
    options = choices.options
    common = int(np.quantile(survey.rates, 0.1, method="lower"))
    rate = options.sample_rate or min(common, 16000)
    choices.reasons.append(
        f"{rate} Hz: "
        + (
            "as you asked"
            if options.sample_rate
            else f"nine files in ten have {common} Hz or more; 16000 Hz is the most taken"
        )
    )
    longest = float(np.quantile(survey.seconds, 0.95))
    window = options.window or (max(longest, 0.1) if longest <= 2 else 1.0)
    hop = 2 ** round(np.log2(rate * (0.008 if window <= 0.6 else 0.016)))
    frames = 16 * -(-(int(np.ceil(window * rate / hop)) + 1) // 16)
    frames = min(128, frames) if options.window is None else frames
    if options.window is not None:
        why = "as you asked, rounded up to sixteen frames"
    elif longest > 2:
        why = f"19 files in 20 are up to {longest:.1f} s: they are cut into windows"
    elif hop * (frames - 1) / rate < longest:
        why = f"19 files in 20 are up to {longest:.2f} s, but 128 frames are the most taken"
    else:
        why = f"19 files in 20 are up to {longest:.2f} s and fit"
    choices.take(
        f"window of {hop * (frames - 1) / rate:.2f} s, {frames} frames of "
        f"{1000 * hop / rate:.0f} ms: {why}",
        {"frames": frames},
    )
    for n_mels in (options.n_mels, 48, 32, 24, 16):
        try:
            if n_mels <= options.n_mels:
                return LogMel(rate, 4 * hop, hop, n_mels, f_min=min(20.0, rate / 100), floor=5e-5)
        except ValueError:  # bands without a frequency bin
            continue
    raise ValueError(f"--sample-rate {rate}: no mel bands fit at {rate} Hz with a hop of {hop}")


def choose_model(choices: Choices, material: Material, classes: int, gpu: bool) -> None:
    """Components, batch, network and steps, from the number of windows."""
    rows = len(material.y["train"])
    most = 4 if classes > 1 else 12
    components = min(most, max(1, rows // classes // 60))
    batch = components * classes
    per = max(1, min(rows, 128 if gpu else 32) // batch)
    steps = min(8000 if gpu else 3000, max(300, 20 * rows // (per * batch)))
    network = "smoke" if rows < 200 else "gpu" if gpu else "cpu"
    choices.take(
        f"{components} Gaussian components a class: one for every sixty of its windows, at most "
        f"{most}",
        {"components": components},
    )
    choices.take(
        f"network {network}: {rows} windows to train on, {'a' if gpu else 'no'} GPU",
        {"network": network},
    )
    choices.take(
        f"{steps} steps of {per * batch} windows: twenty passes, within limits",
        {"steps": steps, "per_component": per, "sample_every": steps // 4},
        train=True,
    )
    if rows < 200:
        choices.reasons.append(
            f"TOO FEW: {rows} windows of {len(material.clips['train'])} recordings to train on; "
            f"the run goes on, but expect clips that resemble them all, and figures that are "
            f"mostly chance. A few hundred windows are a start"
        )


def corpus(options: FolderOptions) -> Corpus:
    return folder.prepare(options.data, windows=options.windows, seed=0)[0]


def main(options: FolderOptions) -> None:
    device = connect(options)
    sounds, survey = folder.prepare(options.data, windows=options.windows, seed=0)
    start(options, "folder", device)
    choices = Choices(options)
    if survey.cut_in_time:
        choices.reasons.append(
            "splits in time: too few files to hold some out, so the model is judged on later "
            "parts of recordings it was trained on; another recording will look odder than these "
            "figures say"
        )
    features = choose_features(choices, survey)
    material = prepare(sounds, features, choices.options)
    if options.preset == "auto":
        classes = max(1, len(sounds.labels))
        choose_model(choices, material, classes, gpu=device.type == "cuda")
    for reason in choices.reasons:
        if is_main():
            print(f"chosen: {reason}")
    options = choices.options
    model, components = build(material, sounds, features, options)
    model.to(device)

    results = fit(model, material, components, options)
    results["choices"] = choices.reasons
    results["evaluation"], ours = evaluate(
        model, classify(model, material, options), material, options
    )
    results["examples"] = examples(model, material, options, ours)
    results["anomalies"] = detect(model, material, options)
    conclude("folder", results, options)


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
