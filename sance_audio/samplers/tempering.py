r"""Samplers over temperatures and noise levels.

    Annealed          one sampler, on beta(t) E: a schedule of inverse temperatures
    anneal            one stage after the other, each with its own energy and sampler: noise levels
    ReplicaExchange   R copies of each chain at R inverse temperatures, which exchange states

beta scales the part of the energy that the sampler differentiates: all of E, or with
`ReferenceLangevin` the network's part F alone, so that beta = 0 is the reference and 1 the model.
States cache value and gradient at beta = 1: a change of temperature costs no evaluation.

References:
    Simulated annealing (Kirkpatrick, Gelatt & Vecchi, 1983)
    Generative modeling by estimating gradients of the data distribution (Song & Ermon, 2019)
    Replica Monte Carlo simulation of spin glasses (Swendsen & Wang, 1986)
    Non-reversible parallel tempering (Syed, Bouchard-Cote, Deligiannidis & Doucet, 2022)
"""

from __future__ import annotations

__all__ = ["Scaled", "Annealed", "anneal", "ReplicaExchange", "ReplicaState"]

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sance_audio.energy import Energy, rows_of
from sance_audio.samplers.engine import sample
from sance_audio.samplers.interface import (
    Generators,
    Info,
    Noise,
    State,
    StepSized,
    log_uniform,
    per_row,
)

Beta = float | Tensor


class Scaled:
    """`beta E`, or the part of E that a sampler differentiates: whichever a sampler asks for.

    Arguments:
        part: `(B, ...) -> (B,)`.
        beta: Inverse temperature: a number, or one a chain `(B,)`.
    """

    def __init__(self, part: Energy, beta: Beta):
        self.part, self.beta = part, beta

    def __call__(self, x: Tensor) -> Tensor:
        return self.beta * self.part(x)

    learnt = __call__


def _scale(state: State, beta: Beta) -> State:
    return state._replace(value=beta * state.value, grad=per_row(beta, state.grad) * state.grad)


def _moved(sampler: StepSized, energy: Any, state: State, beta: Beta, noise: Noise) -> Any:
    """A step of the sampler on `beta E`, from and to a state cached at beta = 1."""
    scaled = _scale(state, beta)
    moved, info = sampler.move(Scaled(sampler.part(energy), beta), scaled, noise)
    back = _scale(moved, 1 / beta)  # what did not move keeps its cached numbers to the bit
    value = torch.where(moved.value == scaled.value, state.value, back.value)
    grad = torch.where(moved.grad == scaled.grad, state.grad, back.grad)
    return moved._replace(value=value, grad=grad), info


