r"""Noise that is normalised and sampled exactly: the reference, or a flow trained beside it.

Neither follows the model: each has a density of its own, which the network is told apart from at
every step on new samples. It is what self-adapting noise is compared with, and, for the flow, the
second generative model that it does without.

References:
    Noise-contrastive estimation (Gutmann & Hyvarinen, 2010)
    Flow contrastive estimation of energy-based models (Gao et al., 2020)
"""

from __future__ import annotations

__all__ = ["GaussianNoise", "FlowNoise"]

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sance_audio.energy import ReferencedEnergy
from sance_audio.ledger import Ledger
from sance_audio.noise.interface import Noise

BRIDGE = 256
"""Samples of each component that log Z of the averaged weights is taken from."""
CLIP = 50.0
"""Largest norm of the flow's gradient."""


class GaussianNoise(Noise):
    """The base, fixed: exact samples, new ones at every refresh. Arguments: see `Noise`."""

    @torch.no_grad()
    def refresh(
        self, network: nn.Module, generator: torch.Generator, ledger: Ledger | None = None
    ) -> None:
        """New samples in the pool, and the log ratio there. It stands, and the ledger takes it,
        until the next refresh: of the network before the step that follows.
        """
        if ledger is not None:
            ledger.restart(self.pool_log_ratio())
        c = self.c.repeat(self.n_pool)
        x = self.sample(c, generator)
        self.pool_x = x.view(self.n_pool, -1, *self.shape)
        self.pool_frozen = self.frozen_energy(x, c).view(self.n_pool, -1)
        self.measure(network)

    def sample(self, c: Tensor, generator: torch.Generator) -> Tensor:
        """Exact samples `(B, 1, M, T)` given components c `(B,)`."""
        return self.base.sample(c, generator).view(-1, *self.shape)

    def frozen_energy(self, x: Tensor, c: Tensor) -> Tensor:
        return torch.zeros(len(x), device=x.device)

    def bridge(self, network: nn.Module, ledger: Ledger, generator: torch.Generator) -> Ledger:
        """log Z of another network by one step from this noise, on many new samples."""
        ledger, other = copy.deepcopy(ledger), copy.copy(self)
        other.n_pool = other.drawn = max(self.n_pool, -(-BRIDGE // self.per_component))
        other.refresh(network, generator)
        ledger.restart(other.pool_log_ratio())
        return ledger


class FlowNoise(GaussianNoise):
    """A normalising flow over the base's whitened coordinates, trained on every batch of data by
    maximum likelihood beside the energy.

    Arguments:
        energy: The energy being trained.
        shape: `(M, T)` of a sample.
        transforms: Coupling layers.
        width: Width of their hidden layers.
        rate: Learning rate of Adam.
        seed: Of the flow's weights.
        shared: See `Noise`.

    Raises:
        ValueError: zuko is not installed.
    """

    def __init__(
        self,
        energy: ReferencedEnergy,
        shape: tuple[int, int],
        *,
        transforms: int = 6,
        width: int = 64,
        rate: float = 1e-3,
        seed: int = 0,
        **shared: Any,
    ):
        from sance_audio.noise.flow import ReferenceFlow

        super().__init__(energy, shape, **shared)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            flow = ReferenceFlow(self.base, shape, transforms=transforms, width=width)
        self.flow = flow.to(self.c.device)
        self.optimiser = torch.optim.Adam(self.flow.parameters(), lr=rate)

    def sample(self, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.flow.sample(c, generator)

    @torch.no_grad()
    def frozen_energy(self, x: Tensor, c: Tensor) -> Tensor:
        return self.flow.learnt(x, c)

    def after_step(self, network: nn.Module, data: Tensor) -> None:
        """One step of maximum likelihood of the flow, on the batch that F_theta learnt from."""
        super().after_step(network, data)
        self.optimiser.zero_grad()
        self.flow.nll(data, self.c).backward()
        if self.gather is not None:
            for p in self.flow.parameters():
                if p.grad is not None:
                    p.grad = self.gather(p.grad.unsqueeze(0)).mean(0)
        nn.utils.clip_grad_norm_(self.flow.parameters(), CLIP)
        self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        own = {"flow": self.flow.map.state_dict(), "flow_optimiser": self.optimiser.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.flow.map.load_state_dict(state["flow"])
        self.optimiser.load_state_dict(state["flow_optimiser"])
