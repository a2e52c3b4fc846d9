"""Synthesised machines: an embedded corpus of fans, pumps and valves, in order and with faults.

    y = g (h * m + b) + a d    a = 0 for a machine in order

m is the machine: speed, load and timing change from take to take. Its build, h (room and
microphone) and b (noise of the factory) are those of its *recording*: takes of one recording share
them, so none may be judged that others were trained with. d, the change that a fault makes, is
heard through the same room, in known rectangles of time and frequency; a sets its level there. A
fault draws from randomness of its own: y without it is the same sound.

Licence: none needed; the sounds are made by this module. 16 kHz, 5 s.
"""

from __future__ import annotations

__all__ = ["prepare", "normals", "faulty", "Sound", "Patch", "MachineClip"]

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sance_audio import audio
from sance_audio.datasets.corpus import Clip, Corpus

SAMPLE_RATE = 16000
SECONDS = 5.0
VERSION = "machines-1"
"""To be counted up with any change of the sounds: cached features are known by it."""
SEVERITY = {
    "fan": {"squeal": 5.0, "imbalance": -2.0, "rub": -4.0},
    "pump": {"cavitation": -1.0, "leak": -1.0, "clogging": -9.0},
    "valve": {"weak": -1.0, "double": 11.0, "hiss": 4.0},
}
"""Level of the change in its rectangles, in dB relative to the sound in order there."""
KINDS = tuple(SEVERITY)
FAULTS = {kind: tuple(faults) for kind, faults in SEVERITY.items()}
TAKEN_AWAY = ("clogging", "weak")  # of sound that is there: all of it at most
LEVEL = {"fan": 0.06, "pump": 0.06, "valve": 0.2}
"""g of a typical recording, where full scale is 1."""

Array = np.ndarray
Random = np.random.Generator


class Patch(NamedTuple):
    """Where a fault is heard: from `start` to `end` in seconds, from `low` to `high` in Hz."""

    start: float
    end: float
    low: float
    high: float


Fault = Callable[[Random], tuple[Array, list[Patch]]]
"""Gives d before the room, `(N,)`, on any scale, and its rectangles."""


@dataclass(frozen=True)
class MachineClip(Clip):
    """A clip that says which recording it belongs to, and its fault if it has one."""

    group: str = ""
    fault: str | None = None


@dataclass(frozen=True)
class Sound:
    """A clip of this corpus, made when it is read, the same for the same fields.

    Raises:
        ValueError: no such kind or fault; too short.
    """

    kind: str
    recording: int
    """Seed of the machine's build, room, microphone and noise."""
    take: int
    """Seed of what changes from clip to clip."""
    fault: str | None = None
    severity: float | None = None
    """Of the fault in dB; as `SEVERITY` says when None."""
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.fault not in (None, *FAULTS[self.kind]):
            raise ValueError(f"no {self.kind!r} with fault {self.fault!r}; there are {FAULTS}")
        if not self.seconds >= 2:
            raise ValueError(f"seconds must be 2 or more, found {self.seconds}")

    @property
    def decibels(self) -> float:
        usual = SEVERITY[self.kind].get(self.fault or "", 0.0)
        return usual if self.severity is None else self.severity

    @property
    def patches(self) -> list[Patch]:
        """Rectangles that hold the fault."""
        return self.parts()[2]

    def parts(self) -> tuple[Array, Array, list[Patch]]:
        """The clip in order, and d as it is heard, `(N,)` each; the rectangles of d."""
        about = (self.kind, self.recording)
        build, now = _rng(*about), _rng(*about, self.take)
        t = np.arange(round(self.seconds * SAMPLE_RATE)) / SAMPLE_RATE
        g, noise = LEVEL[self.kind] * _gain(build.uniform(-3, 3)), _gain(build.uniform(-22, -12))
        tilt, hear = build.uniform(-0.8, -0.3), _room(build)
        m, faults = MACHINES[self.kind](t, build, now)
        y = g * (hear(m) + noise * _coloured(now, t, lambda f: (f / 200 + 0.2) ** tilt))
        if self.fault is None:
            return y, np.zeros_like(y), []
        d, where = faults[self.fault](_rng(*about, self.take, self.fault))
        return y, g * hear(d), where

    def load(self) -> audio.Recording:
        y, d, where = self.parts()
        if where:
            a = float(_gain(self.decibels)) * np.sqrt(_power(y, where) / _power(d, where))
            y = y + (min(a, 1.0) if self.fault in TAKEN_AWAY else a) * d
        y *= min(1.0, 0.99 / np.abs(y).max())
        return audio.Recording(torch.from_numpy(y.astype(np.float32)), SAMPLE_RATE, 1)

    def digest(self) -> str:
        about = (self.kind, self.recording, self.take, self.fault, self.decibels, self.seconds)
        return "/".join(map(str, (VERSION, *about)))

    def clip(self, split: str) -> MachineClip:
        group = f"{self.kind}/{self.recording:04d}"
        name = f"{group}/{self.take:04d}_{self.fault or 'normal'}"
        return MachineClip(name, self.kind, split, self, group, self.fault)


