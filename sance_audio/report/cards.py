"""What stands on a page for each clip: its address, its picture, how loud it is played."""

from __future__ import annotations

__all__ = ["Deck"]

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sance_audio import audio, pictures
from sance_audio.model import AudioEBM
from sance_audio.report.loudness import gains, loudness

COLUMNS = 512
"""Frames of a picture, at most: longer clips show the loudest of several frames."""

Facts = dict[str, Any]


class Deck:
    """The clips of a page, all played equally loud.

    Arguments:
        run: Run folder.
        files: What the page may play, relative to it; each is read once.
        model: Draws the pictures; None where there is none yet.
    """

    def __init__(self, run: Path, files: Iterable[str], model: AudioEBM | None):
        self.model, self.gone = model, list[str]()
        rate = None if model is None else model.sample_rate
        self.sounds: dict[str, tuple[Tensor, int]] = {}
        for file in dict.fromkeys(files):
            try:
                self.sounds[file] = audio.read(run / file, rate)
            except audio.AudioError:
                self.gone.append(file)
        levels = [loudness(wave, rate) for wave, rate in self.sounds.values()]
        self.gains = dict(zip(self.sounds, gains(levels), strict=True))

    def deal(self, clips: Sequence[Facts], **more: Any) -> list[Facts]:
        """Cards of clips (each with a "file", and a "picture" for want of a model that
        draws one); a clip whose file is gone is left out.
        """
        return [self.card(clip) | more for clip in clips if clip["file"] in self.sounds]

    def card(self, clip: Facts) -> Facts:
        """One clip with `gain`, `picture`, and the `span` of the picture in seconds."""
        wave, rate = self.sounds[clip["file"]]
        about = {"gain": self.gains[clip["file"]], "span": len(wave) / rate}
        if self.model is None:
            return {"picture": ""} | clip | about
        x, f = self._log_mel(wave), self.model.features
        floor = float((math.log(f.floor) - f.mean) / f.std)
        about["span"] = max(about["span"], self.model.window / rate)
        return (
            clip | about | {"picture": pictures.data_uri(pictures.spectrogram(x, floor, scale=1))}
        )

    def _log_mel(self, wave: Tensor) -> Tensor:
        """The log-mel `(M, T)` of a whole clip, at the model's peak; a short one in its window."""
        assert self.model is not None
        if self.model.peak is not None:
            wave = wave * audio.gain(wave.abs().amax(), self.model.peak)
        short = self.model.window - len(wave)
        x = self.model.features(torch.nn.functional.pad(wave, (0, max(0, short)))[None])[0]
        several = -(-x.shape[-1] // COLUMNS)
        return torch.nn.functional.max_pool1d(x, several, ceil_mode=True)[0]
