r"""Self-adapting noise: the model itself, frozen.

`p_k` is a static copy of the model, taken at refresh k; its samples are persistent Langevin chains
on its energy. Since the reference cancels in a difference of energies, only the network F is
copied. A new copy at every step, with its chains fresh in the pool, is persistent contrastive
divergence.

Chains are pinned to components. Where several processes train one network, each has chains and a
pool of its own, and dlogZ is taken over all their pools.

Weighted chains (see `ledger.py`) come in two parts: noise, and *witnesses*, a quarter, which are
moved and weighted alike but never drawn. The network learns to raise its energy where the noise
lies, that is at its very samples, so that these tell of too small a Z; witnesses have no part in
learning, and the ledger listens to them alone.

References:
    Self-adapting noise-contrastive estimation for energy-based models (Xu, 2022), arXiv 2211.02650
    Training restricted Boltzmann machines using approximations to the likelihood gradient
        (Tieleman, 2008)
"""

from __future__ import annotations

__all__ = ["SelfNoise"]

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sance_audio.chunks import chunk_size
from sance_audio.energy import GivenEnergy, ReferencedEnergy
from sance_audio.ledger import Ledger, log_mean_exp
from sance_audio.noise.interface import Noise
from sance_audio.samplers import ReferenceLangevin, SamplingError, sample

BRIDGE = 5
"""Stages between two networks: each a reweighting and as many moves."""