def prepare(train: int = 20, valid: int = 10, test: int = 10, takes: int = 6) -> Corpus:
    """Lay out a corpus of all machines; each clip is synthesised when it is read.

    Arguments:
        train, valid, test: Recordings of each machine. Those of the test split also give the
            faulty clips, split "odd".
        takes: Clips in order of each recording, and faulty ones of each test recording.
    """
    clips: list[Clip] = []
    for kind in KINDS:
        first = 0
        for split, count in (("train", train), ("valid", valid), ("test", test)):
            clips += normals(kind, range(first, first + count), takes, split)
            first += count
        clips += faulty(kind, range(first - test, first), takes)
    return Corpus("machines", "made by this module", clips, KINDS)


def normals(
    kind: str, recordings: Iterable[int], takes: int, split: str = "train"
) -> list[MachineClip]:
    """Takes 0, 1, ... of each recording of a machine in order."""
    return [Sound(kind, r, take).clip(split) for r in recordings for take in range(takes)]


def faulty(kind: str, recordings: Iterable[int], takes: int) -> list[MachineClip]:
    """Takes 1000, 1001, ... of each recording, with the kinds of fault in turn; split "odd"."""
    faults = FAULTS.get(kind, ("",))
    return [
        Sound(kind, r, 1000 + take, faults[(r + take) % len(faults)]).clip("odd")
        for r in recordings
        for take in range(takes)
    ]


# Machines: functions of time (s) and of the randomness of build and take; they give m and faults.


def _fan(t: Array, build: Random, now: Random) -> tuple[Array, dict[str, Fault]]:
    """Harmonics of the blades' passage and the noise of the flow, which follow speed and load."""
    blades, steep, corner = build.integers(5, 8), build.uniform(0.8, 1.6), build.uniform(300, 900)
    load, usual = now.uniform(-1, 1), build.uniform(22, 30)
    shaft = _phase(usual * (1 + 0.03 * load + 0.006 * _noise(now, t, 0.1, 0.5)))
    angles = now.uniform(0, 2 * np.pi, 10)
    waves = [k**-steep * np.sin(k * blades * shaft + angles[k - 1]) for k in range(1, 11)]
    flow = _coloured(now, t, lambda f: 1 / (1 + (f / corner) ** 2) ** 0.6)
    gusts = 1 + 0.15 * _noise(now, t, 0.1, 2) + 0.2 * np.sin(blades * shaft)
    m = (0.6 + 0.1 * load) * np.sum(waves, 0) + (0.7 + 0.15 * load) * gusts * flow

    def squeal(rng: Random) -> tuple[Array, list[Patch]]:
        window, here = _stretch(rng, t, 0.6, 1.5)
        pitch = rng.uniform(2200, 4200)
        wobble = 1 + 0.01 * np.sin(2 * np.pi * rng.uniform(5, 9) * t)
        return window * np.sin(_phase(pitch * wobble)), [here(0.97 * pitch, 1.03 * pitch)]

    def imbalance(rng: Random) -> tuple[Array, list[Patch]]:
        window, here = _stretch(rng, t, 2.0, 3.5)
        where = [here((blades - 2) * usual, (3 * blades + 2) * usual)]
        return window * np.sum(waves[:3], 0) * np.sin(shaft), where

    def rub(rng: Random) -> tuple[Array, list[Patch]]:
        window, here = _stretch(rng, t, 0.8, 2.0)
        low = rng.uniform(1400, 2200)
        touches = np.clip(np.sin(shaft), 0, 1) ** 12
        return window * touches * _noise(rng, t, low, 2.4 * low), [here(0.9 * low, 2.5 * low)]

    return m, {"squeal": squeal, "imbalance": imbalance, "rub": rub}


