"""`detection.descriptors` and `features.LogMel` as graphs: the same formulas, in the same order.

Spectra are `(T, F)` here, with time first, as ONNX's transform has them.
"""

from __future__ import annotations

__all__ = ["deviation", "described", "log_mel", "magnitudes"]

import itertools
import math

import numpy as np

from sance_audio.detection import descriptors
from sance_audio.detection.descriptors import GROUPS, LAGS, LONGEST, N_MELS, OCTAVES
from sance_audio.export.graph import Value
from sance_audio.features import LogMel


def magnitudes(x: Value, features: LogMel) -> Value:
    """Of waveforms `(B, N)`: `(B, T, F)`.

    Raises:
        ValueError: features whose edges reflect.
    """
    if features.pad_mode != "constant":
        raise ValueError(
            f"export: expected features with pad_mode='constant', found {features.pad_mode!r}"
        )
    g, half = x.graph, features.n_fft // 2
    padded = x.padded(half, half).expanded(2)
    hop, length = (g.constant(n, np.int64) for n in (features.hop_length, features.n_fft))
    window = g.constant(features.window.numpy())
    spectra = g.node("STFT", padded, hop, window, length, onesided=1)
    return spectra.square().sum(3).sqrt()


def log_mel(s: Value, features: LogMel) -> tuple[Value, Value]:
    """Mels, and their floored logarithm, `(B, T, M)` each, of magnitudes `(B, T, F)`."""
    powered = s if features.power == 1 else s.graph.node("Pow", s, s._of(features.power))
    mel = powered @ features.filterbank.numpy().T
    return mel, mel.at_least(features.floor).log()


def deviation(x: Value, axis: int, correction: int = 1) -> Value:
    around = x - x.mean(axis, keep=True)
    return (around.square().sum(axis) / (x.count(axis).cast(x.dtype) - correction)).sqrt()


def described(x: Value, own: descriptors.Descriptors) -> tuple[dict[str, Value], Value]:
    """The clip vectors of a waveform `(N,)`, and its log-mels `(M, T)`."""
    missing = (own.n_fft - x.count(0)).at_least(0)
    x = x.padded(0, missing)
    s = magnitudes(x.expanded(0), own.features)
    mel, logs = (part.reshape(-1, N_MELS).swapped() for part in log_mel(s, own.features))
    s = s.reshape(-1, len(own.bins))
    cepstra = own.cosines.numpy() @ logs
    vectors = {
        "timbre": x.graph.joined([_cepstral(cepstra), _spectral(x, s, logs, own)]),
        "rhythm": x.graph.joined([_modulation(logs), _envelope(logs.mean(0))]),
        "bands": x.graph.joined([logs.mean(1), deviation(logs, 1)]),
        "loud": _loud(cepstra, mel),
    }
    return vectors, logs


def _cepstral(cepstra: Value) -> Value:
    spread, moving = ((deviation(c, 1) + 1e-2).log() for c in (cepstra, cepstra.steps(1)))
    return cepstra.graph.joined([cepstra.mean(1), spread, moving])


def _frames(s: Value, own: descriptors.Descriptors) -> tuple[Value, Value]:
    """Centroid, width, three roll-offs, flatness, log RMS of frames, each `(T, 1)`, joined:
    `(T, 5)` in Hz, `(T, 2)`."""
    g, bins = s.graph, own.bins.numpy()
    total = s.sum(1) + 1e-6
    centroid = (s @ bins) / total
    width = ((s @ bins**2) / total - centroid.square()).at_least(1).sqrt()
    below = g.node("CumSum", s, g.constant(1, np.int64))
    last = below.part(1, -1, np.iinfo(np.int64).max)
    rolled = []
    for share in own.shares.tolist():
        place = (below < last * np.float32(share)).cast(np.int64).sum(1)
        rolled.append(g.constant(bins).at(place.at_most(len(bins) - 1), 0))
    power = s.square()
    mean = (power.mean(1) + 1e-10).log()
    flatness = (s + 1e-5).log().mean(1) * 2.0 - mean
    hertz = [column.expanded(1) for column in (centroid, width, *rolled)]
    rest = [column.expanded(1) for column in (flatness, mean / 2.0)]
    return g.joined(hertz, 1), g.joined(rest, 1)


