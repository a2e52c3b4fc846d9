"""A run to play with in a browser: new clips by seed, steps, temperature and class; recordings
with their energy map and p-value.

Gradio draws the controls and the server is this machine's own: nothing leaves it.
"""

from __future__ import annotations

__all__ = ["Generated", "Judged", "Player", "app"]

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sance_audio import audio, pictures
from sance_audio.detection import EnergyDetector
from sance_audio.model import AudioEBM
from sance_audio.weights import WeightsError

ANY = "in turn by seed"
"""What stands for no class in particular."""
STEPS = 400
"""Langevin steps that the slider goes to, at least."""
Array = np.ndarray
Heard = tuple[int, Array]
"""Rate in Hz and samples: `(N,)` or `(N, channels)`, as Gradio has sounds."""


class Generated(NamedTuple):
    """A new clip."""

    sound: Heard
    picture: Array
    """Its log-mel, `(H, W, 3)`."""
    words: str


class Judged(NamedTuple):
    """What was found of a recording."""

    picture: Array
    """Its log-mel, and below the energies of its cells; `(H, W, 3)`."""
    words: str


class Player:
    """What the controls do.

    Arguments:
        run: Run folder, with a model, a detector or both.

    Raises:
        WeightsError: neither is there, or one is damaged.
    """

    def __init__(self, run: str | Path):
        self.detector: EnergyDetector | None = None
        self.model: AudioEBM | None = None
        try:
            self.detector = EnergyDetector.from_pretrained(run)
            self.model = self.detector.model_
        except WeightsError:
            if (Path(run) / "detector.safetensors").exists():
                raise
        if self.detector is None:
            self.model = AudioEBM.from_pretrained(run)

    @property
    def classes(self) -> list[str]:
        return [ANY, *(self.model.labels if self.model is not None else ())]

    def generate(self, seed: float, steps: float, temperature: float, label: str) -> Generated:
        """A clip of a seed. `label` is one of `classes`.

        Raises:
            ValueError: a run without a model; impossible steps or temperature.
        """
        if self.model is None:
            raise ValueError("this run has a detector and no model: nothing can be generated")
        names = self.model.labels
        classes = self.model.reference.n_classes
        y = names.index(label) if label in names else int(seed) % classes
        how: Any = {"steps": int(steps), "temperature": float(temperature)}
        x, _ = self.model.draw([y], [int(seed)], **how)
        (wave,) = self.model.invert(x, [int(seed)])
        energy = float(self.model.energy_of(x)[0])
        of = f"{names[y]}, " if names else ""
        words = f"{of}seed {int(seed)}: energy {energy:.1f} nats (low is likely)"
        return Generated(_heard(wave, self.model.sample_rate), _image(x[0, 0]), words)

    def judge(self, sound: Heard | None) -> Judged:
        """A recording's energy map and p-value.

        Raises:
            ValueError: no recording, or one that is silent.
        """
        wave, rate = _mono(sound)
        lines, rows = [], []
        if self.model is not None:
            whole = audio.resample(wave, rate, self.model.sample_rate)
            window = self.model.windows(whole)[0]
            energy = float(self.model.energy(wave, rate)[0])
            lines.append(f"energy {energy:.1f} nats (low is likely), the mean over its windows")
            if self.model.labels:
                (log_p,) = self.model.classify(self.model.log_mels(window[None]))
                name = self.model.labels[int(log_p.argmax())]
                lines.append(f"likeliest class of the first window: {name}")
            map_ = self.model.energy_map(window, self.model.sample_rate)[0]
            rows += [self.model.log_mels(window[None])[0, 0], _levelled(map_)]
        if self.detector is not None:
            lines += self._verdict(wave, rate)
            if self.model is None:
                found = self.detector.score_map((wave.numpy(), rate))
                rows.append(_levelled(torch.from_numpy(np.ascontiguousarray(found.score))))
        picture = np.concatenate([_image(row) for row in rows])
        return Judged(picture, "\n".join(f"- {line}" for line in lines))

    def _verdict(self, wave: Tensor, rate: int) -> list[str]:
        assert self.detector is not None
        clip = (wave.numpy(), rate)
        marks = self.detector.assess([clip])
        score, p = float(marks["anomaly_score"][0]), float(marks["p_value"][0])
        odd = self.detector.predict([clip])[0] < 0
        verdict = "odd" if odd else "normal"
        told = f"p-value {p:.3f}" if np.isfinite(p) else "no p-values: nothing calibrates"
        return [
            f"{told}: {verdict} at false-alarm rate {self.detector.alpha:g}",
            f"score {score:.2f}",
        ]


