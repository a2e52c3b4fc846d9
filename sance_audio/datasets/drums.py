"""Synthesised drums: an embedded corpus, made from code, the same for the same seed.

Six kinds with random parameters (kick, snare, closed hat, open hat, tom, clap) are trained on.
Four further kinds (cowbell, conga, shaker, rimshot) serve as anomalies: every sound of either sort
is given a duration, an amplitude envelope, fades and a level from the same distributions, so that
only its timbre gives an anomaly away.

Licence: none needed; the sounds are made by this module. 16 kHz, half a second.
"""

from __future__ import annotations

__all__ = ["prepare", "synthesise", "LABELS", "ODD", "SAMPLE_RATE", "LENGTH"]

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sance_audio import audio
from sance_audio.datasets.corpus import Clip, Corpus

SAMPLE_RATE = 16000
LENGTH = 8064
"""Samples: 64 frames at a hop of 128, about half a second."""
VERSION = "drums-1"
"""To be counted up with any change of the sounds: cached features are known by it."""

Array = np.ndarray


@dataclass(frozen=True)
class Drum:
    """A clip of this corpus, made when it is read."""

    kind: str
    seed: int

    def load(self) -> audio.Recording:
        return audio.Recording(synthesise(self.kind, self.seed), SAMPLE_RATE, 1)

    def digest(self) -> str:
        return f"{VERSION}/{self.kind}/{self.seed}"


def prepare(
    train: int = 1200, valid: int = 480, test: int = 480, odd: int = 240, seed: int = 0
) -> Corpus:
    """Lay out a corpus; each clip is synthesised when it is read.

    Arguments:
        train, valid, test: Clips of each split, over all kinds, in balanced turn.
        odd: Clips of kinds never trained on, split "odd".
        seed: Of all randomness. Clip i of a split is the same whatever the counts.
    """
    clips = []
    for split, count, kinds in (
        ("train", train, LABELS),
        ("valid", valid, LABELS),
        ("test", test, LABELS),
        ("odd", odd, ODD),
    ):
        for i in range(count):
            kind = kinds[i % len(kinds)]
            name = f"{split}/{i:05d}_{kind}"
            clips.append(
                Clip(name, kind, split, Drum(kind, zlib.crc32(f"{seed}/{name}".encode())))
            )
    return Corpus("drums", "made by this module", clips, LABELS)


def synthesise(kind: str, seed: int) -> Tensor:
    """One sound, `(LENGTH,)` at 16 kHz.

    Raises:
        ValueError: no such kind.
    """
    if kind not in _TIMBRES:
        raise ValueError(f"no kind of sound named {kind!r}; there are {' '.join(_TIMBRES)}")
    rng = np.random.default_rng(seed)
    # Drawn before the timbre, from one distribution for every kind: how loud, how long, how steep.
    level, duration = rng.uniform(0.35, 0.9), rng.uniform(0.12, 0.42)
    attack, decay = rng.uniform(0.001, 0.004), rng.uniform(3.0, 7.0)
    onset = int(rng.uniform(0.005, 0.03) * SAMPLE_RATE)
    t = np.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE
    sound = _TIMBRES[kind](t, rng)
    envelope = np.minimum(t / attack, 1) * np.exp(-decay * t / duration)
    fade = np.clip((duration - t) / 0.01, 0, 1)
    sound = sound / max(float(np.sqrt(np.mean(sound**2))), 1e-9) * envelope * fade
    out = np.zeros(LENGTH)
    out[onset : onset + len(t)] = sound[: LENGTH - onset]
    return torch.from_numpy((level * out / np.abs(out).max()).astype(np.float32))


# Timbres: functions of time (s) and randomness; envelopes, level and length are not theirs.


def _kick(t: Array, rng: np.random.Generator) -> Array:
    low, sweep, rate = rng.uniform(42, 65), rng.uniform(80, 220), rng.uniform(25, 50)
    tone = np.sin(_phase(low + sweep * np.exp(-rate * t)))
    return tone + rng.uniform(0.05, 0.2) * _noise(t, rng, 1500, 6000) * np.exp(-300 * t)


def _tom(t: Array, rng: np.random.Generator) -> Array:
    pitch = rng.uniform(110, 280)
    bend = pitch * (1 + rng.uniform(0.15, 0.4) * np.exp(-18 * t))
    ring = (
        np.sin(_phase(bend))
        + 0.4 * np.sin(_phase(1.59 * bend))
        + 0.2 * np.sin(_phase(2.14 * bend))
    )
    return ring + rng.uniform(0.02, 0.08) * _noise(t, rng, 400, 3000) * np.exp(-60 * t)