def _spectral(x: Value, s: Value, logs: Value, own: descriptors.Descriptors) -> Value:
    hertz, rest = _frames(s, own)
    rising = logs.steps(1).at_least(0).mean(0)
    hand = [
        x.graph.joined([(hertz + 50).log(), rest], 1),
        (_crossings(x, own) + 1e-3).log().expanded(1),
        (rising + 1e-2).log().expanded(1),
    ]
    each = [
        x.graph.joined([h.mean(0).expanded(1), deviation(h, 0, 0).expanded(1)], 1).reshape(-1)
        for h in hand
    ]
    contrast = _contrast((s + 1e-5).log(), own.octaves)
    return x.graph.joined([*each, contrast.mean(0), deviation(contrast, 0)])


def _crossings(x: Value, own: descriptors.Descriptors) -> Value:
    crossed = (x.rest(0, 1) * x.part(0, 0, -1) < 0).cast(np.float32).expanded(0, 1)
    shares = x.graph.node("AveragePool", crossed, kernel_shape=[own.n_fft - 1], strides=[own.hop])
    return shares.reshape(-1)


def _contrast(logs: Value, octaves: list[slice]) -> Value:
    out = []
    for octave in octaves:
        part = logs.part(1, octave.start, octave.stop)
        size = octave.stop - octave.start
        k = min(max(1, int(0.1 * size) + 1), size)
        highest, lowest = (part.sorted(k, largest)[0].mean(1) for largest in (True, False))
        out.append((highest - lowest).expanded(1))
    return logs.graph.joined(out, 1)


def _modulation(logs: Value) -> Value:
    g, count = logs.graph, logs.count(1)
    groups = logs.reshape(GROUPS, N_MELS // GROUPS, -1).mean(1)
    n = count.at_most(LONGEST)
    step = (n / 2).at_least(1)
    starts = g.range((count - n) / step + 1) * step
    places = starts.expanded(1) + np.arange(LONGEST)[None]
    parts = groups.at(places.at_most(count - 1), 1)  # (GROUPS, P, LONGEST)
    of_n, i = n.cast(np.float32), g.constant(np.arange(LONGEST))
    inside = (i < of_n).cast(np.float32)
    hann = (0.5 - (i * (2 * math.pi) / of_n).cos() * 0.5) * inside
    parts = (parts - (parts * inside).sum(2, keep=True) / of_n) * hann
    angle = 2 * np.pi * np.outer(np.arange(LONGEST), np.arange(LONGEST // 2 + 1)) / LONGEST
    power = (parts @ np.cos(angle)).square() + (parts @ np.sin(angle)).square()
    power = power.mean(1) / of_n
    octaves = np.zeros((LONGEST // 2 + 1, len(OCTAVES) - 1))
    for j, (a, b) in enumerate(itertools.pairwise(OCTAVES)):
        octaves[a:b, j] = 1 / (b - a)
    return (power @ octaves + 1e-3).log().swapped().reshape(-1)


def _envelope(envelope: Value) -> Value:
    g, count = envelope.graph, envelope.count(0)
    around, longest = envelope - envelope.mean(0, keep=True), max(LAGS)
    later = around.padded(0, longest)
    lags = g.constant((0, *LAGS), np.int64).expanded(1)
    correlation = (later.at(lags + g.range(count).expanded(0), 0) @ around.expanded(1)).reshape(-1)
    correlation = correlation.rest(0, 1) / (correlation.part(0, 0, 1) + 1e-3)
    q = _quantiles(envelope, (0.05, 0.25, 0.5, 0.75, 0.95))
    top = q.rest(0, 4)
    steepest = envelope.steps(0).max(0, keep=True).at_least(0)
    loud = (envelope > top - 1.5).cast(np.float32).mean(0, keep=True)
    spread = deviation(around, 0).reshape(1)
    shape = [spread, loud, steepest, count.cast(np.float32).log().reshape(1)]
    return g.joined([q - top, *shape, correlation])


def _quantiles(x: Value, shares: tuple[float, ...]) -> Value:
    """Of `(T,)`, interpolated linearly."""
    count = x.count(0)
    ascending, _ = x.sorted(count, largest=False)
    place = (count - 1).cast(np.float32) * np.asarray(shares, np.float32)
    low = x.graph.node("Floor", place)
    below = ascending.at(low.cast(np.int64), 0)
    above = ascending.at((low.cast(np.int64) + 1).at_most(count - 1), 0)
    return below + (above - below) * (place - low)


def _loud(cepstra: Value, mel: Value) -> Value:
    weight = mel.square().sum(0) + 1e-12
    weight = weight / weight.sum(0, keep=True)
    mean = cepstra @ weight
    spread = (cepstra - mean.expanded(1)).square() @ weight
    return cepstra.graph.joined([mean, (spread + 1e-2).log()])
