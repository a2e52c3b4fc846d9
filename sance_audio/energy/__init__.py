r"""What an energy is, how the parts of one go together, and energies made of energies."""

from sance_audio.energy.algebra import (
    FixedRegion,
    Guided,
    LowPrecision,
    Marginal,
    Mixture,
    Observed,
    Sum,
)
from sance_audio.energy.interface import Energy, rows_of, value_and_grad
from sance_audio.energy.levels import RecoveryEnergy, level
from sance_audio.energy.referenced import EnergyModel, GivenEnergy, LogProb, ReferencedEnergy

__all__ = [
    "Energy",
    "EnergyModel",
    "ReferencedEnergy",
    "GivenEnergy",
    "RecoveryEnergy",
    "level",
    "LogProb",
    "Sum",
    "Mixture",
    "Marginal",
    "Guided",
    "FixedRegion",
    "Observed",
    "LowPrecision",
    "value_and_grad",
    "rows_of",
]
