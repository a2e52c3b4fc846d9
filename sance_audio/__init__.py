"""Energy-based models of sound: generate clips, score them, see where they are odd.

>>> import sance_audio
>>> sance_audio.LogMel(sample_rate=8000, n_fft=512, hop_length=128, n_mels=64).n_mels
64

The names below are the public interface. Each is imported when it is first used, so that importing
the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sance_audio import divergences
    from sance_audio.detection import EnergyDetector
    from sance_audio.features import LogMel
    from sance_audio.inversion import GriffinLim
    from sance_audio.model import AudioEBM
    from sance_audio.noise import SelfNoise
    from sance_audio.samplers import HMC, MALA, Langevin, ReferenceLangevin, sample
    from sance_audio.training import TrainConfig, train

__all__ = [
    "AudioEBM",
    "EnergyDetector",
    "LogMel",
    "GriffinLim",
    "Langevin",
    "ReferenceLangevin",
    "MALA",
    "HMC",
    "sample",
    "divergences",
    "SelfNoise",
    "TrainConfig",
    "train",
]

_HOME = {
    "AudioEBM": "model",
    "EnergyDetector": "detection",
    "LogMel": "features",
    "GriffinLim": "inversion",
    "Langevin": "samplers",
    "ReferenceLangevin": "samplers",
    "MALA": "samplers",
    "HMC": "samplers",
    "sample": "samplers",
    "SelfNoise": "noise",
    "TrainConfig": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name == "divergences":
        return import_module("sance_audio.divergences")
    if name in _HOME:
        return getattr(import_module(f"sance_audio.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sance_audio' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