def _mono(sound: Heard | None) -> tuple[Tensor, int]:
    if sound is None or np.size(sound[1]) == 0:
        raise ValueError("record or upload a sound first")
    rate, samples = sound
    x = np.asarray(samples)
    full = float(np.iinfo(x.dtype).max) if x.dtype.kind == "i" else 1.0
    x = (x.astype(np.float32) / full).reshape(len(x), -1).mean(1)
    if not np.isfinite(x).all() or np.abs(x).max() == 0:
        raise ValueError("the recording is silent: is the microphone muted?")
    return torch.from_numpy(x), int(rate)


def _heard(wave: Tensor, rate: int) -> Heard:
    return rate, (wave.clamp(-1, 1) * 32767).to(torch.int16).numpy()


def _levelled(x: Tensor) -> Tensor:
    """Standardised, so that its structure is seen."""
    return (x - x.mean()) / x.std().clamp_min(1e-6)


def _image(x: Tensor) -> Array:
    from matplotlib.image import imread

    picture = imread(io.BytesIO(pictures.spectrogram(x.float().cpu(), scale=5)), format="png")
    return (255 * picture[..., :3]).astype(np.uint8)


def app(run: str | Path) -> Any:
    """The page, as Gradio's `Blocks`; `launch` serves it.

    Raises:
        ValueError: Gradio is not installed.
        WeightsError: as `Player`.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ValueError("the demo needs gradio: pip install 'sance-audio[demo]'") from error
    player = Player(run)

    def told(function: Any) -> Any:
        """A user's mistake as Gradio's own message."""

        def inner(*values: Any) -> Any:
            try:
                return tuple(function(*values))
            except ValueError as error:
                raise gradio.Error(str(error)) from error

        return inner

    with gradio.Blocks(title=f"sance_audio: {run}") as page:
        gradio.Markdown(f"# {Path(run).name}\nAn energy-based model of sound, by sance_audio.")
        if player.model is not None:
            _generating(gradio, player, told)
        _judging(gradio, player, told)
    return page


def _generating(gradio: Any, player: Player, told: Any) -> None:
    assert player.model is not None
    own, warmth = player.model.steps, player.model.sampling_temperature
    with gradio.Tab("Generate"):
        with gradio.Row():
            seed = gradio.Number(0, label="Seed", precision=0)
            steps = gradio.Slider(0, max(STEPS, 2 * own), own, step=1, label="Langevin steps")
            temperature = gradio.Slider(0.1, 2.0, warmth, step=0.05, label="Temperature")
            label = gradio.Dropdown(player.classes, value=ANY, label="Class")
        button = gradio.Button("Generate", variant="primary")
        outputs = [
            gradio.Audio(label="Clip"),
            gradio.Image(label="Log-mel"),
            gradio.Markdown(),
        ]
        inputs = [seed, steps, temperature, label]
        button.click(told(player.generate), inputs, outputs, api_name="generate")


def _judging(gradio: Any, player: Player, told: Any) -> None:
    with gradio.Tab("Judge"):
        sound = gradio.Audio(sources=["microphone", "upload"], label="Recording")
        button = gradio.Button("Judge", variant="primary")
        picture = (
            "Log-mel, and where the network's energy is" if player.model else "Where it is odd"
        )
        outputs = [gradio.Image(label=picture), gradio.Markdown()]
        button.click(told(player.judge), [sound], outputs, api_name="judge")