def _snare(t: Array, rng: np.random.Generator) -> Array:
    pitch = rng.uniform(160, 240)
    body = np.sin(_phase(_flat(t, pitch))) + 0.6 * np.sin(_phase(_flat(t, 1.6 * pitch)))
    wires = _noise(t, rng, rng.uniform(900, 1500), rng.uniform(5000, 7500))
    return body * np.exp(-rng.uniform(15, 30) * t) + rng.uniform(0.8, 1.6) * wires


def _hat(t: Array, rng: np.random.Generator, steep: float) -> Array:
    base = rng.uniform(320, 440)
    metal = sum(
        np.sign(np.sin(_phase(_flat(t, base * r)) + rng.uniform(0, 6)))
        for r in (2.0, 3.0, 4.16, 5.43, 6.79, 8.21)
    )
    bright = _band(np.asarray(metal) / 6, rng.uniform(5000, 6000), 7900)
    return (bright + 0.5 * _noise(t, rng, 5500, 7900)) * np.exp(-steep * t)


def _closed_hat(t: Array, rng: np.random.Generator) -> Array:
    return _hat(t, rng, rng.uniform(45, 80))


def _open_hat(t: Array, rng: np.random.Generator) -> Array:
    return _hat(t, rng, rng.uniform(0, 3))


def _clap(t: Array, rng: np.random.Generator) -> Array:
    centre = rng.uniform(900, 1600)
    noise = _noise(t, rng, 0.6 * centre, 2.2 * centre)
    gap = rng.uniform(0.008, 0.013)
    bursts = sum(np.exp(-220 * np.clip(t - k * gap, 0, None)) * (t >= k * gap) for k in range(3))
    return noise * (
        np.asarray(bursts) + 0.5 * np.exp(-25 * np.clip(t - 3 * gap, 0, None)) * (t >= 3 * gap)
    )


def _cowbell(t: Array, rng: np.random.Generator) -> Array:
    low = rng.uniform(500, 620)
    squares = np.sign(np.sin(_phase(_flat(t, low)))) + np.sign(
        np.sin(_phase(_flat(t, 1.48 * low)))
    )
    return _band(squares, 0.8 * low, 4 * low)


def _conga(t: Array, rng: np.random.Generator) -> Array:
    pitch = rng.uniform(300, 520)
    bend = pitch * (1 + rng.uniform(0.02, 0.08) * np.exp(-30 * t))
    ring = np.sin(_phase(bend)) + 0.25 * np.sin(_phase(2.3 * bend))
    return ring + rng.uniform(0.1, 0.3) * _noise(t, rng, 800, 4000) * np.exp(-80 * t)


def _shaker(t: Array, rng: np.random.Generator) -> Array:
    rate = rng.uniform(25, 60)
    grains = 0.5 * (1 + np.sin(2 * np.pi * rate * t + rng.uniform(0, 6)))
    return _noise(t, rng, 3000, rng.uniform(4500, 6000)) * grains**3


def _rimshot(t: Array, rng: np.random.Generator) -> Array:
    low, high = rng.uniform(420, 560), rng.uniform(1500, 1900)
    ring = np.sin(_phase(_flat(t, low))) + 0.8 * np.sin(_phase(_flat(t, high)))
    crack = rng.uniform(0.5, 1.0) * _noise(t, rng, 1200, 7000) * np.exp(-40 * t)
    return ring * np.exp(-rng.uniform(10, 20) * t) + crack


_TIMBRES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "kick": _kick,
    "snare": _snare,
    "closed-hat": _closed_hat,
    "open-hat": _open_hat,
    "tom": _tom,
    "clap": _clap,
    "cowbell": _cowbell,
    "conga": _conga,
    "shaker": _shaker,
    "rimshot": _rimshot,
}
LABELS = tuple(_TIMBRES)[:6]
"""Kinds that models are trained on."""
ODD = tuple(_TIMBRES)[6:]
"""Kinds that they never hear."""


def _flat(t: Array, frequency: float) -> Array:
    """A constant frequency, sample by sample."""
    return np.full_like(t, frequency)


def _phase(frequency: Array) -> Array:
    """Phase in radians of a tone whose frequency in Hz is given sample by sample."""
    return 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE


def _noise(t: Array, rng: np.random.Generator, low: float, high: float) -> Array:
    """Noise between two frequencies, in Hz, unit RMS."""
    out = _band(rng.standard_normal(len(t)), low, high)
    return out / max(float(np.sqrt(np.mean(out**2))), 1e-9)


def _band(x: Array, low: float, high: float) -> Array:
    """What of x lies between two frequencies, in Hz."""
    from scipy.signal import butter, sosfilt

    sos = butter(
        4, [low, min(high, 0.499 * SAMPLE_RATE)], "bandpass", fs=SAMPLE_RATE, output="sos"
    )
    return sosfilt(sos, x)
