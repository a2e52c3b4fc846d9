r"""Noise for noise-contrastive estimation: the model itself, frozen.

`p_k` is a static copy of the model, taken at refresh k; its samples are persistent Langevin chains
on its energy. Since the reference cancels in a difference of energies, only the network's part F
is copied:

    h(x | c) = log p_theta / p_k = F_k(x | c) - F_theta(x | c) - dlogZ_c
    dlogZ_c = log Z_theta,c / Z_k,c = log mean exp(F_k - F_theta)   over the pool; 0 at a refresh

Chains are pinned to components, as many for each, so that data and noise have one distribution of
conditions. Where several processes train one network, each has chains and a pool of its own, and
dlogZ is taken over all their pools.

References:
    Self-adapting noise-contrastive estimation for energy-based models (Xu, 2022), arXiv 2211.02650
    Training restricted Boltzmann machines using approximations to the likelihood gradient
        (Tieleman, 2008)
"""

from __future__ import annotations

__all__ = ["SelfNoise", "Draw"]

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sance_audio.chunks import chunk_size
from sance_audio.energy import GivenEnergy, ReferencedEnergy
from sance_audio.samplers import ReferenceLangevin, sample


class Draw(NamedTuple):
    """Noise samples, what they are conditioned on, and the frozen network's energy of them."""

    x: Tensor
    """`(B, 1, M, T)`."""
    c: Tensor
    """`(B,)`, components."""
    frozen: Tensor
    """`(B,)`, F_k(x | c)."""


