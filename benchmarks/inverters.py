"""What a user would invert mels with, each from the same analysis; and sounds to do it on."""

from __future__ import annotations

__all__ = ["CORPORA", "Corpus", "Inverter", "MELS", "inverters"]

import csv
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sance_audio import GriffinLim, LogMel, audio
from sance_audio.datasets import drums, fsdd

MELS = (64, 80, 128)
SECONDS = 3
CLIPS = 12
ITERATIONS = 32
"""Of the peers: the default of both."""

Inverter = Callable[[Tensor], Tensor]
"""Mels `(B, M, T)` to waveforms `(B, N)`."""


@dataclass(frozen=True)
class Corpus:
    """Clips to analyse and to resynthesise."""

    sample_rate: int
    n_fft: int
    clips: Callable[[Path, bool], Tensor]
    """Of the data folder, and whether they are for tuning; `(B, N)`. Clips for tuning and clips
    that are reported have no recording in common.
    """

    def features(self, n_mels: int, power: float = 1.0) -> LogMel:
        n_fft = self.n_fft
        return LogMel(self.sample_rate, n_fft, n_fft // 4, n_mels, f_min=20.0, power=power)


def utterances(data: Path, tuning: bool) -> Tensor:
    """Digits of one speaker joined to 3 s, speaker by speaker: takes 0 to 4 (the test split) are
    reported, the others are for tuning.
    """
    of: dict[str, list[Path]] = {}
    for path in sorted((data / "fsdd" / "recordings").glob("*.wav")):
        _, speaker, take = path.stem.split("_")
        if (int(take) >= 5) == tuning:
            of.setdefault(speaker, []).append(path)
    rng = np.random.default_rng(0)
    waiting = {s: iter([paths[i] for i in rng.permutation(len(paths))]) for s, paths in of.items()}
    return torch.stack(
        [
            _joined((audio.read(path)[0] for path in waiting[speaker]), fsdd.SAMPLE_RATE)
            for speaker in itertools.islice(itertools.cycle(sorted(of)), CLIPS)
        ]
    )


def scenes(rate: int) -> Callable[[Path, bool], Tensor]:
    """ESC-10, a clip of each class in turn: folds 1 and 2 are for tuning, 3 to 5 are reported."""

    def clips(data: Path, tuning: bool) -> Tensor:
        with (data / "esc10" / "meta" / "esc50.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if (row["fold"] in "12") == tuning]
        kinds = sorted({row["category"] for row in rows})
        rng, waves = np.random.default_rng(0), []
        for kind in itertools.islice(itertools.cycle(kinds), CLIPS):
            names = [row["filename"] for row in rows if row["category"] == kind]
            path = data / "esc10" / "audio" / names[rng.integers(len(names))]
            found = path if path.exists() else path.with_suffix(".ogg")
            waves.append(_loudest(audio.read(found, rate)[0], SECONDS * rate))
        return torch.stack(waves)

    return clips


def rhythms(data: Path, tuning: bool) -> Tensor:
    """Synthesised drums joined to 3 s: other seeds for tuning."""
    kinds, first = itertools.cycle(drums.LABELS), 100_000 if tuning else 0
    rows = []
    for i in range(CLIPS):
        hits = (drums.synthesise(next(kinds), first + 100 * i + j) for j in itertools.count())
        rows.append(_joined(hits, drums.SAMPLE_RATE))
    return torch.stack(rows)


CORPORA = {
    "FSDD, 8 kHz": Corpus(fsdd.SAMPLE_RATE, 512, utterances),
    "ESC-10, 16 kHz": Corpus(16_000, 1024, scenes(16_000)),
    "ESC-10, 44.1 kHz": Corpus(44_100, 2048, scenes(44_100)),
    "drums, 16 kHz": Corpus(drums.SAMPLE_RATE, 1024, rhythms),
}


def inverters(f: LogMel, length: int) -> dict[str, tuple[float, Inverter]]:
    """Of mels with the settings of `f`: the power that each wants them to, and the inverter."""
    ours = {f"ours, {n} iterations": (1.0, _ours(f, n, length)) for n in (ITERATIONS, 12, 100)}
    return ours | {
        "torchaudio, power 1": (1.0, _torchaudio(f, 1.0, length)),
        "torchaudio, power 2": (2.0, _torchaudio(f, 2.0, length)),
        "librosa, defaults": (2.0, _librosa(f, length)),
    }


def _ours(f: LogMel, n_iter: int, length: int) -> Inverter:
    invert = GriffinLim(f, n_iter)
    return lambda mel: invert(mel, length)


def _torchaudio(f: LogMel, power: float, length: int) -> Inverter:
    from torchaudio.transforms import GriffinLim as Phases
    from torchaudio.transforms import InverseMelScale

    bins = f.n_fft // 2 + 1
    magnitudes = InverseMelScale(
        bins, f.n_mels, f.sample_rate, f.f_min, norm="slaney", mel_scale="slaney"
    )
    phases = Phases(f.n_fft, ITERATIONS, hop_length=f.hop_length, power=power, length=length)

    def run(mel: Tensor) -> Tensor:
        torch.manual_seed(0)
        return phases(magnitudes(mel))

    return run


def _librosa(f: LogMel, length: int) -> Inverter:
    from librosa.feature.inverse import mel_to_audio

    def run(mel: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.from_numpy(
                    mel_to_audio(
                        m,
                        sr=f.sample_rate,
                        n_fft=f.n_fft,
                        hop_length=f.hop_length,
                        length=length,
                        fmin=f.f_min,
                    )
                )
                for m in mel.numpy()
            ]
        )

    return run


def _joined(waves: Iterator[Tensor], rate: int) -> Tensor:
    """3 s of sounds, one after the other, each at a peak of 0.5."""
    parts: list[Tensor] = []
    while sum(map(len, parts)) < SECONDS * rate:
        wave = next(waves)
        parts.append(wave * audio.gain(wave.abs().max(), 0.5))
    return torch.cat(parts)[: SECONDS * rate]


def _loudest(wave: Tensor, length: int) -> Tensor:
    """The second-by-second loudest part of a recording, at a peak of 0.5."""
    starts = range(0, max(len(wave) - length, 0) + 1, length // SECONDS)
    parts = [audio.fit_length(wave[s:], length, "start") for s in starts]
    part = max(parts, key=lambda p: float(p.square().sum()))
    return part * audio.gain(part.abs().max(), 0.5)
