r"""Markov chain samplers of `p(x) = exp(-E(x)) / Z`, and the engine that runs them.

interface    what a sampler is: `init` and `step`
langevin     Langevin; ReferenceLangevin, exact in the Gaussian part, with a Metropolis form
metropolis   MALA and HMC
tempering    annealing over temperatures and noise levels, replica exchange
warmup       step sizes by dual averaging
engine       `sample`: many chains, many steps, in chunks
paths        eager, compiled or graph-captured steps, chosen by measurement
"""

from sance_audio.samplers.engine import sample
from sance_audio.samplers.interface import (
    Generators,
    Info,
    Sampler,
    SamplingError,
    SamplingWarning,
    State,
    StepSized,
    clip_seeds,
    randn,
)
from sance_audio.samplers.langevin import (
    Langevin,
    ReferenceLangevin,
    ReferencePreconditioner,
)
from sance_audio.samplers.levels import descend, recover
from sance_audio.samplers.metropolis import HMC, MALA
from sance_audio.samplers.paths import Compute, choose, timed
from sance_audio.samplers.tempering import Annealed, ReplicaExchange, anneal
from sance_audio.samplers.warmup import warm_up

__all__ = [
    "Langevin",
    "ReferenceLangevin",
    "ReferencePreconditioner",
    "MALA",
    "HMC",
    "Annealed",
    "ReplicaExchange",
    "sample",
    "descend",
    "recover",
    "anneal",
    "warm_up",
    "Compute",
    "choose",
    "timed",
    "State",
    "Info",
    "Sampler",
    "StepSized",
    "Generators",
    "SamplingError",
    "SamplingWarning",
    "clip_seeds",
    "randn",
]
