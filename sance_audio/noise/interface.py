r"""What noise is for noise-contrastive estimation, and how the log ratio is made of it.

    p_k(x | c) = base(x | c) exp(-G_k(x | c)) / Z_k
    h(x | c)   = log p_theta / p_k = G_k(x | c) - F_theta(x | c) / tau - dlogZ_c
    dlogZ_c    = log Z_theta,c / Z_k,c = log mean exp(G_k - F_theta / tau)   over the pool

The base (the reference at the model's temperature tau) cancels, so that noise is known by G_k:
`F_k / tau` for a snapshot of the model, 0 for the reference itself, the log ratio of reference and
flow for a flow. Components are conditions: each noise sample has one, as many of each, as the data
has; offsets differ between components, so dlogZ is one number for each.

Samples of p_k wait in a pool, `(pool, B)`: some groups of the size of a batch of noise, every
group with `per_component` samples of each component, in turn: column i is of component `i mod C`.
"""

from __future__ import annotations

__all__ = ["Noise", "Draw", "LearnedOffset", "OWN"]

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sance_audio.energy import ReferencedEnergy
from sance_audio.ledger import Ledger, log_mean_exp

OWN = ("chains", "log_weight", "founder", "pool_x", "pool_frozen", "pool_h")
"""Parts of a noise's state that each process has of its own."""

MEASURED = 2048
"""Samples of each component that dlogZ is taken from, at most."""


class Draw(NamedTuple):
    """Noise samples, what they are conditioned on, and the frozen energy of them."""

    x: Tensor
    """`(B, 1, M, T)`."""
    c: Tensor
    """`(B,)`, components."""
    frozen: Tensor
    """`(B,)`, G_k(x | c)."""


