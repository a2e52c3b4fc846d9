r"""Step sizes of Metropolis-adjusted samplers, found by dual averaging.

    log eps_t = log(10 eps_0) - sqrt(t) / gamma * mean_{s <= t} (target - a_s)

a_s the acceptance of step s, averaged over chains; the result is a weighted mean of log eps_t that
leans on the last steps.

Reference:
    The No-U-Turn sampler (Hoffman & Gelman, 2014), section 3.2
"""

from __future__ import annotations

__all__ = ["warm_up"]

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from sance_audio.energy import Energy
from sance_audio.samplers.engine import check_chains, start
from sance_audio.samplers.interface import Generators, SamplingError, StepSized

GAMMA, T0, KAPPA = 0.05, 10.0, 0.75
"""Hoffman & Gelman's constants: shrinkage, how little the first steps count, forgetting."""
STUCK = 0.02
"""Mean acceptance of the last half of the steps, below which no step size was found."""

S = TypeVar("S", bound=StepSized)


@torch.no_grad()
def warm_up(
    energy: Energy,
    sampler: S,
    x0: Tensor,
    steps: int,
    *,
    generator: Generators,
    target: float | None = None,
) -> tuple[S, Tensor]:
    """The sampler with a step size at which it accepts as often as it should, and where the chains
    are then.

    The step size changes on the way, so that these steps are no samples; start from where they
    end. Nothing waits for the device before the last step.

    Arguments:
        energy: See `sample`.
        sampler: MALA, HMC, the adjusted ReferenceLangevin, or replicas of one; its step size is
            where the search begins.
        x0: Chains `(B, ...)`, run in one batch.
        steps: Steps, some 100 at least.
        generator: One for all, or one per chain.
        target: Mean acceptance to aim at; the sampler's own when None (MALA .574, HMC .8).

    Raises:
        ValueError: an unadjusted sampler, a scheduled step size, a target outside (0, 1).
        SamplingError: hardly a proposal was accepted at any step size tried.
    """
    if sampler.target >= 1:
        raise ValueError(f"{type(sampler).__name__} rejects nothing: there is nothing to tune")
    if callable(sampler.step_size) or isinstance(sampler.step_size, Tensor):
        raise ValueError("warm_up begins from one number as step_size, found a schedule or tensor")
    aim = sampler.target if target is None else target
    if not 0 < aim < 1:
        raise ValueError(f"target must lie between 0 and 1, found {target}")
    check_chains(sampler, x0, steps, generator)
    middle = math.log(10 * sampler.step_size)
    state: Any = start(energy, sampler, x0)
    like = state.value.double()
    error, mean = like.new_zeros(()), like.new_zeros(())
    late = like.new_zeros(())
    log_eps = like.new_full((), math.log(sampler.step_size))
    for t in range(1, steps + 1):
        now = sampler.with_step_size(log_eps.exp().to(x0.dtype))
        state, info = now.step(energy, state, generator)
        accepted = info.accepted.double().mean()
        error = error + ((aim - accepted) - error) / (t + T0)
        log_eps = middle - math.sqrt(t) / GAMMA * error
        mean = mean + t**-KAPPA * (log_eps - mean)
        late = late + accepted if 2 * t > steps else late
    if not float(late) / (steps - steps // 2) > STUCK:
        raise SamplingError(
            f"warm-up: of {steps} steps the last half accepted {float(late) / (steps / 2):.1e} of "
            f"the proposals, the step size having come to {float(mean.exp()):.1e}: is the energy "
            f"finite and continuous at x0? more steps, or a start nearer to the target, may help"
        )
    return sampler.with_step_size(float(mean.exp())), state.x
