r"""How a run fares: the log-partition ledger, and log Z by annealed importance sampling.

    log Z_theta / Z_k = log E_k[exp(E_k - E_theta)]

estimated on the noise pool just before each refresh and summed from the reference, whose log Z is
0. Its errors add up: per refresh a bias of about `-(N/ESS - 1) / (2N)` and a standard error of
`sqrt((N/ESS - 1) / N)` for independent samples, and chains that lag behind the snapshot add an
error at every refresh, which the standard error does not show. It is a health figure of the raw
weights. What a model is exported with comes from annealed importance sampling on its averaged
weights.

References:
    Annealed importance sampling (Neal, 2001)
    Accurate and conservative estimates of MRF log-likelihood using reverse annealing
        (Burda, Grosse & Salakhutdinov, 2015)
"""

from __future__ import annotations

__all__ = ["Ledger", "LogZ", "annealed_log_z", "relative_ess"]

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sance_audio.chunks import chunk_size, run_chunks, slices
from sance_audio.divergences import effective_sample_size
from sance_audio.energy import GivenEnergy, ReferencedEnergy
from sance_audio.samplers import ReferenceLangevin, State


@dataclass
class Ledger:
    """Running estimate of log Z_theta - log Z_0, the mean over components."""

    log_z: float = 0.0
    bias: float = 0.0
    variance: float = 0.0
    refreshes: int = 0
    ess: float = field(default=1.0)
    """ESS / N of the last interval."""

    def enter(self, log_ratio: Tensor) -> None:
        """Close an interval.

        Arguments:
            log_ratio: `E_k - E_theta` over the pool, `(n, C)`: n samples of each component.
        """
        h = log_ratio.double()
        n = len(h)
        self.ess = relative_ess(h)
        excess = (1 / self.ess - 1) / n
        self.log_z += float((h.logsumexp(0) - math.log(n)).mean())
        self.bias -= excess / 2
        self.variance += excess / h.shape[1]
        self.refreshes += 1

    @property
    def standard_error(self) -> float:
        """Of `log_z`, for independent samples; chains that lag add an error that this does not
        show.
        """
        return math.sqrt(self.variance)


def relative_ess(log_ratio: Tensor) -> float:
    """ESS / N of weights `exp(h)`, h `(n, C)`, each component's own mean weight taken off.

    With one sample a component (n = 1) there is no mean to tell from the sample: the components
    are then taken together, which is pessimistic by the spread of their offsets.
    """
    n = len(log_ratio)
    h = log_ratio if n == 1 else log_ratio - log_ratio.logsumexp(0)
    return float(effective_sample_size(h.flatten())) / h.numel()


@dataclass(frozen=True)
class LogZ:
    """log Z_theta - log Z_0 per component, in nats, from both ends."""

    forward: Tensor
    """`(C,)`: exp of it is unbiased for Z, so it tends to lie below log Z."""
    reverse: Tensor
    """`(C,)`: lies above log Z as far as the chains it starts from are samples of the model."""
    standard_error: Tensor
    """`(C,)`, of `forward`."""
    ess: Tensor
    """`(C,)`, effective sample size of the forward weights over their number."""
    accepted: float
    """Mean acceptance of the Metropolis steps."""


@torch.no_grad()
def annealed_log_z(
    energy: ReferencedEnergy,
    shape: tuple[int, int],
    *,
    chains: int = 8,
    steps: int = 100,
    settle: int = 100,
    step_size: float = 0.1,
    cap: float = 1.0,
    generator: torch.Generator,
) -> LogZ:
    """log Z_theta / Z_0 of each component by annealing F from 0 to 1 and back, with
    Metropolis-adjusted steps.

    Forwards from exact samples of the reference, then `settle` steps on the model, then backwards
    from there. Where the two estimates agree, log Z is known; a likelihood is stated
    conservatively with the larger one.

    Arguments:
        energy: The model.
        shape: `(M, T)`.
        chains: Chains per component.
        steps: Temperatures each way, equally spaced, one step each.
        settle: Steps at full scale between the two.
        step_size: eps of the adjusted `ReferenceLangevin`.
        cap: Its cap.
        generator: Of everything random.
    """
    base: Any = energy.base
    count, device = base.n_components, base.mean.device
    size = chunk_size(device)
    c = torch.arange(count, device=device).repeat(chains)
    x0 = base.sample(c, generator).view(-1, 1, *shape)
    parts = slices(len(c), size)
    seeds = torch.randint(
        2**62, (len(parts),), generator=generator, device=generator.device
    ).tolist()
    rising = torch.linspace(0, 1, steps + 1).tolist()

    def anneal(part: slice) -> tuple[Tensor, Tensor, Tensor]:
        own = torch.Generator(device).manual_seed(seeds[part.start // size])
        sampler = ReferenceLangevin(base.given(c[part]), step_size, cap, adjusted=True)
        state = sampler.init(
            GivenEnergy(energy, c[part]), x0[part]
        )  # F and its gradient, at full scale
        accepted = []

        def move(state: State, scale: float) -> State:
            """One step on the reference plus scale F, 0 < scale; F stays cached at full scale."""
            scaled = state._replace(value=scale * state.value, grad=scale * state.grad)
            moved, info = sampler.step(GivenEnergy(energy, c[part], scale), scaled, own)
            accepted.append(info.accepted.mean())
            return moved._replace(value=moved.value / scale, grad=moved.grad / scale)

        def walk(state: State, schedule: list[float]) -> tuple[State, Tensor]:
            """Along the temperatures, a step after each change but the last; and the log weights
            gathered.
            """
            log_weight = torch.zeros(len(c[part]), dtype=torch.float64, device=device)
            for i, (now, then) in enumerate(pairwise(schedule), 2):
                log_weight -= (then - now) * state.value
                state = move(state, then) if i < len(schedule) else state
            return state, log_weight

        state, up = walk(state, rising)
        for _ in range(settle):
            state = move(state, 1.0)
        _, down = walk(state, rising[::-1])
        return up, down, torch.stack(accepted).mean()

    results = run_chunks(anneal, parts, parallel=device.type == "cpu")
    up, down = (torch.cat([r[i] for r in results]).view(chains, count) for i in (0, 1))
    ess = effective_sample_size(up.T)
    return LogZ(
        (up.logsumexp(0) - math.log(chains)).float(),
        (math.log(chains) - down.logsumexp(0)).float(),
        ((chains / ess - 1) / chains).clamp_min(0).sqrt().float(),
        (ess / chains).float(),
        float(torch.stack([r[2] for r in results]).mean()),
    )
