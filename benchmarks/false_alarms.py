"""Does the false-alarm rate hold? 100 random splits of normal recordings per corpus.

    python -m benchmarks.false_alarms [CORPUS ...] [--data DIR]

Normals are split by recording into clips that are fitted, at least 100 that calibrate, and the
rest, which are new: what share of those has p <= alpha? Five fits, 20 splits of the other
recordings each. All digits, or all classes of ESC-10, are one normal set; machines are taken kind
by kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sance_audio import EnergyDetector, audio
from sance_audio.datasets import esc50, fsdd, machines
from sance_audio.detection.conformal import Calibration

ALPHAS = (0.05, 0.10)
FITS, SPLITS = 5, 20
CALIBRATING = 100
"""Clips that calibrate, at least."""
Normals = tuple[list[Any], np.ndarray]
"""Clips, and the recording of each."""


def digits(data: Path) -> dict[str, Normals]:
    clips = [clip.source.load() for clip in fsdd.prepare(data / "fsdd").clips[::2]]
    pairs = [(clip.waveform.numpy(), clip.sample_rate) for clip in clips]
    return {"FSDD, all digits": (pairs, np.arange(len(pairs)))}


def scenes(data: Path) -> dict[str, Normals]:
    clips = esc50.listing(data / "esc10", esc10=True)
    rate = 16_000
    sounds = (audio.resample(s.waveform, s.sample_rate, rate) for s in map(_load, clips))
    pairs = [(wave.numpy(), rate) for wave in sounds]
    return {"ESC-10, all classes": (pairs, np.array([clip.group for clip in clips]))}


def machines_once(data: Path) -> dict[str, Normals]:
    return _machines(recordings=180, takes=1)


def machines_again(data: Path) -> dict[str, Normals]:
    return _machines(recordings=60, takes=4)


def _machines(recordings: int, takes: int) -> dict[str, Normals]:
    out: dict[str, Normals] = {}
    for kind in machines.KINDS:
        clips = machines.normals(kind, range(recordings), takes)
        pairs = [(c.source.load().waveform.numpy(), machines.SAMPLE_RATE) for c in clips]
        out[f"synth_machine, {kind}"] = pairs, np.array([clip.group for clip in clips])
    return out


CORPORA: dict[str, Callable[[Path], dict[str, Normals]]] = {
    "fsdd": digits,
    "esc10": scenes,
    "synth_machine": machines_once,
    "synth_machine_takes": machines_again,
}


def rates(clips: list[Any], groups: np.ndarray) -> np.ndarray:
    """Shares of new clips that are flagged `(FITS * SPLITS, alphas)`."""
    found, names = [], np.unique(groups)
    clips_each = len(clips) / len(names)
    calibrating = int(np.ceil(CALIBRATING / clips_each))
    fitted = min(len(names) // 3, 300)
    for seed in range(FITS):
        rng = np.random.default_rng(seed)
        order = rng.permutation(names)
        inside = np.isin(groups, order[:fitted])
        detector = EnergyDetector(seed=seed, calibration=0)
        detector.fit([c for c, i in zip(clips, inside, strict=True) if i], groups=groups[inside])
        score = detector.anomaly_score([c for c, i in zip(clips, inside, strict=True) if not i])
        own = groups[~inside]
        for _ in range(SPLITS):
            held = np.isin(own, rng.permutation(np.unique(own))[:calibrating])
            p = Calibration.of(score[held], own[held]).p_value(score[~held])
            found.append([float((p <= alpha + 1e-9).mean()) for alpha in ALPHAS])
        print(f"fit {seed}: {np.mean(found[-SPLITS:], 0).round(3)}", flush=True)
    return np.array(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("corpora", nargs="*", help=", ".join(CORPORA))
    parser.add_argument("--data", type=Path, default=Path("data"), help="with fsdd/ and esc10/")
    args = parser.parse_args(arguments)
    for name in args.corpora or CORPORA:
        if name not in CORPORA:
            parser.error(f"{name}: there are {', '.join(CORPORA)}")
        for title, (clips, groups) in CORPORA[name](args.data).items():
            share = rates(clips, groups)
            spread = share.reshape(FITS, SPLITS, -1).mean(1).std(0, ddof=1) / FITS**0.5
            for alpha, mean, error in zip(ALPHAS, share.mean(0), spread, strict=True):
                print(
                    f"| {title} | {len(np.unique(groups))} recordings, {len(clips)} clips | "
                    f"{alpha:.2f} | {mean:.3f} | {error:.3f} |",
                    flush=True,
                )


def _load(clip: Any) -> Any:
    return clip.source.load()


if __name__ == "__main__":
    main()
