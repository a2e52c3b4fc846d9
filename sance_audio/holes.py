r"""Holes in recordings: where a hole lies in a model's window, and how its filling is put back.

A hole is the samples `[first, stop)` of a clip. Nothing outside it changes but a cross-fade of
`FADE` seconds on either side, just outside the hole: there the recording, whose weight w falls
from 1 to 0 towards the hole as `cos^2`, gives way to the filling,

    y = w x + (1 - w) f

The filling was made with those samples of x in view, so the two agree there but for what the
model's rate and mels leave out. Every other sample is the recording's own, to the bit.
"""

from __future__ import annotations

__all__ = [
    "Hole",
    "View",
    "Known",
    "find_hole",
    "view",
    "known_samples",
    "hidden_frames",
    "splice",
    "whole_rate",
    "FADE",
]

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sance_audio.audio import PEAK, fit_length, gain, resample

FADE = 0.010
"""Seconds of cross-fade on either side."""
NEGLIGIBLE = 1e-5
"""Share of a frame's squared window that may lie in the hole while the frame counts as known."""
SILENT = 1e-8
"""Peak of samples up to which there is nothing to go on: of full scale, or of the recording's own
peak where that is above it.
"""
BLOCK = 2**18
"""Samples that are looked at together."""


class Hole(NamedTuple):
    """Samples `[first, stop)`."""

    first: int
    stop: int

    def faded(self, n: int, sample_rate: int) -> Hole:
        """The hole and its cross-fades, within a clip of n samples: all that changes."""
        fade = round(FADE * sample_rate)
        return Hole(max(0, self.first - fade), min(n, self.stop + fade))


def whole_rate(sample_rate: Any) -> int:
    """A sample rate in Hz as an integer, from any number that is one.

    >>> whole_rate(8000.0)
    8000

    Raises:
        ValueError: no whole number, or less than 1.
    """
    try:
        rate = int(sample_rate)
        whole = bool(rate == sample_rate)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        rate, whole = 0, False
    if not whole or rate < 1:
        raise ValueError(
            f"sample_rate must be a whole number of at least 1 Hz, found {sample_rate!r}"
        )
    return rate


def find_hole(start: float, end: float, n: int, sample_rate: int) -> Hole:
    """The hole from `start` to `end`, in seconds, of a clip of n samples.

    Raises:
        ValueError: times that are not finite, in the wrong order, less than a sample apart,
            outside of the clip, or around all of it.
    """
    length = n / sample_rate
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(f"the hole's start and end must be finite, found {start} and {end}")
    if not start < end:
        raise ValueError(
            f"the hole's start must come before its end, found {start:g} s and {end:g} s"
        )
    hole = Hole(round(start * sample_rate), round(end * sample_rate))
    if hole.first < 0 or hole.stop > n:
        raise ValueError(
            f"the hole, {start:g} to {end:g} s, lies outside of the clip, which lasts from 0 to "
            f"{length:g} s: choose times within it"
        )
    if hole.first == hole.stop:
        raise ValueError(
            f"the hole, {start:g} to {end:g} s, holds no sample at {sample_rate} Hz: make it "
            f"longer"
        )
    if hole == (0, n):
        raise ValueError(
            f"the hole, {start:g} to {end:g} s, is the whole clip: leave something around it"
        )
    return hole


