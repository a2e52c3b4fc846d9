r"""Persistent contrastive divergence by ebmkit: its loss, replay buffers, Langevin sampler and
average, around one of our networks, without a reference.

    minimise  mean E(x | y) - mean E(x^- | y) + penalty mean (E^2 + E^-^2)
    x^-       chains of a replay buffer for each class, moved by short, cold Langevin dynamics

References:
    Implicit generation and modeling with energy-based models (Du & Mordatch, 2019)
    Your classifier is secretly an energy based model and you should treat it like one
        (Grathwohl et al., 2020): a buffer for each class, noise on the data
"""

from __future__ import annotations

__all__ = ["Persistent"]

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.generation_peers import DRAWN, Clock, Peer, batches, falling, seeded, set_rate
from sance_audio.networks import ResidualEnergy


class ClassEnergy(ResidualEnergy):
    """A `ResidualEnergy` that is told where each cell is, by two more channels, and whose last
    layer has weights of its own for each class and position: nothing else says which band is
    which, where there is no reference.

    Arguments:
        shape: `(M, T)`.
        n_classes: Classes.
        channels, depth: As of `ResidualEnergy`.
    """

    places: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        n_classes: int,
        channels: tuple[int, ...],
        depth: tuple[int, ...],
    ):
        super().__init__(n_classes, channels, depth, positions=1)
        sides = [torch.linspace(-1, 1, side) for side in shape]
        self.register_buffer("places", torch.stack(torch.meshgrid(*sides, indexing="ij"))[None])
        self.stem = nn.Conv2d(3, channels[0], 6, stride=4, padding=1)
        self.head = nn.Identity()  # type: ignore[assignment]
        size = self.map(torch.zeros(1, 1, *shape)).numel()
        self.condition = nn.Embedding(n_classes, size)
        nn.init.normal_(self.condition.weight, std=size**-0.5)

    def map(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The last hidden layer `(B, M', T', channels[-1])` of x `(B, 1, M, T)`."""
        return super().map(torch.cat([x, self.places.expand(len(x), -1, -1, -1)], 1), c)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Energies `(B,)` of x `(B, 1, M, T)` of classes c `(B,)`."""
        assert c is not None
        return (self.map(x, c).flatten(1) * self.condition(c)).sum(1)


class GivenClass(nn.Module):
    """The energy of x `(B, 1, M, T)` alone, classes y `(B,)` held fixed: what ebmkit takes."""

    def __init__(self, network: nn.Module, y: Tensor):
        super().__init__()
        self.network, self.y = network, y

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, self.y)


class ClassBuffers:
    """A replay buffer of ebmkit for each class; batches have equally many of each, in order."""

    def __init__(self, n_classes: int, slots: int, shape: tuple[int, ...], fresh: float):
        from ebm import ReplayBuffer

        self.each = [ReplayBuffer(slots, shape, fresh, _start) for _ in range(n_classes)]

    def sample(self, size: int, device: Any = None) -> Tensor:
        return torch.cat([b.sample(size // len(self.each), device) for b in self.each])

    def push(self, x: Tensor) -> None:
        for buffer, part in zip(self.each, x.chunk(len(self.each)), strict=True):
            buffer.push(part)


def _start(shape: tuple[int, ...]) -> Tensor:
    """Where chains begin: uniform between -1 and 1, as in Du & Mordatch."""
    return 2 * torch.rand(shape) - 1


class Persistent(Peer):
    """Persistent contrastive divergence by ebmkit: its loss, buffers, sampler and average, around
    one of our networks without a reference; drawn are chains of the buffers, moved on.

    Arguments:
        shape, n_classes: As of `Peer`.
        channels: Widths of a `ResidualEnergy`.
        depth: Its blocks.
        per_class: Clips, and chains, of a class in a batch.
        slots: Chains of a class.
        steps: Langevin steps of a chain a step.
        drawing: Langevin steps of a drawn clip besides.
        step_size, noise, clip: Of the sampler: of its gradient step, of its noise (None for that
            of a sampler of exp(-E)), largest entry of its gradient (None for no limit).
        fresh: Probability that a chain starts again.
        penalty: Weight of the mean squared energies.
        rate: Learning rate of Adam.
        dequantised: Deviation of the Gaussian noise that is added to clips.
    """

    chains: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        n_classes: int,
        channels: tuple[int, ...] = (16, 32, 64),
        depth: tuple[int, ...] = (1, 1),
        per_class: int = 4,
        slots: int = 100,
        steps: int = 20,
        drawing: int = 100,
        step_size: float = 2.0,
        noise: float | None = 0.01,
        clip: float | None = 0.05,
        fresh: float = 0.05,
        penalty: float = 0.01,
        rate: float = 1e-3,
        dequantised: float = 0.03,
    ):
        from ebm import LangevinDynamics

        super().__init__(shape, n_classes)
        self.per_class, self.slots, self.drawing = per_class, slots, drawing
        self.fresh, self.penalty, self.rate = fresh, penalty, rate
        self.dequantised = dequantised
        self.network = ClassEnergy(shape, n_classes, channels, depth)
        self.sampler = LangevinDynamics(step_size, steps, noise, clip, (-1.0, 1.0))
        self.register_buffer("chains", torch.zeros(n_classes, slots, 1, *shape))

    @property
    def stored(self) -> int:
        return self.trained + self.chains.numel()

    def fit(self, x: Tensor, y: Tensor, clock: Clock, seed: int) -> int:
        from ebm import EMA, ContrastiveDivergence

        optimiser = torch.optim.Adam(self.network.parameters(), self.rate, (0.9, 0.99))
        average = EMA(self.network, 0.99)
        with seeded(seed, self.device):
            clips, y = self.take_range(x), y.to(self.device)
            buffers: Any = ClassBuffers(self.n_classes, self.slots, (1, *self.shape), self.fresh)
            loss_of = ContrastiveDivergence(self.sampler, buffers, self.penalty)
            rows = [
                batches(clips[y == k], y[y == k], self.per_class) for k in range(self.n_classes)
            ]
            labels = torch.arange(self.n_classes, device=self.device)
            energy = GivenClass(self.network, labels.repeat_interleave(self.per_class))
            for passed in clock:
                clip = torch.cat([next(own)[0] for own in rows])
                clip = clip + self.dequantised * torch.randn_like(clip)
                loss = loss_of(energy, clip).loss
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                set_rate(optimiser, self.rate * falling(passed))
                optimiser.step()
                average.update()
        self.network.load_state_dict(average.module.state_dict())
        self.chains.copy_(torch.stack([buffer.data for buffer in buffers.each]))
        return clock.done

    def draw(self, y: Tensor, seed: int) -> Tensor:
        """As of `Peer`; each of up to `slots` clips of a class is another chain moved on."""
        with seeded(seed, self.device):
            order = torch.stack([torch.randperm(self.slots) for _ in range(self.n_classes)])
            turn = torch.stack([(y[:i] == k).sum() for i, k in enumerate(y.tolist())])
            starts = self.chains[y, order[y, turn % self.slots]]
            parts = zip(y.split(DRAWN), starts.split(DRAWN), strict=True)
            return torch.cat([self._move(part.to(self.device), x) for part, x in parts])

    def _move(self, y: Tensor, x: Tensor) -> Tensor:
        energy = GivenClass(self.network, y)
        return self.give_range(self.sampler.sample(energy, x, steps=self.drawing)).cpu()