class Noise(ABC):
    """A pool of samples of p_k and the log ratio to it. A kind of noise says how the pool is
    filled (`refresh`) and what G_k is (`frozen_energy`).

    Arguments:
        energy: The energy being trained.
        shape: `(M, T)` of a sample.
        per_component: Samples of each component in a group; a group is one batch of noise.
        pool: Groups in the pool.
        dlogz: "pool" (closed form), "learned" (a parameter) or "cancelled" (left out).
        dlogz_rate: Learning rate of a learned dlogZ.
        gather: Joins a tensor of each process along the first dimension, given this process's;
            called by all of them at once. Left out, there is one process.
    """

    follows = False
    """Whether p_k is the model itself, right after a refresh."""
    moved = 0.0
    """Root mean square distance that the chains covered in the last refresh, per cell."""
    stride = 0.0
    """The same for chains of the base alone; 0 where there are no chains."""

    def __init__(
        self,
        energy: ReferencedEnergy,
        shape: tuple[int, int],
        *,
        per_component: int = 1,
        pool: int = 1,
        dlogz: str = "pool",
        dlogz_rate: float = 0.05,
        gather: Callable[[Tensor], Tensor] | None = None,
    ):
        self.base, self.temperature = energy.base, energy.temperature
        self.shape, self.n_pool, self.dlogz = (1, *shape), pool, dlogz
        self.gather = gather
        device, count = self.base.mean.device, self.base.n_components
        self.c = torch.arange(count, device=device).repeat(per_component)
        self.per_component = per_component
        self.pool_x = torch.zeros(pool, len(self.c), *self.shape, device=device)
        self.pool_frozen = torch.zeros(pool, len(self.c), device=device)
        self.pool_h = torch.zeros(pool, len(self.c), device=device)
        self.drawn = pool
        """Groups of the pool that noise is drawn from: the first so many."""
        self.most = max(1, MEASURED // per_component)
        """Groups of these, at most, that the log ratio is taken on after every step."""
        self.log_weight: Tensor | None = None
        self.founder: Tensor | None = None
        self.offset = LearnedOffset(count, dlogz_rate, device) if dlogz == "learned" else None

    # What a kind of noise has of its own

    @abstractmethod
    def refresh(
        self, network: nn.Module, generator: torch.Generator, ledger: Ledger | None = None
    ) -> None:
        """Renew p_k and fill the pool with samples of it.

        Arguments:
            network: F_theta.
            generator: Of everything random.
            ledger: Told of the interval that ends here; None where none does.
        """

    @abstractmethod
    def frozen_energy(self, x: Tensor, c: Tensor) -> Tensor:
        """G_k(x | c), `(B,)`, without a gradient."""

    def after_step(self, network: nn.Module, data: Tensor) -> None:
        """Called when F_theta has changed; data `(B, 1, M, T)` is the batch that changed it."""
        if self.offset is not None:
            self.offset.step(self.gather)

    @abstractmethod
    def bridge(self, network: nn.Module, ledger: Ledger, generator: torch.Generator) -> Ledger:
        """The ledger carried on to another network, such as the averaged weights."""

    # The same for all

    def draw(self, nu: int, generator: torch.Generator) -> Draw:
        """`nu` batches of noise from the pool, `(nu * B, ...)`, each component as often: all of it
        where it has as many, else with replacement, by weight where samples have weights.
        """
        count = self.base.n_components
        x, frozen = self.pool_x[: self.drawn], self.pool_frozen[: self.drawn]
        n, wanted = frozen.numel() // count, nu * len(self.c) // count
        device = self.c.device
        if self.log_weight is not None:
            weights = self.by_component(self.log_weight[: self.drawn]).softmax(0).T.float()
            rows = torch.multinomial(weights, wanted, replacement=True, generator=generator).T
        elif wanted == n:
            rows = torch.arange(n, device=device).unsqueeze(1).expand(-1, count)
        else:
            rows = torch.randint(n, (wanted, count), generator=generator, device=device)
        columns = torch.arange(count, device=device)
        return Draw(
            x.reshape(n, count, *self.shape)[rows, columns].flatten(0, 1),
            columns.repeat(wanted),
            self.by_component(frozen)[rows, columns].flatten(),
        )

    def log_ratio(
        self,
        network: nn.Module,
        data: Tensor,
        drawn: Draw,
        *,
        frozen_is_network: bool = False,
        measured: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """h and F_theta / tau on data and noise, `(B + nu B,)` each, data first, in one forward.

        Arguments:
            network: F_theta; gradients reach it, not the noise.
            data: `(B, 1, M, T)`, conditioned on `self.c`.
            drawn: Noise.
            frozen_is_network: Right after a refresh, G_k is F_theta / tau: h is 0 to the bit, and
                only its gradient counts.
            measured: F_theta has not changed since `measure`, which dlogZ is taken from.
        """
        c = torch.cat([self.c, drawn.c])
        value = network(torch.cat([data, drawn.x]), c) / self.temperature
        if frozen_is_network and self.follows:
            h = value.detach() - value
        else:
            with torch.no_grad():
                frozen = torch.cat([self.frozen_energy(data, self.c), drawn.frozen])
            h = frozen - value
            if self.dlogz == "pool":
                if not measured:
                    self.measure(network)
                h = h - self.log_z_ratio()[c]
        return (h if self.offset is None else h - self.offset.use()[c]), value

    @torch.no_grad()
    def measure(self, network: nn.Module) -> Tensor:
        """`G_k - F_theta / tau` over what noise is drawn from, `(drawn, B)` (of very large pools
        over some of it): the log ratio before dlogZ is taken off; kept in `pool_h`.
        """
        self.pool_h = self._measured(network, slice(min(self.drawn, self.most)))
        return self.pool_h

    def _measured(self, network: nn.Module, groups: slice) -> Tensor:
        """The same of some groups of the pool, `(n, B)`."""
        x, frozen = self.pool_x[groups], self.pool_frozen[groups]
        values = network(x.flatten(0, 1), self.c.repeat(len(x)))
        return frozen - values.view_as(frozen) / self.temperature

    def pool_log_ratio(self) -> Tensor:
        """What was measured last, in the pools of all processes: `(n, C)`, n samples of each
        component.
        """
        return self.by_component(self.everywhere(self.pool_h))

    def pool_log_weight(self) -> Tensor | None:
        """The log weights of the same samples, `(n, C)`; None where they have none."""
        if self.log_weight is None:
            return None
        return self.by_component(self.everywhere(self.log_weight[: len(self.pool_h)]))

    def log_z_ratio(self) -> Tensor:
        """dlogZ of each component, `(C,)`, in closed form from `pool_h`."""
        h, a = self.pool_log_ratio(), self.pool_log_weight()
        return log_mean_exp(h) if a is None else (log_mean_exp(a + h) - log_mean_exp(a)).to(h)

    def by_component(self, values: Tensor) -> Tensor:
        """Values of samples in the order of the pool, in any shape, as `(n, C)`."""
        return values.reshape(-1, self.base.n_components)

    def everywhere(self, values: Tensor) -> Tensor:
        """Values of this process's pool joined with those of all others'."""
        return values if self.gather is None else self.gather(values)

    def check(self, data: Tensor, c: Tensor) -> None:
        """Raise ValueError unless the noise can have produced `data` `(B, 1, M, T)`."""
        with torch.no_grad():
            bad = int((~torch.isfinite(self.frozen_energy(data, c))).sum())
        if bad:
            raise ValueError(
                f"train.noise: {bad} of {len(data)} training clips (one of each component was "
                f"tried) lie outside the support of the noise (its log density there is not "
                f"finite): choose noise that covers the data, such as train.noise=self"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the noise to come; what is not in `OWN` is the same in every
        process.
        """
        state = {"pool_x": self.pool_x, "pool_frozen": self.pool_frozen, "pool_h": self.pool_h}
        return state | ({} if self.offset is None else {"offset": self.offset.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in OWN:
            if state.get(name) is not None:
                setattr(self, name, state[name].to(self.c.device, copy=True))
        if self.offset is not None:
            self.offset.load_state_dict(state["offset"])


class LearnedOffset:
    """dlogZ as a parameter `(C,)`, with an optimiser and a rate of its own."""

    def __init__(self, count: int, rate: float, device: torch.device):
        self.value = torch.zeros(count, device=device, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.value], lr=rate)

    def use(self) -> Tensor:
        """The offsets, about to get a gradient."""
        self.optimiser.zero_grad()
        return self.value

    def step(self, gather: Callable[[Tensor], Tensor] | None) -> None:
        """Follow the gradient, averaged over processes."""
        if gather is not None and self.value.grad is not None:
            self.value.grad = gather(self.value.grad.unsqueeze(0)).mean(0)
        self.optimiser.step()

    def reset(self) -> None:
        """Back to zero, and without the optimiser's memory: what a refresh does to dlogZ."""
        with torch.no_grad():
            self.value.zero_()
        self.optimiser.state.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value.detach(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.value.copy_(state["value"])
        self.optimiser.load_state_dict(state["optimiser"])
