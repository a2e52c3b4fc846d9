r"""Truncation: clips that are less surely recognised than recordings are drawn anew.

    p(x | y, q(y | x) >= t_a)

with q(y | x) a small network that learns the labels of the training clips beside the energy, and
t_a the share a of its values on held-out recordings: at a = 0.1 a clip is kept where it is told
more surely than the least sure tenth of recordings. It is sampled by rejection, exactly but for
clips that 32 attempts do not find, which are counted in a warning; no gradient of q moves a clip,
so none can be moved to deceive it. At a = 0 every clip is kept.

References:
    Large scale GAN training for high fidelity natural image synthesis (Brock et al., 2019)
    Discriminator rejection sampling (Azadi et al., 2019)
"""

from __future__ import annotations

__all__ = ["SETTINGS", "TENSORS", "LabelNetwork", "learn", "train_labels", "truncated"]

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sance_audio.chunks import chunked

SETTINGS, TENSORS = ("label_network", "truncation"), ("label_network.", "sureness")
"""Of a model: what truncation depends on, and no score; tensors by how their names begin."""
ATTEMPTS = 32
"""Draws of a clip, at most; of those that were never kept the most surely recognised is taken."""
SMOOTHING = 0.1
"""Share of a label that is spread over all classes."""
STRIDE = 0x9E3779B97F4A7C15
"""Between the seeds of a clip's attempts."""

N = TypeVar("N", bound=nn.Module)
Draw = Callable[[list[int], list[int]], tuple[Tensor, Tensor]]
"""Classes and seeds to log-mels `(B, 1, M, T)` and components `(B,)`."""


class LabelNetwork(nn.Module):
    """log q(y | x) of log-mels: convolutions with batch normalisation, the mean over positions.

    Arguments:
        n_classes: Classes.
        channels: Widths; each layer halves both sides, the first by its stride.
    """

    def __init__(self, n_classes: int, channels: Sequence[int] = (32, 64, 128, 128)):
        super().__init__()
        self.settings = {"n_classes": n_classes, "channels": list(channels)}
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3 if k else 5, 1 if k else 2, padding=1 if k else 2),
                nn.BatchNorm2d(width),
                nn.SiLU(),
            )
            for k, (before, width) in enumerate(pairwise((1, *channels)))
        )
        self.head = nn.Linear(channels[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, 1, M, T)`, M and T at least 16, to log q(y | x), `(B, classes)`."""
        h = x
        for k, layer in enumerate(self.layers):
            h = layer(h if k < 2 else F.avg_pool2d(h, 2, ceil_mode=True))
        return self.head(h.mean((2, 3))).log_softmax(1)


def train_labels(
    x: Tensor, y: Tensor, n_classes: int, *, epochs: int = 12, seed: int = 0, batch: int = 32
) -> LabelNetwork:
    """Learn the classes `(N,)` of clean log-mels `(N, 1, M, T)`, under noise, shifts in time and
    in pitch, and smoothed labels: without them q is sure of everything, and tells nothing apart.

    Seeded: the same data and seed give the same network on one machine.
    """

    def varied(clips: Tensor, generator: torch.Generator) -> Tensor:
        shift, bend = torch.randint(-4, 5, (2,), generator=generator).tolist()
        clips = torch.roll(clips, (shift, round(bend / 3)), (3, 2))
        deviation = 0.3 * torch.rand(len(clips), 1, 1, 1, generator=generator)
        return clips + deviation * torch.randn(clips.shape, generator=generator)

    def loss(log_q: Tensor, told: Tensor) -> Tensor:
        return F.nll_loss(log_q, told) * (1 - SMOOTHING) - SMOOTHING * log_q.mean()

    sizes: dict[str, int] = {"epochs": epochs, "seed": seed, "batch": batch}
    network = learn(lambda: LabelNetwork(n_classes), x, y, varied, loss, **sizes)
    return network.requires_grad_(False)


def learn(
    make: Callable[[], N],
    x: Tensor,
    y: Tensor,
    varied: Callable[[Tensor, torch.Generator], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int,
    seed: int,
    batch: int,
) -> N:
    """A classifier learns the classes `(N,)` of clips `(N, 1, M, T)`, by AdamW in one cycle.

    Arguments:
        make: The network at its start, of this seed.
        varied: Clips of a batch as they are shown, with a generator of its randomness.
        loss: Of what the network gives and the classes.
        epochs, seed, batch: Passes over the clips, seed of all that is random, clips of a step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
        generator = torch.Generator().manual_seed(seed)
        steps = epochs * -(-len(x) // batch)
        optimiser = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(batch):
                wrong = loss(network(varied(x[rows], generator)), y[rows])
                optimiser.zero_grad()
                wrong.backward()
                optimiser.step()
                schedule.step()
    return network.eval()


def truncated(
    draw: Draw,
    network: Callable[[Tensor], Tensor],
    classes: Sequence[int],
    seeds: Sequence[int],
    least: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Log-mels and components of clips, each drawn until `log q(y | x) >= least`, or so many times
    (`ATTEMPTS`); a warning tells of how many that was not enough.

    A clip keeps its place modulo `chunk` in all its attempts, so that it is the same whatever the
    number of clips.

    Arguments:
        draw: Of classes and seeds; row i of the result depends on those of row i, and on its place
            modulo `chunk`.
        network: Log-mels `(B, 1, M, T)` to log q(y | x), `(B, classes)`.
        classes: Class of each clip.
        seeds: Seed of each, for its first attempt.
        least: In nats.
        chunk: Rows that are drawn together.
    """
    x = c = torch.empty(0)
    sure = torch.full((len(seeds),), -torch.inf)
    pending = list(range(len(seeds)))
    for attempt in range(ATTEMPTS):
        places = _packed(pending, chunk)
        whose = [pending[0] if i is None else i for i in places]
        told = [classes[i] for i in whose]
        drawn, component = draw(told, [_seed(seeds[i], attempt) for i in whose])
        log_q = chunked(network, drawn, size=chunk).cpu()[range(len(told)), told]
        if attempt == 0:
            x, c = drawn.clone(), component.clone()
        for row, i in enumerate(places):
            if i is not None and log_q[row] > sure[i]:
                x[i], c[i], sure[i] = drawn[row], component[row], log_q[row]
        pending = [i for i in pending if sure[i] < least]
        if not pending:
            return x, c
    warnings.warn(
        f"{len(pending)} of {len(seeds)} clips were not recognised surely enough in {ATTEMPTS} "
        f"attempts: the surest of them are taken; a lower truncation keeps more",
        stacklevel=2,
    )
    return x, c


def _packed(pending: list[int], chunk: int) -> list[int | None]:
    """Clips in as few chunks as hold each at its place modulo `chunk`; None between them."""
    queues = [[i for i in pending if i % chunk == place] for place in range(chunk)]
    rows: list[int | None] = []
    for k in range(max(map(len, queues))):
        rows += [queue[k] if k < len(queue) else None for queue in queues]
    while rows[-1] is None:
        rows.pop()
    return rows


def _seed(seed: int, attempt: int) -> int:
    return (seed + attempt * STRIDE) % 2**63
