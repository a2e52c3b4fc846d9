r"""SpecGAN for log-mels of a class: no maintained library has it, so here is a short one.

Each mel band is standardised on the training clips, clipped at three deviations and divided by
three; a DCGAN of such pictures is trained as a WGAN with gradient penalty, five steps of the
critic for one of the generator. Classes: an embedding beside the generator's noise, a projection
in the critic.

References:
    Adversarial audio synthesis (Donahue et al., 2019): SpecGAN
    Unsupervised representation learning with deep convolutional generative adversarial networks
        (Radford et al., 2016)
    Improved training of Wasserstein GANs (Gulrajani et al., 2017)
    cGANs with projection discriminator (Miyato & Koyama, 2018)
"""

from __future__ import annotations

__all__ = ["SpecGAN"]

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.generation_peers import DRAWN, Clock, Peer, batches, falling, seeded, set_rate

CLIP = 3.0
"""Deviations of a band at which log-mels are clipped, as in the paper."""
FIRST = 4
"""Side of the first picture of the generator and of the last of the critic."""


def _widths(side: int, width: int) -> list[int]:
    """Channels from the smallest picture to the largest but one, halved as the side doubles."""
    return [width * 2**k for k in reversed(range(int(math.log2(side // FIRST))))]


class Generator(nn.Module):
    """Noise `(B, latent)` and classes `(B,)` to pictures `(B, 1, S, S)` between -1 and 1."""

    def __init__(self, side: int, n_classes: int, width: int, latent: int):
        super().__init__()
        widths = _widths(side, width)
        self.condition = nn.Embedding(n_classes, latent)
        self.first = nn.Linear(2 * latent, widths[0] * FIRST**2, bias=False)
        layers: list[nn.Module] = []
        for before, after in pairwise([*widths, 1]):
            layers += [nn.BatchNorm2d(before), nn.ReLU()]
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=after == 1)]
        self.body = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.first(torch.cat([z, self.condition(y)], 1))
        return self.body(h.view(len(z), -1, FIRST, FIRST))


class Critic(nn.Module):
    """Pictures `(B, 1, S, S)` and classes `(B,)` to values `(B,)`."""

    def __init__(self, side: int, n_classes: int, width: int):
        super().__init__()
        widths = _widths(side, width)[::-1]
        layers: list[nn.Module] = []
        for before, after in pairwise([1, *widths]):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(widths[-1] * FIRST**2, 1)
        self.condition = nn.Embedding(n_classes, widths[-1] * FIRST**2)
        nn.init.zeros_(self.condition.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(h).squeeze(1) + (h * self.condition(y)).sum(1)


class SpecGAN(Peer):
    """A class-conditional SpecGAN; drawn is the average of the generator's weights.

    Arguments:
        shape: `(M, T)`, equal powers of two from 8.
        n_classes: Classes.
        width: Channels of the largest picture but one; doubled with every halving.
        latent: Dimensions of the noise.
        batch: Clips a step.
        rate: Learning rate of Adam, of both networks.
        critics: Steps of the critic for one of the generator.
        penalty: Weight of the gradient penalty.
        average: Decay of the averaged generator.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        n_classes: int,
        width: int = 16,
        latent: int = 100,
        batch: int = 32,
        rate: float = 2e-4,
        critics: int = 5,
        penalty: float = 10.0,
        average: float = 0.99,
    ):
        super().__init__(shape, n_classes)
        side = shape[0]
        if side != shape[1] or side < 2 * FIRST or side & (side - 1):
            raise ValueError(f"SpecGAN needs squares of a power of two from 8, found {shape}")
        self.latent, self.batch, self.rate = latent, batch, rate
        self.critics, self.penalty, self.average = critics, penalty, average
        self.generator = Generator(side, n_classes, width, latent)
        self.critic = Critic(side, n_classes, width)
        self.register_buffer("mean", torch.zeros(side, 1))
        self.register_buffer("std", torch.ones(side, 1))

    @property
    def stored(self) -> int:
        return sum(p.numel() for p in self.generator.parameters())

    def fit(self, x: Tensor, y: Tensor, clock: Clock, seed: int) -> int:
        how = {"lr": self.rate, "betas": (0.5, 0.9)}
        of_critic = torch.optim.Adam(self.critic.parameters(), **how)  # type: ignore[arg-type]
        of_generator = torch.optim.Adam(self.generator.parameters(), **how)  # type: ignore[arg-type]
        average = AveragedModel(
            self.generator, multi_avg_fn=get_ema_multi_avg_fn(self.average), use_buffers=True
        )
        with seeded(seed, self.device):
            rows = batches(self._normalise(x.to(self.device)), y.to(self.device), self.batch)
            for passed in clock:
                for _ in range(self.critics):
                    self._descend(of_critic, self.critic_loss(*next(rows)), passed)
                label = next(rows)[1]
                loss = -self.critic(self._fake(label), label).mean()
                self._descend(of_generator, loss, passed)
                average.update_parameters(self.generator)
        self.generator.load_state_dict(average.module.state_dict())
        self.eval()
        return clock.done

    def _descend(self, optimiser: torch.optim.Optimizer, loss: Tensor, passed: float) -> None:
        optimiser.zero_grad()
        loss.backward()
        set_rate(optimiser, self.rate * falling(passed))
        optimiser.step()

    def _fake(self, y: Tensor) -> Tensor:
        return self.generator(torch.randn(len(y), self.latent, device=self.device), y)

    def critic_loss(self, real: Tensor, y: Tensor) -> Tensor:
        """Wasserstein loss and gradient penalty of pictures `(B, 1, S, S)`."""
        with torch.no_grad():
            fake = self._fake(y)
        mix = torch.rand(len(y), 1, 1, 1, device=self.device)
        between = torch.lerp(real, fake, mix).requires_grad_(True)
        (grad,) = torch.autograd.grad(self.critic(between, y).sum(), between, create_graph=True)
        penalty = (grad.flatten(1).norm(dim=1) - 1).square().mean()
        both = self.critic(torch.cat([fake, real]), torch.cat([y, y]))
        gap = both[: len(y)].mean() - both[len(y) :].mean()
        return gap + self.penalty * penalty

    def _normalise(self, x: Tensor) -> Tensor:
        self.mean.copy_(x.mean((0, 1, 3)).unsqueeze(1))
        self.std.copy_(x.std((0, 1, 3)).clamp_min(1e-3).unsqueeze(1))
        return ((x - self.mean) / self.std).clamp(-CLIP, CLIP) / CLIP

    @torch.no_grad()
    def draw(self, y: Tensor, seed: int) -> Tensor:
        """As of `Peer`."""
        with seeded(seed, self.device):
            return torch.cat([self._chunk(part.to(self.device)).cpu() for part in y.split(DRAWN)])

    def _chunk(self, y: Tensor) -> Tensor:
        return CLIP * self._fake(y) * self.std + self.mean
