"""How a sampler and a model fare: convergence of chains, a trace of them, log Z by annealing.

convergence    ESS of bulk, tails and mean; R-hat; standard error of a mean; autocorrelation
trace          energies and acceptance of a run of `sample`
annealing      log Z, with the bounds that hold
"""

from __future__ import annotations

__all__ = [
    "bulk_ess",
    "tail_ess",
    "mean_ess",
    "r_hat",
    "mcse_mean",
    "autocorrelation",
    "Trace",
    "TraceSummary",
    "Convergence",
    "ais",
    "AnnealedLogZ",
    "Base",
    "tuned_mala",
    "LogZ",
    "annealed_log_z",
]

from sance_audio.diagnostics.annealing import LogZ, ais, annealed_log_z
from sance_audio.diagnostics.bounds import AnnealedLogZ
from sance_audio.diagnostics.convergence import (
    autocorrelation,
    bulk_ess,
    mcse_mean,
    mean_ess,
    r_hat,
    tail_ess,
)
from sance_audio.diagnostics.path import Base, tuned_mala
from sance_audio.diagnostics.trace import Convergence, Trace, TraceSummary
