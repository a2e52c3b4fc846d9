"""Does `score_map` point at the fault? Cells inside planted rectangles against all others.

    python -m benchmarks.maps

Fans, pumps and valves of `synth_machine`: 20 recordings of 6 clips fit and calibrate, 10 others
are judged: clips with each fault in turn, and clips in order with a burst of noise added, 12 dB
above the clip's own level in its band. AUC over the cells of a clip, mean over clips; and the
share of cells of the clips in order that are flagged.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from sance_audio import EnergyDetector
from sance_audio.datasets import machines
from sance_audio.detection.regions import ScoreMap

RATE = machines.SAMPLE_RATE
Rectangle = tuple[float, float, float, float]
"""Start and end in seconds, low and high in Hz."""


def burst(wave: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Rectangle]:
    """A clip with a second of noise, an octave wide, 12 dB above its level there."""
    low, start = float(rng.uniform(300, 3500)), float(rng.uniform(0.5, 3.5))
    frequency = np.fft.rfftfreq(len(wave), 1 / RATE)
    band = (frequency >= low) & (frequency <= 2 * low)
    own = np.fft.irfft(np.fft.rfft(wave) * band, len(wave))
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(len(wave))) * band, len(wave))
    t = np.arange(len(wave)) / RATE
    noise *= (t >= start) & (t < start + 1)
    gain = 10 ** (12 / 20) * own.std() / noise[(t >= start) & (t < start + 1)].std()
    return (wave + gain * noise).astype(np.float32), (start, start + 1, low, 2 * low)


def auc(found: ScoreMap, rectangles: list[Rectangle]) -> float:
    """Of cells inside any rectangle against all others."""
    inside = np.zeros(found.score.shape, bool)
    for start, end, low, high in rectangles:
        time = (found.seconds >= start) & (found.seconds <= end)
        inside |= ((found.hertz >= low) & (found.hertz <= high))[:, None] & time[None]
    return float(roc_auc_score(inside.ravel(), found.score.ravel())) if inside.any() else np.nan


def wave_of(clip: machines.MachineClip) -> np.ndarray:
    return clip.source.load().waveform.numpy()


def main() -> None:
    torch.set_num_threads(1)
    print(
        "| machine | its faults | bursts | flagged at p <= .05 | at .10 |\n|---|---|---|---|---|"
    )
    for kind in machines.KINDS:
        train = machines.normals(kind, range(20), 6)
        detector = EnergyDetector(alpha=0.2).fit(
            [(wave_of(c), RATE) for c in train], groups=[c.group for c in train]
        )
        rng, faults, bursts, flagged = np.random.default_rng(0), [], [], []
        for clip in machines.faulty(kind, range(30, 40), 3):
            assert isinstance(clip.source, machines.Sound)
            patches = [(p.start, p.end, p.low, p.high) for p in clip.source.patches]
            faults.append(auc(detector.score_map((wave_of(clip), RATE)), patches))
        for clip in machines.normals(kind, range(30, 40), 2):
            wave, rectangle = burst(wave_of(clip), rng)
            bursts.append(auc(detector.score_map((wave, RATE)), [rectangle]))
            p = detector.score_map((wave_of(clip), RATE)).p_value
            flagged.append([float((p <= alpha).mean()) for alpha in (0.05, 0.10)])
        shares = " | ".join(f"{share:.3f}" for share in np.mean(flagged, 0))
        print(f"| {kind} | {np.nanmean(faults):.3f} | {np.mean(bursts):.3f} | {shares} |")


if __name__ == "__main__":
    main()