def _pump(t: Array, build: Random, now: Random) -> tuple[Array, dict[str, Fault]]:
    """The hum of the motor, and a flow that pulses and crackles a little."""
    load, centre, beats = now.uniform(-1, 1), build.uniform(500, 1200), build.uniform(2, 5)
    motor = _phase(100 * (1 - 0.01 * (1 + load) + 0.002 * _noise(now, t, 0.1, 0.5)))
    levels, angles = build.uniform(0.3, 1, 6), now.uniform(0, 2 * np.pi, 6)
    hum = [levels[k - 1] / k * np.sin(k * motor + angles[k - 1]) for k in range(1, 7)]
    beat = np.sin(_phase(beats * (1 + 0.1 * load + 0.05 * _noise(now, t, 0.1, 0.5))))
    pulse = (0.7 + 0.1 * load) * (1 + build.uniform(0.2, 0.5) * beat)
    flow = pulse * _coloured(now, t, lambda f: (f / centre) / (1 + (f / centre) ** 3))
    m = np.sum(hum, 0) + flow
    m = m + build.uniform(0.05, 0.1) * _crackle(now, t, now.uniform(20, 60), 1500, 6000)

    def cavitation(rng: Random) -> tuple[Array, list[Patch]]:
        low, bursts = rng.uniform(2800, 3600), rng.integers(3, 6)
        parts = [_stretch(rng, t, 0.15, 0.4) for _ in range(bursts)]
        window = np.max([window for window, _ in parts], 0)
        d = window * _crackle(rng, t, 400, low, 2 * low)
        return d, [here(0.95 * low, 2.1 * low) for _, here in parts]

    def leak(rng: Random) -> tuple[Array, list[Patch]]:
        window, here = _stretch(rng, t, 1.5, 2.5)
        low = rng.uniform(4200, 5200)
        return window * _noise(rng, t, low, 1.45 * low), [here(0.98 * low, 1.5 * low)]

    def clogging(rng: Random) -> tuple[Array, list[Patch]]:
        window, here = _stretch(rng, t, 1.2, 2.5)
        return -window * _band(flow, 300, 3500), [here(290, 3550)]

    return m, {"cavitation": cavitation, "leak": leak, "clogging": clogging}