class View(NamedTuple):
    """A model's window on a clip: samples `[first, stop)` of the clip, `length` at the model's
    rate, after `before` zeros (or, where negative, from that sample on).
    """

    first: int
    stop: int
    before: int
    length: int
    hole: Hole
    """In samples of the window, at the model's rate."""
    sample_rate: int
    """Of the clip, in Hz."""
    model_rate: int
    window: int
    """Samples of the window, at the model's rate."""

    def take(self, clip: Tensor, hole: Hole, unit: float = 1.0) -> Tensor:
        """The window `(window,)` of a clip `(N,)`, in units of `unit`, zero in the hole; float32,
        on the CPU.

        Where the rate changes, a straight line bridges the hole first: the edges of a silence
        would ring into the samples around it.
        """
        clip = (clip[self.first : self.stop].detach().cpu().double() / unit).float()
        first, stop = hole.first - self.first, hole.stop - self.first
        edge = clip[[max(first - 1, 0), min(stop, len(clip) - 1)]]
        left = edge[0] if first > 0 else edge[1]
        right = edge[1] if stop < len(clip) else edge[0]
        clip[first:stop] = left + (right - left) * torch.linspace(0, 1, stop - first)
        out = fit_length(resample(clip, self.sample_rate, self.model_rate), self.window)
        out[self.hole.first : self.hole.stop] = 0
        return out

    def give(self, window: Tensor, part: Hole) -> Tensor:
        """Samples `part` of the clip, at its rate, of a window `(window,)`."""
        inside = window[max(self.before, 0) :][: self.length]
        back = fit_length(
            resample(inside, self.model_rate, self.sample_rate), self.stop - self.first, "start"
        )
        return back[part.first - self.first : part.stop - self.first]


