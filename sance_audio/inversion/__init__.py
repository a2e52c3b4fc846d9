"""From magnitudes to waveforms without a vocoder.

`griffin_lim` states the algorithm for mels, `linear` for linear magnitudes, `frames` the geometry
and how iterations are chained, `pulls` the gains, `inverter` what both share.
"""

from sance_audio.inversion.frames import Frames
from sance_audio.inversion.griffin_lim import (
    GriffinLim,
    Inversion,
    griffin_lim,
    mel_residual,
    spectral_convergence,
)
from sance_audio.inversion.inverter import QUALITY, iterations
from sance_audio.inversion.linear import LinearGriffinLim, linear_griffin_lim

__all__ = [
    "QUALITY",
    "Frames",
    "GriffinLim",
    "Inversion",
    "LinearGriffinLim",
    "griffin_lim",
    "iterations",
    "linear_griffin_lim",
    "mel_residual",
    "spectral_convergence",
]
