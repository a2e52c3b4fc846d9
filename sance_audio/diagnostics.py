r"""How a run fares: the log-partition ledger, and log Z by annealed importance sampling.

    log Z_theta / Z_k = log E_k[exp(E_k - E_theta)]

estimated on the noise pool just before each refresh and summed from the reference, whose log Z is 0. Its errors add up:
per refresh a bias of about `-(N/ESS - 1) / (2N)` and a standard error of `sqrt((N/ESS - 1) / N)` for independent samples,
and chains that lag behind the snapshot make it *under*state log Z, hence overstate likelihoods. It is a health figure. What
a model is exported with comes from annealed importance sampling.

References:
    Annealed importance sampling (Neal, 2001)
    Accurate and conservative estimates of MRF log-likelihood using reverse annealing (Burda, Grosse & Salakhutdinov, 2015)
"""

from __future__ import annotations

__all__ = ["Ledger", "LogZ", "annealed_log_z"]

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sance_audio.chunks import run_chunks, slices
from sance_audio.divergences import effective_sample_size
from sance_audio.energy import GivenEnergy, ReferencedEnergy
from sance_audio.samplers import ReferenceLangevin


@dataclass
class Ledger:
    """Running estimate of log Z_theta - log Z_0, averaged over components."""

    log_z: float = 0.0
    bias: float = 0.0
    variance: float = 0.0
    refreshes: int = 0
    ess: float = field(default=1.0)
    """ESS / N of the last interval."""

    def enter(self, log_ratio: Tensor) -> None:
        """Close an interval: `log_ratio` is `E_k - E_theta` over the pool of N samples, any shape."""
        h = log_ratio.flatten().double()
        n = h.numel()
        self.ess = float(effective_sample_size(h)) / n
        excess = (1 / self.ess - 1) / n
        self.log_z += float(h.logsumexp(0)) - math.log(n)
        self.bias -= excess / 2
        self.variance += excess
        self.refreshes += 1

    @property
    def standard_error(self) -> float:
        """Of `log_z`, for independent samples; chains that lag add an error that this does not show."""
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class LogZ:
    """log Z_theta - log Z_0 per component, in nats."""

    value: Tensor
    """`(C,)`."""
    standard_error: Tensor
    """`(C,)`."""
    ess: Tensor
    """`(C,)`, effective sample size of the weights over their number."""


@torch.no_grad()
def annealed_log_z(
    energy: ReferencedEnergy,
    shape: tuple[int, int],
    *,
    chains: int = 16,
    steps: int = 100,
    step_size: float = 0.1,
    cap: float = 1.0,
    starts: Tensor | None = None,
    generator: torch.Generator,
) -> LogZ:
    """log Z_theta / Z_0 of each component by annealing F from 0 to 1, with Metropolis-adjusted steps.

    Forwards, from exact samples of the reference, exp of the estimate is unbiased for Z: a stochastic *lower* bound on
    log Z. Backwards, from samples of the model given as `starts`, it is a stochastic upper bound as far as those samples
    are exact. Where the two agree, log Z is known.

    Arguments:
        energy: The model.
        shape: `(M, T)`.
        chains: Chains per component (forwards).
        steps: Temperatures, equally spaced.
        step_size: eps of the adjusted `ReferenceLangevin`, one step per temperature.
        cap: Its cap.
        starts: Samples of the model `(n, C, 1, M, T)`, to go backwards from.
        generator: Of everything random.
    """
    reference: Any = energy.reference
    count, device = reference.n_components, reference.mean.device
    backwards = starts is not None
    if starts is None:
        c = torch.arange(count, device=device).repeat(chains)
        x0 = reference.sample(c, generator).view(-1, 1, *shape)
    else:
        chains = len(starts)
        c = torch.arange(count, device=device).repeat(chains)
        x0 = starts.flatten(0, 1)
    parts = slices(len(c), 16)
    seeds = torch.randint(2**62, (len(parts),), generator=generator, device=generator.device).tolist()
    schedule = torch.linspace(1, 0, steps + 1) if backwards else torch.linspace(0, 1, steps + 1)

    def anneal(part: slice) -> Tensor:
        own = torch.Generator(device).manual_seed(seeds[part.start // 16])
        sampler = ReferenceLangevin(reference.given(c[part]), step_size, cap, adjusted=True)
        state = sampler.init(GivenEnergy(energy, c[part]), x0[part])  # F and its gradient at full scale
        log_weight = torch.zeros(len(c[part]), dtype=torch.float64, device=device)
        for now, then in pairwise(schedule.tolist()):
            log_weight -= (then - now) * state.value
            if then == float(schedule[-1]):
                break  # a move at the end would change no weight
            scaled = state._replace(value=then * state.value, grad=then * state.grad)
            moved, _ = sampler.step(GivenEnergy(energy, c[part], then), scaled, own)
            state = moved._replace(value=moved.value / then, grad=moved.grad / then)
        return log_weight

    weights = torch.cat(run_chunks(anneal, parts, parallel=device.type == "cpu")).view(chains, count)
    ess = effective_sample_size(weights.T)
    value = weights.logsumexp(0) - math.log(chains)
    error = ((chains / ess - 1) / chains).sqrt()
    return LogZ((-value if backwards else value).float(), error.float(), (ess / chains).float())