def view(hole: Hole, n: int, sample_rate: int, model_rate: int, window: int) -> View:
    """The window of a model around a hole in a clip of n samples: a short clip is centred in
    zeros, of a longer one the window lies around the hole, within the clip.

    Raises:
        ValueError: a hole longer than the window.
    """
    need = -(-window * sample_rate // model_rate)
    if hole.stop - hole.first >= need:
        raise ValueError(
            f"the hole lasts {(hole.stop - hole.first) / sample_rate:g} s; the model's window is "
            f"{window / model_rate:g} s long and must hold some sound around the hole: choose a "
            f"shorter one"
        )
    first = max(0, min((hole.first + hole.stop) // 2 - need // 2, n - need))
    stop = min(n, first + need)
    count = len(resample(torch.zeros(stop - first), sample_rate, model_rate))
    extra = window - count
    before = extra // 2 if extra >= 0 else -(-extra // 2)

    def at(sample: int, up: int) -> int:
        scaled = (
            -((first - sample) * model_rate // sample_rate)
            if up
            else ((sample - first) * model_rate // sample_rate)
        )
        return max(0, min(window, before + scaled))

    inside = Hole(at(hole.first, 0), at(hole.stop, 1))
    return View(first, stop, before, min(count, window), inside, sample_rate, model_rate, window)


class Known(NamedTuple):
    """What is known of a channel. Its unit, a power of two, is near its peak, so that float32
    holds what is in units of it, however loud it is.
    """

    wave: Tensor
    """`(window,)`, zero in the hole, scaled as the model expects it."""
    silent: bool
    """Nothing to go on: to be filled with silence."""
    scale: float
    """What the window was scaled with, from units."""
    around: Tensor
    """All that is to change, as it was, in units."""
    limit: float
    """Peak that the filling may have, in units."""
    unit: float
    """Of full scale 1."""
    hole: Hole
    """In the channel."""
    part: Hole
    """The hole and its cross-fades."""
    place: View

    def filled(self, window: Tensor | None) -> tuple[Tensor, float]:
        """What `around` is to be, of full scale 1, and what the filling was scaled with.

        Arguments:
            window: Scaled as `wave`, `(window,)`; None for silence.
        """
        filling = torch.zeros(len(self.around))
        if window is not None:
            filling = self.place.give(window.cpu() / self.scale, self.part)
        if not bool(filling.isfinite().all()):
            raise ValueError(
                f"the model's filling is NaN or infinite, the recording's peak about "
                f"{self.unit:.1g}: scale it to a peak of 1"
            )
        inside = Hole(*(edge - self.part.first for edge in self.hole))
        out, factor = splice(self.around, filling, inside, self.place.sample_rate, self.limit)
        return out * self.unit, factor


def known_samples(
    channel: Tensor, hole: Hole, place: View, peak: float | None, full_scale: float = 1.0
) -> Known:
    """What is known of a channel.

    Arguments:
        channel: `(N,)`, floats or integers.
        hole: Where it is not known.
        place: The model's window on it.
        peak: What the model scales the peak of the known samples to; None for levels as they are.
        full_scale: What stands for 1 in the channel, a power of two.

    Raises:
        ValueError: known samples that are not finite.
    """
    top = _peak(channel, hole)
    step = 2.0 ** (math.frexp(top)[1] - 1) if top else 1.0
    unit, relative = step / full_scale, top / step
    wave = place.take(channel, hole, step)
    scale = unit
    if peak is not None:
        scale = float(gain(torch.tensor(relative, dtype=torch.float32), peak))
    part = hole.faded(len(channel), place.sample_rate)
    return Known(
        wave=(wave.double() * scale).float(),
        silent=not float(wave.abs().max()) > SILENT * max(1 / unit, relative),
        scale=scale,
        around=channel[part.first : part.stop].detach().cpu().double() / step,
        limit=max(PEAK / unit, relative),
        unit=unit,
        hole=hole,
        part=part,
        place=place,
    )


def _peak(channel: Tensor, hole: Hole) -> float:
    """The largest magnitude of the known samples of a channel `(N,)`, looked at in blocks.

    Raises:
        ValueError: known samples that are not finite.
    """
    top, bad = 0.0, 0
    for first, stop in ((0, hole.first), (hole.stop, len(channel))):
        for i in range(first, stop, BLOCK):
            block = channel[i : min(i + BLOCK, stop)].detach().cpu().double()
            bad += int((~block.isfinite()).sum())
            top = max(top, float(block.abs().max()))
    if bad:
        raise ValueError(
            f"{bad} samples outside of the hole are NaN or infinite: widen the hole, or mend them"
        )
    return top


def hidden_frames(window: Tensor, hop_length: int, hole: Hole, frames: int) -> Tensor:
    """Which of T centred frames see the hole, `(T,)`, boolean: those of whose squared window
    `(n_fft,)` more than `NEGLIGIBLE` lies in it.
    """
    n_fft, squared = len(window), window.double().square()
    share = torch.cat([squared.new_zeros(1), squared.cumsum(0)]) / squared.sum()
    start = torch.arange(frames, device=window.device) * hop_length - n_fft // 2
    first, stop = ((edge - start).clamp(0, n_fft) for edge in hole)
    return share[stop] - share[first] > NEGLIGIBLE


def splice(
    clip: Tensor, filling: Tensor, hole: Hole, sample_rate: int, limit: float = PEAK
) -> tuple[Tensor, float]:
    """A clip `(N,)` with its hole filled; every sample beyond the cross-fades is the same.

    Arguments:
        clip: `(N,)`, floating point; what stands in the hole does not matter.
        filling: Of `hole.faded(N, sample_rate)`.
        hole: Where.
        sample_rate: In Hz.
        limit: Peak that the filling may have.

    Returns:
        The clip, and what the filling was scaled with: less than 1 where its peak passed `limit`.
    """
    part = hole.faded(len(clip), sample_rate)
    filling = filling.to(clip.device, torch.float64)
    top = float(filling.abs().max())
    gain = limit / top if top > limit else 1.0
    left, right = hole.first - part.first, part.stop - hole.stop
    weight = torch.zeros(len(filling), dtype=torch.float64, device=clip.device)
    weight[:left] = _fall(left).to(clip.device)
    weight[len(weight) - right :] = _fall(right).flip(0).to(clip.device)
    known = torch.where(weight > 0, clip[part.first : part.stop].double(), 0.0)
    out = clip.clone()
    out[part.first : part.stop] = (weight * known + (1 - weight) * gain * filling).to(clip.dtype)
    return out, gain


def _fall(n: int) -> Tensor:
    """`cos^2` from nearly 1 to nearly 0 in n steps."""
    return torch.cos((torch.arange(n, dtype=torch.float64) + 0.5) * (math.pi / 2 / max(n, 1))) ** 2