def _valve(t: Array, build: Random, now: Random) -> tuple[Array, dict[str, Fault]]:
    """A solenoid at random times: it opens with a click, lets a puff of gas pass, and closes."""
    tones = np.array([900, 2300, 4400]) * build.uniform(0.93, 1.07, 3)
    levels, damping = build.uniform(0.5, 0.8, 3), build.uniform(80, 120, 3)
    period, held, hiss = build.uniform((0.4, 0.07, 0.1), (0.5, 0.09, 0.2))
    times = now.uniform(0.05, 0.3) + np.cumsum(period * now.uniform(0.8, 1.3, 50)) - period
    times = times[(times > 0.01) & (times < len(t) / SAMPLE_RATE - 0.3)]
    forces, gas = _gain(now.normal(0, 1.5, 50)), hiss * _noise(now, t, 1500, 5000)

    s = np.arange(SAMPLE_RATE // 5)[:, None] / SAMPLE_RATE
    click = (levels * np.sin(2 * np.pi * tones * s) * np.exp(-damping * s)).sum(1)

    def strike(at: float) -> Array:
        return np.pad(click, (round(at * SAMPLE_RATE), len(t)))[: len(t)]

    puffs = [gas * _window(t, at, at + held, 0.01) for at in times]
    strokes = [
        force * (strike(at) + puff + 0.5 * strike(at + held))
        for at, puff, force in zip(times, puffs, forces, strict=False)
    ]

    def weak(rng: Random) -> tuple[Array, list[Patch]]:
        start, end, _, _ = _stretch(rng, t, 2.5, 4.0)[1](0, 0)
        chosen = np.flatnonzero((times > start) & (times < end))
        where = [Patch(times[i] - 0.005, times[i] + held + 0.1, 300, 7000) for i in chosen]
        return -np.sum([strokes[i] for i in chosen], 0), where

    def double(rng: Random) -> tuple[Array, list[Patch]]:
        again = times[rng.permutation(len(times))[::3]] + held + rng.uniform(0.02, 0.04)
        where = [Patch(at - 0.005, at + 0.08, 300, 7000) for at in again]
        return np.sum([strike(at) for at in again], 0), where

    def stuck(rng: Random) -> tuple[Array, list[Patch]]:
        window, here = _stretch(rng, t, 0.8, 1.6)
        return window * _noise(rng, t, 1500, 5000), [here(1450, 5100)]

    return np.sum(strokes, 0), {"weak": weak, "double": double, "hiss": stuck}


MACHINES = {"fan": _fan, "pump": _pump, "valve": _valve}


def _rng(*about: str | int) -> Random:
    return np.random.default_rng(zlib.crc32("/".join(map(str, (VERSION, *about))).encode()))


def _room(rng: Random) -> Callable[[Array], Array]:
    """h: direct sound, a tail that dies by 60 dB in 50 to 200 ms, and a microphone's slope."""
    s = np.arange(SAMPLE_RATE // 5) / SAMPLE_RATE
    h = rng.standard_normal(len(s)) * 10 ** (-3 * s / rng.uniform(0.05, 0.2))
    h *= rng.uniform(0.1, 0.4) / np.sqrt(np.sum(h**2))
    h[0], slope = 1.0, rng.uniform(-0.25, 0.25)

    def hear(x: Array) -> Array:
        n = len(x) + len(h)
        colour = ((np.fft.rfftfreq(n, 1 / SAMPLE_RATE) + 50) / 1000) ** slope
        return np.fft.irfft(np.fft.rfft(x, n) * np.fft.rfft(h, n) * colour, n)[: len(x)]

    return hear


def _stretch(
    rng: Random, t: Array, shortest: float, longest: float
) -> tuple[Array, Callable[[float, float], Patch]]:
    """A part of the clip: a window `(N,)` with soft edges, and what makes its rectangle."""
    length = min(rng.uniform(shortest, longest), 0.9 * t[-1])
    start = rng.uniform(0.02, 0.98) * (t[-1] - length)
    end = start + length
    return _window(t, start, end, 0.04), lambda *band: Patch(start, end, *band)


def _window(t: Array, start: float, end: float, edge: float) -> Array:
    return np.clip(np.minimum(t - start, end - t) / edge, 0, 1)


def _power(x: Array, where: Iterable[Patch]) -> float:
    """Mean power of x in rectangles."""
    parts = [
        _band(x, p.low, p.high)[round(p.start * SAMPLE_RATE) : round(p.end * SAMPLE_RATE)]
        for p in where
    ]
    return float(np.mean(np.concatenate(parts) ** 2)) + 1e-20


def _coloured(rng: Random, t: Array, gain: Callable[[Array], Array]) -> Array:
    """Gaussian noise `(N,)` of unit RMS whose amplitudes have a given shape over Hz."""
    f = np.fft.rfftfreq(len(t), 1 / SAMPLE_RATE)
    x = np.fft.irfft(np.fft.rfft(rng.standard_normal(len(t))) * gain(f), len(t))
    return x / np.sqrt(np.mean(x**2))


def _noise(rng: Random, t: Array, low: float, high: float) -> Array:
    """Of unit RMS, between two frequencies; of less than 2 Hz it is a drift."""
    return _coloured(rng, t, lambda f: ((f >= low) & (f <= high)).astype(float))


def _crackle(rng: Random, t: Array, rate: float, low: float, high: float) -> Array:
    """So many impulses per second at random times, between two frequencies."""
    struck = rng.random(len(t)) < rate / SAMPLE_RATE
    return _band(struck * rng.standard_normal(len(t)) * np.sqrt(SAMPLE_RATE / rate), low, high)


def _band(x: Array, low: float, high: float) -> Array:
    """What of x lies between two frequencies."""
    f = np.fft.rfftfreq(len(x), 1 / SAMPLE_RATE)
    return np.fft.irfft(np.fft.rfft(x) * ((f >= low) & (f <= high)), len(x))


def _phase(frequency: Array) -> Array:
    """Phase in radians of a tone whose frequency is given sample by sample."""
    return 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE


def _gain(decibels: Array | float) -> Array:
    return 10 ** (np.asarray(decibels) / 20)