class SelfNoise:
    """A frozen snapshot of an energy's network, with persistent chains and a pool of samples.

    Arguments:
        energy: The energy being trained; its reference is shared, its network copied.
        shape: `(M, T)` of a sample.
        per_component: Chains per component in one group; a group is one batch of noise.
        groups: Groups of persistent chains.
        pool: Groups advanced at a refresh, in turn, whose ends serve as noise until the next.
        steps: Langevin steps per refresh.
        step_size: eps of `ReferenceLangevin`.
        cap: Its cap.
        fresh: Probability that a chain starts again from the reference at a refresh.
        chunk: Chains of a chunk; `chunk_size` of the device when None.
        adjusted: Accept or reject each step (Metropolis).
        generator: Of the chains' starts: exact samples of the reference.
        gather: Joins a tensor of each process along the first dimension, given this process's;
            called by all of them at once. Left out, there is one process.
    """

    def __init__(
        self,
        energy: ReferencedEnergy,
        shape: tuple[int, int],
        *,
        per_component: int = 1,
        groups: int = 4,
        pool: int = 1,
        steps: int = 40,
        step_size: float = 0.1,
        cap: float = 1.0,
        fresh: float = 0.0,
        chunk: int | None = None,
        adjusted: bool = False,
        generator: torch.Generator,
        gather: Callable[[Tensor], Tensor] | None = None,
    ):
        if not 1 <= pool <= groups:
            raise ValueError(f"pool={pool} must lie between 1 and groups={groups}")
        if not 0 <= fresh <= 1:
            raise ValueError(f"fresh is a probability, found {fresh}")
        self.reference: Any = energy.reference
        self.frozen = ReferencedEnergy(energy.reference, copy.deepcopy(energy.network))
        self.frozen.network.requires_grad_(False).eval()
        self.steps, self.step_size, self.cap, self.fresh = steps, step_size, cap, fresh
        self.shape, self.gather, self.chunk = (1, *shape), gather, chunk
        self.adjusted = adjusted
        device = self.reference.mean.device
        self.c = torch.arange(self.reference.n_components, device=device).repeat(per_component)
        self.chains = torch.stack([self._start(generator) for _ in range(groups)])
        self.n_pool, self.turn = pool, 0
        self.pool_x = self.chains[:pool]
        self.pool_frozen = torch.zeros(pool, len(self.c), device=device)
        self.moved = 0.0
        """Root mean square distance that the chains covered in the last refresh."""

    def _start(self, generator: torch.Generator) -> Tensor:
        return self.reference.sample(self.c, generator).view(-1, *self.shape)

    @torch.no_grad()
    def refresh(self, network: nn.Module, generator: torch.Generator) -> None:
        """Copy `network` into the snapshot, advance the next groups of chains on it, make their
        ends the pool.
        """
        self.frozen.network.load_state_dict(network.state_dict())
        chosen = [(self.turn + i) % len(self.chains) for i in range(self.n_pool)]
        self.turn = (self.turn + self.n_pool) % len(self.chains)
        before = self.chains[chosen]
        if self.fresh > 0:
            again = (
                torch.rand(before.shape[:2], generator=generator, device=before.device)
                < self.fresh
            )
            new = torch.stack([self._start(generator) for _ in chosen])
            before = torch.where(again[..., None, None, None], new, before)
        c = self.c.repeat(self.n_pool)
        energy = GivenEnergy(self.frozen, c)
        sampler = ReferenceLangevin(
            self.reference.given(c), self.step_size, self.cap, adjusted=self.adjusted
        )
        count = -(-len(c) // (3 * (self.chunk or chunk_size(c.device)) // 2))
        after = sample(
            energy,
            sampler,
            before.flatten(0, 1),
            self.steps,
            generator=generator,
            chunk=-(-len(c) // count),
        )
        self.pool_frozen = energy.learnt(after).view(self.n_pool, -1)
        self.pool_x = after.view_as(before)
        self.chains[chosen] = self.pool_x
        self.moved = float((self.pool_x - before).square().mean().sqrt())

    def draw(self, nu: int, generator: torch.Generator) -> Draw:
        """`nu` batches of noise from the pool, `(nu * B, ...)`, each component as often as in a
        group.
        """
        if nu <= self.n_pool == 1 or nu == self.n_pool:
            rows = torch.arange(nu, device=self.c.device).unsqueeze(1).expand(-1, len(self.c))
        else:
            rows = torch.randint(
                self.n_pool, (nu, len(self.c)), generator=generator, device=self.c.device
            )
        columns = torch.arange(len(self.c), device=self.c.device).expand(nu, -1)
        return Draw(
            self.pool_x[rows, columns].flatten(0, 1),
            self.c.repeat(nu),
            self.pool_frozen[rows, columns].flatten(),
        )

    @torch.no_grad()
    def pool_log_ratio(self, network: nn.Module) -> Tensor:
        """`F_k - F_theta` over the whole pool, `(pool, B)`, or the pools of all processes,
        `(P pool, B)`: the log ratio before `dlogZ` is taken off.
        """
        values = network(self.pool_x.flatten(0, 1), self.c.repeat(self.n_pool))
        log_ratio = self.pool_frozen - values.view_as(self.pool_frozen)
        return log_ratio if self.gather is None else self.gather(log_ratio)

    def log_ratio(
        self, network: nn.Module, data: Tensor, drawn: Draw, *, frozen_is_network: bool = False
    ) -> tuple[Tensor, Tensor]:
        """h and F_theta on data and noise, `(B + nu B,)` each, data first, in one forward.

        Arguments:
            network: F_theta; gradients reach it, not the snapshot.
            data: `(B, 1, M, T)`, conditioned on `self.c`.
            drawn: Noise.
            frozen_is_network: Right after a refresh, F_k is F_theta: h is 0 to the bit, and only
                its gradient counts.
        """
        c = torch.cat([self.c, drawn.c])
        value = network(torch.cat([data, drawn.x]), c)
        if frozen_is_network:
            return value.detach() - value, value
        with torch.no_grad():
            frozen = torch.cat([self.frozen.network(data, self.c), drawn.frozen])
        return frozen - value - self.dlogz(self.pool_log_ratio(network))[c], value

    def dlogz(self, log_ratio: Tensor) -> Tensor:
        """dlogZ per component `(C,)` from the log ratios of `pool_log_ratio`, in closed form."""
        h = self.by_component(log_ratio)
        return h.logsumexp(0) - math.log(len(h))

    def by_component(self, log_ratio: Tensor) -> Tensor:
        """Values `(pool, B)` over one or more pools as `(n, C)`: n samples of each component."""
        return log_ratio.view(-1, self.reference.n_components)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the noise to come; "network" and "turn" are the same in every
        process.
        """
        return {
            "network": self.frozen.network.state_dict(),
            "chains": self.chains,
            "pool_x": self.pool_x,
            "pool_frozen": self.pool_frozen,
            "turn": self.turn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.frozen.network.load_state_dict(state["network"])
        for name in ("chains", "pool_x", "pool_frozen"):
            setattr(self, name, state[name].to(self.c.device, copy=True))
        self.turn = int(state["turn"])