class SelfNoise(Noise):
    """A frozen snapshot of an energy's network, with persistent chains and a pool of samples.

    Arguments:
        energy: The energy being trained; its reference is shared, its network copied.
        shape: `(M, T)` of a sample.
        groups: Groups of persistent chains.
        pool: Groups advanced at a refresh, in turn, whose ends serve as noise until the next.
        steps: Langevin steps per refresh.
        step_size: eps of `ReferenceLangevin`.
        cap: Its cap.
        fresh: Probability that a chain starts again from the base at a refresh.
        weighted: Carry log weights along all chains, which are all advanced at every refresh, by
            Metropolis steps; the last quarter of the groups, at least one, are witnesses.
        generator: Of the chains' starts: exact samples of the base.
        shared: See `Noise`: per_component, dlogz, dlogz_rate, gather.
    """

    follows = True

    def __init__(
        self,
        energy: ReferencedEnergy,
        shape: tuple[int, int],
        *,
        groups: int = 4,
        pool: int = 1,
        steps: int = 40,
        step_size: float = 0.1,
        cap: float = 1.0,
        fresh: float = 0.0,
        weighted: bool = False,
        generator: torch.Generator,
        **shared: Any,
    ):
        if not 1 <= pool <= groups:
            raise ValueError(f"pool={pool} must lie between 1 and groups={groups}")
        if not 0 <= fresh <= 1:
            raise ValueError(f"fresh is a probability, found {fresh}")
        if weighted and (pool < groups or fresh > 0 or groups < 2):
            raise ValueError(
                f"weighted chains are two groups or more, all in the pool, and never start "
                f"again: found pool={pool} of groups={groups}, fresh={fresh}"
            )
        super().__init__(energy, shape, pool=pool, **shared)
        self.frozen = ReferencedEnergy(
            energy.reference, copy.deepcopy(energy.network), energy.temperature
        )
        self.frozen.network.requires_grad_(False).eval()
        self.steps, self.step_size, self.cap, self.fresh = steps, step_size, cap, fresh
        self.chains = torch.stack([self._start(generator) for _ in range(groups)])
        self.turn = 0
        self.pool_x = self.chains[:pool]
        if weighted:
            self.drawn = pool - max(1, pool // 4)
            self.pool_h = self.pool_h[: min(self.drawn, self.most)]
            parts = self.pool_frozen.split([self.drawn, pool - self.drawn])
            both = zip(*map(self._equal, parts), strict=True)
            self.log_weight, self.founder = map(torch.cat, both)
            flat, c = self.chains.flatten(0, 1), self.c.repeat(groups)
            with torch.no_grad():  # they are samples of the base, not yet of the model
                self.log_weight -= self.frozen.learnt(flat, c).view_as(self.log_weight).double()
        self.stride = _stride(self.base, steps, step_size, cap)

    def _start(self, generator: torch.Generator) -> Tensor:
        return self.base.sample(self.c, generator).view(-1, *self.shape)

    def _equal(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Log weights of chains that weigh alike, and each its own founder: `(groups, B)` each."""
        founder = torch.arange(like.numel(), device=like.device) // self.base.n_components
        return torch.zeros_like(like, dtype=torch.float64), founder.view_as(like)

    @torch.no_grad()
    def refresh(
        self, network: nn.Module, generator: torch.Generator, ledger: Ledger | None = None
    ) -> None:
        """Copy `network` into the snapshot, advance the next groups of chains on it, make their
        ends the pool.
        """
        if ledger is not None:
            self._close(network, ledger, generator)
        if self.offset is not None:
            self.offset.reset()
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
        after = self._advance(energy, before.flatten(0, 1), c, self.steps, generator)
        self.pool_frozen = energy.learnt(after).view(self.n_pool, -1)
        self.pool_x = after.view_as(before)
        self.pool_h = torch.zeros_like(self.pool_frozen[: min(self.drawn, self.most)])
        self.chains[chosen] = self.pool_x
        self.moved = float((self.pool_x - before).square().mean().sqrt())

    def _advance(
        self,
        energy: Any,
        x: Tensor,
        c: Tensor,
        steps: int,
        generator: torch.Generator,
        adjusted: bool = False,
    ) -> Tensor:
        """Chains `(B, 1, M, T)` after so many steps; Metropolis steps where they must be exact."""
        adjusted = adjusted or self.log_weight is not None
        sampler = ReferenceLangevin(
            self.base.given(c), self.step_size, self.cap, adjusted=adjusted
        )
        rows = chunk_size(c.device, x[0].numel())
        count = -(-len(c) // (3 * rows // 2))
        try:
            return sample(
                energy, sampler, x, steps, generator=generator, chunk=-(-len(c) // count)
            )
        except SamplingError:  # no chain is left: the guard of the loop sees it, and goes back
            return torch.full_like(x, torch.nan)

    def _close(self, network: nn.Module, ledger: Ledger, generator: torch.Generator) -> None:
        """End an interval: its ratios go into the ledger, and, where there are weights, into
        these; then chains that have too little are replaced by copies of those that have more.
        """
        if self.log_weight is None or self.founder is None:
            ledger.enter(self.pool_log_ratio())
            return
        parts = []
        for groups, told in ((slice(self.drawn), Ledger()), (slice(self.drawn, None), ledger)):
            x, weights = self.pool_x[groups], (self.log_weight[groups], self.founder[groups])
            h = self._measured(network, groups)
            parts.append(self._reweighted(x, weights, h, told, generator))
        self.pool_x, self.log_weight, self.founder = map(torch.cat, zip(*parts, strict=True))
        order = [(self.turn + i) % len(self.chains) for i in range(self.n_pool)]
        self.chains[order] = self.pool_x

    def _reweighted(
        self,
        x: Tensor,
        weights: tuple[Tensor, Tensor],
        h: Tensor,
        ledger: Ledger,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Groups of chains `(n, B, ...)` with their log weights and founders `(n, B)` after the
        log ratios h `(n, B)`, entered into the ledger; of mean weight 1 and resampled where that
        is due, systematically, within each process: of equal weight then, their sum unchanged.
        """
        a, founder = (self.by_component(v).clone() for v in weights)
        own, count = a.shape
        every = self.by_component(self.everywhere(founder))
        rank = torch.arange(len(every), device=a.device) // own  # processes do not mix
        every = every + (own * rank).unsqueeze(1)
        ratios, before = (self.by_component(self.everywhere(v)) for v in (h, a))
        resample, anew = ledger.enter(ratios, before, every)
        a += self.by_component(h).double()
        a -= log_mean_exp(self.by_component(self.everywhere(a)))
        chains = x.reshape(own, count, *self.shape).clone()
        for c in resample.nonzero().flatten().tolist():
            u = torch.rand((), generator=generator, device=a.device) + torch.arange(own).to(a)
            rows = torch.searchsorted(a[:, c].softmax(0).cumsum(0), u / own).clamp_max(own - 1)
            chains[:, c], founder[:, c] = chains[rows, c], founder[rows, c]
            a[:, c] = log_mean_exp(a)[c]
        founder[:, anew] = torch.arange(own, device=a.device).unsqueeze(1)
        return chains.view_as(x), a.view_as(h), founder.view_as(h)

    def frozen_energy(self, x: Tensor, c: Tensor) -> Tensor:
        return self.frozen.learnt(x, c)

    def after_step(self, network: nn.Module, data: Tensor) -> None:
        super().after_step(network, data)
        self.measure(network)

    @torch.no_grad()
    def bridge(self, network: nn.Module, ledger: Ledger, generator: torch.Generator) -> Ledger:
        """The ledger carried on from p_k to another network, along `BRIDGE` energies between the
        two: each reweights copies of the chains, then moves them by Metropolis steps.
        """
        ledger = copy.deepcopy(ledger)
        target = ReferencedEnergy(self.frozen.reference, network, self.temperature)
        groups = slice(None)
        x, weights = self.chains, self._equal(self.chains[..., 0, 0, 0])
        if self.log_weight is not None and self.founder is not None:
            groups = slice(self.drawn, None)
            x, weights = x[groups], (self.log_weight[groups], self.founder[groups])
        c, like = self.c.repeat(len(x)), weights[0].float()
        for i in range(1, BRIDGE + 1):
            flat = x.flatten(0, 1)
            h = (self.frozen.learnt(flat, c) - target.learnt(flat, c)).view_as(like)
            x, a, founder = self._reweighted(x, weights, h / BRIDGE, ledger, generator)
            weights = a, founder
            between = _Between(self.frozen, target, c, i / BRIDGE)
            x = self._advance(between, x.flatten(0, 1), c, BRIDGE, generator, True).view_as(x)
        ledger.close()
        return ledger

    def state_dict(self) -> dict[str, Any]:
        own = {"network": self.frozen.network.state_dict(), "chains": self.chains}
        own |= {"turn": self.turn, "log_weight": self.log_weight, "founder": self.founder}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.frozen.network.load_state_dict(state["network"])
        self.turn = int(state["turn"])


class _Between:
    """`(1 - s) F_a + s F_b`, over tau, of rows conditioned on c `(B,)`."""

    def __init__(self, a: ReferencedEnergy, b: ReferencedEnergy, c: Tensor, s: float):
        self.a, self.b, self.c, self.s = a, b, c, s

    def __call__(self, x: Tensor) -> Tensor:
        return self.learnt(x) - self.a.base.log_prob(x, self.c)

    def learnt(self, x: Tensor) -> Tensor:
        return (1 - self.s) * self.a.learnt(x, self.c) + self.s * self.b.learnt(x, self.c)

    def rows(self, part: slice) -> _Between:
        return _Between(self.a, self.b, self.c[part], self.s)


def _stride(base: Any, steps: int, step_size: float, cap: float) -> float:
    """Root mean square distance, per cell, between a sample of the base and where its own process
    is after `steps`: `sqrt(mean of 2 lambda (1 - rho^steps))` over directions and components.
    """
    dimensions, rank = base.basis.shape[1:]
    lam = torch.cat([base.eigenvalues, base.remainder[:, None]], 1).double()
    rho = torch.exp(-step_size * steps * lam.clamp_max(cap) / lam)
    share = torch.full_like(lam, 1.0)
    share[:, -1] = dimensions - rank
    return float(((2 * lam * (1 - rho) * share).sum(1) / dimensions).mean().sqrt())
