"""Holes of 150 ms in spoken digits: what fills them best?

    python -m benchmarks.restoration RUN DIR [--split validation|test] [--clips N]
    python -m benchmarks.restoration RUN DIR --picture FILE.png

RUN is a finished run of the digits recipe, DIR the Free Spoken Digit Dataset. Each clip has one
hole, at a place drawn from its number. Errors are RMS errors in dB of the log-mels of the frames
that see the hole, a clip at a time: of what a method expects, and of the sound it makes of it. All
methods are inverted alike. Differences are paired, with 95 % bootstrap intervals over clips.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sance_audio import AudioEBM, metrics, restoration
from sance_audio.audio import fit_length, gain
from sance_audio.datasets import fsdd
from sance_audio.holes import Hole, hidden_frames, splice, view

SECONDS = 0.150
Method = Callable[[AudioEBM, Tensor, Tensor, int], Tensor]


def linear(model: AudioEBM, x: Tensor, hidden: Tensor, seed: int) -> Tensor:
    """Band by band between the last known frame before the hole and the first one after it."""
    places = hidden.nonzero().flatten()
    first, last = int(places[0]) - 1, int(places[-1]) + 1
    before, after = x[..., max(first, 0)], x[..., min(last, len(hidden) - 1)]
    before, after = (after if first < 0 else before), (before if last == len(hidden) else after)
    part = (places - first) / (last - first)
    out = x.clone()
    out[..., hidden] = before.unsqueeze(-1) * (1 - part) + after.unsqueeze(-1) * part
    return out


def reference(model: AudioEBM, x: Tensor, hidden: Tensor, seed: int) -> Tensor:
    """The mean of the model with F = 0, over all components, given the known cells as they are."""
    weight, m = restoration.centres(model, x, hidden, spread=0.0, memory=0.0)
    return x.masked_scatter(hidden.expand(model.shape), weight @ m)


def centred(model: AudioEBM, x: Tensor, hidden: Tensor, seed: int) -> Tensor:
    return restoration.infer(model, x, hidden, reference_only=True)


def restored(model: AudioEBM, x: Tensor, hidden: Tensor, seed: int) -> Tensor:
    return restoration.infer(model, x, hidden, seed=seed)


METHODS: dict[str, Method] = {
    "linear interpolation in time": linear,
    "reference alone, exact mean": reference,
    "reference, spread and memory": centred,
    "restore": restored,
}


def hole_of(clip: Tensor, number: int) -> Hole:
    """150 ms somewhere within a clip `(N,)`, or about its centre where it is shorter."""
    length, n = round(SECONDS * fsdd.SAMPLE_RATE), len(clip)
    if n <= length:
        return Hole(0, n)
    first = int(np.random.default_rng(number).integers(0, n - length + 1))
    return Hole(first, first + length)


def errors(model: AudioEBM, clip: Tensor, number: int) -> dict[str, tuple[float, float]] | None:
    """RMS errors in dB of each method's log-mels, expected and heard; None where nothing is heard
    around the hole.
    """
    f, hole, rate = model.features, hole_of(clip, number), fsdd.SAMPLE_RATE
    around = torch.cat([clip[: hole.first], clip[hole.stop :]])
    if len(around) == 0 or float(around.abs().max()) == 0:
        return None
    place = view(hole, len(clip), rate, f.sample_rate, model.window)
    hidden = hidden_frames(f.window, f.hop_length, place.hole, model.frames)
    scale = gain(around.abs().max(), model.peak or 0.5)

    def analysed(sound: Tensor) -> Tensor:
        window = fit_length(sound[place.first : place.stop], model.window)
        return model.log_mels((window * scale).unsqueeze(0))[..., hidden]

    wave = place.take(clip, hole) * scale
    x, truth = model.log_mels(wave.unsqueeze(0)), analysed(clip)
    out = {}
    for name, method in METHODS.items():
        guess = method(model, x, hidden, number)
        sound = restoration.invert(model, guess, hidden, wave, place.hole, number)
        filling = place.give(sound / scale, hole.faded(len(clip), rate))
        heard = analysed(splice(clip, filling, hole, rate)[0])
        out[name] = (_decibels(model, guess[..., hidden] - truth), _decibels(model, heard - truth))
    return out


def _decibels(model: AudioEBM, difference: Tensor) -> float:
    """RMS of a difference of standardised log-mels, in dB."""
    return float(difference.square().mean().sqrt() * model.features.std) * 20 / math.log(10)


def main(run: str, data: str, split: str, clips: int | None) -> None:
    torch.set_num_threads(1)
    model = AudioEBM.from_pretrained(run)
    chosen = fsdd.prepare(data).split("valid" if split == "validation" else split)
    if clips is not None:  # spread over the whole split
        chosen = chosen[:: max(1, len(chosen) // clips)][:clips]
    began, rows = time.perf_counter(), []
    for number, clip in enumerate(chosen):
        row = errors(model, clip.source.load().waveform, number)
        if row is not None:
            rows.append([row[name] for name in METHODS])
    found = np.array(rows)  # (clips, methods, 2)
    print(
        f"{len(rows)} {split} clips, a hole of {1000 * SECONDS:g} ms in each "
        f"({len(chosen) - len(rows)} left out: nothing is heard around it); "
        f"{(time.perf_counter() - began) / len(chosen):.2f} s a clip, all methods"
    )
    for k, what in enumerate(("log-mels expected", "log-mels of the sound")):
        print(f"\n{what:32}{'RMS dB':>8}   restore less this, 95 % interval")
        ours = found[:, -1, k]
        for j, name in enumerate(METHODS):
            d = ours - found[:, j, k]
            low, high = _interval(d) if name != "restore" else (0.0, 0.0)
            against = "" if name == "restore" else f"   {d.mean():+.3f}  [{low:+.3f}, {high:+.3f}]"
            print(f"{name:32}{found[:, j, k].mean():8.3f}{against}")


def picture(run: str, data: str, path: str, clips: tuple[int, ...] = (3, 92, 151, 244)) -> None:
    """Log-mels of some test clips: recorded, with their hole, and filled by restore."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    model, rate = AudioEBM.from_pretrained(run), fsdd.SAMPLE_RATE
    chosen = fsdd.prepare(data).split("test")
    figure, axes = plt.subplots(len(clips), 3, figsize=(7.5, 1.4 * len(clips)))
    for row, number in zip(axes, clips, strict=True):
        clip = chosen[number].source.load().waveform
        hole = hole_of(clip, number)
        gone = clip.clone()
        gone[hole.first : hole.stop] = 0
        filled = model.restore(clip, rate, hole.first / rate, hole.stop / rate)
        names = (f"{chosen[number].name}, recorded", "150 ms are missing", "restored")
        low, high = torch.quantile(
            model.features.log_mel(clip.unsqueeze(0)), torch.tensor([0.02, 1])
        )
        for axis, name, wave in zip(row, names, (clip, gone, filled), strict=True):
            log_mel = model.features.log_mel(wave.unsqueeze(0))[0]
            axis.imshow(
                log_mel,
                origin="lower",
                aspect="auto",
                vmin=low,
                vmax=high,
                cmap="magma",
                interpolation="nearest",
            )
            axis.set_title(name, fontsize=7)
            axis.set_axis_off()
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=64)


def _interval(difference: np.ndarray) -> tuple[float, float]:
    found = metrics.paired_interval(lambda i: float(difference[i].mean()), len(difference))
    return found["low"], found["high"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="run folder of the digits recipe")
    parser.add_argument("data", help="folder of the corpus, with recordings/")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--clips", type=int, default=None, help="fewer clips; all when left out")
    parser.add_argument("--picture", default=None, help="draw some clips instead, to this PNG")
    arguments = parser.parse_args()
    if arguments.picture is not None:
        picture(arguments.run, arguments.data, arguments.picture)
    else:
        main(arguments.run, arguments.data, arguments.split, arguments.clips)
