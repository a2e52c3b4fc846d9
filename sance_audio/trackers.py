"""What a run shows while it trains: clips and pictures from fixed starts, and TensorBoard.

Both are callbacks of `training.train`, called with (step, row of metrics, averaged model).
"""

from __future__ import annotations

__all__ = ["Samples", "TensorBoard"]

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sance_audio import audio, pictures
from sance_audio.files import atomic
from sance_audio.model import AudioEBM
from sance_audio.options import Options
from sance_audio.samplers import clip_seeds


class TensorBoard:
    """Writes scalars to `RUN/tensorboard` at every step; pictures and clips when it is told to.

    A resumed run goes on in the same curves: what an interrupted one wrote beyond its last
    checkpoint is hidden.

    Arguments:
        run: Run folder.

    Raises:
        ValueError: the extra is not installed.
    """

    def __init__(self, run: Path):
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"--log-with tensorboard needs the extra: pip install 'sance-audio[tensorboard]' "
                f"({error})"
            ) from error
        self._open = lambda step: SummaryWriter(str(run / "tensorboard"), purge_step=step)
        self.writer: Any = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def __call__(self, step: int, row: dict[str, Any], model: AudioEBM) -> None:
        if self.writer is None:
            self.writer = self._open(step)
        for name, value in row.items():
            if isinstance(value, str):
                self.writer.add_text(f"train/{name}", str(value), step)
            elif name != "step" and value is not None:
                self.writer.add_scalar(f"train/{name}", value, step)

    def clips(self, step: int, sheet: bytes, waves: list[tuple[str, Tensor]], rate: int) -> None:
        """A sheet of spectrograms (PNG) and named clips `(N,)` at `rate` Hz."""
        import io

        import numpy as np
        from matplotlib.image import imread

        picture = imread(io.BytesIO(sheet), format="png")[..., :3]
        self.writer.add_image("samples", np.ascontiguousarray(picture), step, dataformats="HWC")
        for name, wave in waves:
            self.writer.add_audio(f"samples/{name}", wave.cpu().clamp(-1, 1), step, rate)
        self.writer.flush()


class Samples:
    """Every `train.sample_every` steps, and at the end: clips and a picture from the same starts.

    Arguments:
        model: The model trained.
        options: Run folder, seed, interval.
        tracker: Shown the same, where there is one; called before this at each step.
        count: Clips.
    """

    def __init__(
        self,
        model: AudioEBM,
        options: Options,
        tracker: TensorBoard | None = None,
        count: int = 6,
    ):
        self.seeds = clip_seeds(torch.Generator().manual_seed(options.seed), count)
        self.classes = model.classes(count)
        self.folder, self.train, self.tracker = options.run / "samples", options.train, tracker

    def __call__(self, step: int, row: dict[str, Any], model: AudioEBM) -> None:
        if step % self.train.sample_every and step != self.train.steps:
            return
        x, _ = model.draw(self.classes, self.seeds)
        sheet = pictures.sheet(x)
        with atomic(self.folder / f"step_{step:06d}.png") as temporary:
            temporary.write_bytes(sheet)
        named = []
        for i, (y, wave) in enumerate(zip(self.classes, model.invert(x, self.seeds), strict=True)):
            label = audio.file_label(model.labels[y]) if model.labels else ""
            named.append((f"{i}{label and '_' + label}", wave))
            path = self.folder / f"step_{step:06d}_{named[-1][0]}.wav"
            audio.write(path, wave, model.sample_rate)
        if self.tracker is not None:
            self.tracker.clips(step, sheet, named, model.sample_rate)