class Annealed(StepSized):
    """A sampler on `beta(t) E`, t the number of steps taken.

    Arguments:
        sampler: Any of this package but itself and `ReplicaExchange`.
        schedule: Inverse temperature of step t = 0, 1, ...: any callable giving a number above 0.
    """

    def __init__(self, sampler: StepSized, schedule: Callable[[int], float]):
        super().__init__(sampler.step_size)
        _check_plain(sampler, "Annealed")
        self.sampler, self.schedule = sampler, schedule
        self.target = sampler.target

    def init(self, energy: Energy, x: Tensor) -> State:
        return self.sampler.init(energy, x)

    def draw(self, x: Tensor, step: int, generator: Generators) -> Noise:
        beta = float(self.schedule(step))
        if not beta > 0:
            raise ValueError(f"schedule({step}) must be positive, found {beta}")
        noise = self.sampler.draw(x, step, generator)
        return (*noise, torch.full((), beta, dtype=x.dtype, device=x.device))

    def move(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        return _moved(self.sampler, energy, state, noise[-1], noise[:-1])

    def with_step_size(self, step_size: Any) -> Annealed:
        return Annealed(self.sampler.with_step_size(step_size), self.schedule)

    def rows(self, part: Any) -> Annealed:
        return Annealed(self.sampler.rows(part), self.schedule)


def anneal(
    stages: Iterable[tuple[Energy, Any, int]], x0: Tensor, *, generator: Generators, **kwargs: Any
) -> Tensor:
    """Run chains x0 `(B, ...)` through stages (energy, sampler, steps), each from where the last
    one ended: annealed Langevin dynamics over noise levels is

        anneal(((energy_at(s), Langevin(eps * s**2), 20) for s in levels), x0, generator=g)

    Arguments:
        stages: At least one.
        kwargs: See `sample`.

    Returns:
        `(B, ...)`.
    """
    x, count = x0, 0
    for energy, sampler, steps in stages:
        x, count = sample(energy, sampler, x, steps, generator=generator, **kwargs), count + 1
    if not count:
        raise ValueError("anneal needs at least one stage (energy, sampler, steps), found none")
    return x


class ReplicaState(NamedTuple):
    """The chains of beta = 1, and all of them."""

    x: Tensor
    """`(B, ...)`, at beta = 1."""
    value: Tensor
    """`(B,)`."""
    grad: Tensor
    """`(B, ...)`."""
    step: int
    replicas: State
    """`(R B, ...)`, temperature by temperature, value and gradient at beta = 1."""
    sampler: StepSized
    """Of all replicas, but for its step size."""
    accepted: Tensor
    """`(R,)`, mean acceptance of the moves at each temperature, summed over the steps."""
    swaps: Tensor
    """`(R - 1,)`, mean probability with which neighbours exchanged their states, summed over the
    steps at which they could: every second one.
    """


class ReplicaExchange(StepSized):
    """Parallel tempering: R replicas of each chain at inverse temperatures 1 = beta_0 > beta_1 >
    ..., moved as one batch, one gradient of which is computed a step; then neighbours, even and
    odd pairs in turn, exchange their states with probability

        min(1, exp((beta_r - beta_s) (E_r - E_s)))

    Arguments:
        sampler: MALA, HMC or the adjusted ReferenceLangevin. Its step size is that of beta = 1;
            at others steps are larger by `beta ** -sampler.heat`: none with a reference, 1 / beta
            with MALA, its root with HMC.
        betas: Inverse temperatures, from 1 down, above 0.
    """

    def __init__(self, sampler: StepSized, betas: Sequence[float]):
        super().__init__(sampler.step_size)
        falling = all(a > b > 0 for a, b in pairwise(betas))
        if len(betas) < 2 or betas[0] != 1 or not falling:
            raise ValueError(f"betas must fall from 1 and stay above 0, found {tuple(betas)}")
        _check_plain(sampler, "ReplicaExchange")
        if sampler.target == 1:
            raise ValueError(
                f"replicas need a sampler that leaves its target invariant (MALA, HMC, "
                f"ReferenceLangevin(adjusted=True)), found {type(sampler).__name__}"
            )
        self.sampler, self.betas, self.target = sampler, tuple(betas), sampler.target
        self._cached: dict[Any, Tensor] = {}

    def init(self, energy: Energy, x: Tensor) -> ReplicaState:
        """All replicas of a chain start at the same x `(B, ...)`."""
        return self.start(energy, x.expand(len(self.betas), *x.shape))

    def start(self, energy: Energy, xs: Tensor) -> ReplicaState:
        """Replicas that start at xs `(R, B, ...)`, each where its temperature has it."""
        index, _ = self._index(xs[0])
        sampler = self.sampler.rows(index)
        replicas = sampler.init(rows_of(energy, index), xs.flatten(0, 1))
        zeros = xs.new_zeros(len(self.betas))
        return self._state(replicas, xs.shape[1], sampler, zeros, zeros[1:])

    def random(self, x: Tensor, generator: Generators) -> Noise:
        """For every replica in turn, then for the exchanges `(R, B)`."""
        draws = [self.sampler.random(x, generator) for _ in self.betas]
        own = tuple(torch.cat(parts) for parts in zip(*draws, strict=True))
        return (*own, torch.stack([log_uniform(x, generator) for _ in self.betas]))

    def draw(self, x: Tensor, step: int, generator: Generators) -> Noise:
        *noise, exchange = self.random(x, generator)
        parity = torch.full((), step % 2, dtype=torch.long, device=x.device)
        return (*noise, *self.scheduled(x, step), exchange, parity)

    def move(self, energy: Energy, state: ReplicaState, noise: Noise) -> tuple[ReplicaState, Info]:
        count, (index, beta) = len(state.x), self._index(state.x)
        eps = noise[-3] if callable(self.step_size) else self.step_size
        own = noise[:-3] if callable(self.step_size) else noise[:-2]
        sampler = state.sampler.with_step_size(self._widened(eps, beta))
        moved, info = _moved(sampler, rows_of(energy, index), state.replicas, beta, own)
        replicas, exchanged = self._exchange(moved, count, *noise[-2:])
        failed = None if info.failed is None else info.failed.view(-1, count).any(0)
        accepted = state.accepted + info.accepted.view(-1, count).mean(1)
        swaps = state.swaps + exchanged
        after = self._state(replicas, count, state.sampler, accepted, swaps)
        return after, Info(info.accepted[:count], failed)

    def _index(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the B chains of x each replica is of, and its inverse temperature, `(R B,)`."""
        index = torch.arange(len(x), device=x.device).repeat(len(self.betas))
        return index, self._ladder(x).repeat_interleave(len(x))

    def _ladder(self, like: Tensor) -> Tensor:
        """The inverse temperatures `(R,)`, brought to a device once."""
        key = like.dtype, like.device
        if key not in self._cached:
            self._cached[key] = torch.tensor(self.betas, dtype=like.dtype, device=like.device)
        return self._cached[key]

    def _widened(self, eps: Any, beta: Tensor) -> Tensor:
        """Step sizes `(R B,)`."""
        if isinstance(eps, Tensor) and eps.ndim:
            eps = eps.repeat(len(self.betas))
        return eps * beta**-self.sampler.heat

    def _exchange(
        self, state: State, count: int, log_u: Tensor, parity: Tensor
    ) -> tuple[State, Tensor]:
        """Exchange the states of neighbours r, r + 1 with r of the given parity."""
        total = len(self.betas)
        ladder = torch.arange(total, device=state.x.device)
        first = (ladder % 2 == parity) & (ladder + 1 < total)
        up = torch.where(first, ladder + 1, ladder)
        second = torch.zeros_like(first)
        second[1:] = first[:-1]
        partner = torch.where(second, ladder - 1, up)
        beta, value = self._ladder(state.value), state.value.view(total, count)
        log_a = (beta - beta[partner])[:, None] * (value - value[partner])
        lower = torch.minimum(ladder, partner)
        accept = log_u[lower] < log_a  # both of a pair see the same numbers
        source = torch.where(accept, partner[:, None], ladder[:, None])  # itself, without partner
        index = (source * count + torch.arange(count, device=state.x.device)).flatten()
        chance = log_a.clamp_max(0).exp().nan_to_num(0.0)
        chance = torch.where(first[:, None], chance, 0.0).mean(1)[:-1]
        return State(state.x[index], state.value[index], state.grad[index], state.step), chance

    def _state(
        self, replicas: State, count: int, sampler: StepSized, accepted: Tensor, swaps: Tensor
    ) -> ReplicaState:
        x, value, grad, step = replicas
        own = x[:count], value[:count], grad[:count], step
        return ReplicaState(*own, replicas, sampler, accepted, swaps)

    def with_step_size(self, step_size: Any) -> ReplicaExchange:
        own = super().with_step_size(step_size)  # with the ladder that was brought to the device
        own.sampler = self.sampler.with_step_size(step_size)
        return own

    def rows(self, part: Any) -> ReplicaExchange:
        return ReplicaExchange(self.sampler.rows(part), self.betas)


def _check_plain(sampler: Any, name: str) -> None:
    if isinstance(sampler, (Annealed, ReplicaExchange)):
        raise ValueError(f"{name} cannot hold {type(sampler).__name__}: give it a plain sampler")
