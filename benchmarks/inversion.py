"""Mel magnitude to waveform: the joint iteration against torchaudio's two steps, one thread.

The sounds are synthesised drums, so that anyone can run it; time and log-mel error in one table.
"""

from __future__ import annotations

import math

import torch

from benchmarks.timing import alternate, table
from sance_audio import GriffinLim, LogMel
from sance_audio.datasets import drums


def log_mel_error(features: LogMel, mel: torch.Tensor, wave: torch.Tensor) -> float:
    """Mean absolute error in dB over cells within 60 dB of each clip's peak."""
    active = mel > 1e-3 * mel.amax((1, 2), keepdim=True)
    again = features.mel(wave)[..., : mel.shape[2]]
    error = (again.clamp_min(1e-6) / mel.clamp_min(1e-6)).log().abs() * 20 / math.log(10)
    return float((error * active).sum() / active.sum())


def main(clips: int = 12) -> None:
    import torchaudio

    torch.set_num_threads(1)
    features = LogMel(drums.SAMPLE_RATE, n_fft=512, hop_length=128, n_mels=64, f_min=20.0)
    kinds = [drums.LABELS[i % len(drums.LABELS)] for i in range(clips)]
    mel = features.mel(torch.stack([drums.synthesise(k, i) for i, k in enumerate(kinds)]))
    magnitude = torchaudio.transforms.InverseMelScale(
        257, 64, drums.SAMPLE_RATE, f_min=20.0, norm="slaney", mel_scale="slaney"
    )
    phase = torchaudio.transforms.GriffinLim(512, n_iter=32, hop_length=128, power=1.0)
    contestants = {
        "sance_audio, 32 iterations": lambda: GriffinLim(features, 32)(mel),
        "sance_audio, 12 iterations": lambda: GriffinLim(features, 12)(mel),
        "torchaudio InverseMelScale + GriffinLim": lambda: phase(magnitude(mel)),
    }
    length = clips * drums.LENGTH / drums.SAMPLE_RATE
    table("Inversion, drums at 16 kHz", alternate(contestants), length, "s/s")
    for name, run in contestants.items():
        print(f"{name:44}{log_mel_error(features, mel, run()):9.2f} dB log-mel error")


if __name__ == "__main__":
    main()
