r"""What a user would train instead to generate log-mels of a class, each as a module with the same
two functions.

    fit(x, y, clock, seed) -> steps    until the clock says so; x (N, 1, M, T), y (N,)
    draw(y, seed) -> x                 of classes y (n,); x (n, 1, M, T)

x are standardised log-mels. Learning rates follow the clock: full for half of the time, then
linearly to zero. Weights averaged over the training are drawn from. Here are the clock, what the
peers share, and the diffusion model; the others stand in `generation_gan` and `generation_pcd`.
Defaults are for one core; they were chosen by the KID of 200 clips to validation clips, after two
to four minutes of training: of three of the diffusion model, four of contrastive divergence. Of
SpecGAN's, the paper's rate doubled for short runs, a second was not trained as far: no choice.

References:
    Denoising diffusion probabilistic models (Ho et al., 2020), by `diffusers`
    Denoising diffusion implicit models (Song et al., 2020), by `diffusers`
    Progressive distillation for fast sampling of diffusion models (Salimans & Ho, 2022): v
"""

from __future__ import annotations

__all__ = ["DRAWN", "Clock", "Peer", "Diffusion", "batches", "falling", "seeded", "set_rate"]

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DRAWN = 50
"""Clips drawn at a time."""
LOOK = 10
"""Steps between waits for a GPU, so that the clock tells of work done and not of work queued."""


class Clock:
    """A budget of training: wall-clock seconds, steps, or both; it starts when it is made.

    Iterating gives the share of the budget that has passed, once a step, until it is used up.
    """

    def __init__(self, seconds: float, steps: int | None = None):
        self.seconds, self.steps, self.done = seconds, steps, 0
        self.began = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the start, once all work that a GPU was given is done."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - self.began

    @property
    def passed(self) -> float:
        """The share that has passed, from 0."""
        seconds = self.elapsed() if self.done % LOOK == 0 else time.perf_counter() - self.began
        by_steps = 0.0 if self.steps is None else self.done / self.steps
        return max(by_steps, seconds / self.seconds)

    def __iter__(self) -> Iterator[float]:
        while (passed := self.passed) < 1:
            yield passed
            self.done += 1


class Peer(nn.Module, ABC):
    """A generator of log-mels: subclasses have `fit` and `draw`.

    Arguments:
        shape: `(M, T)`.
        n_classes: Classes.
    """

    low: Tensor
    high: Tensor

    def __init__(self, shape: tuple[int, int], n_classes: int):
        super().__init__()
        self.shape, self.n_classes = shape, n_classes
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))

    @property
    def device(self) -> torch.device:
        return self.low.device

    @property
    def trained(self) -> int:
        """Numbers that gradients have trained."""
        return sum(p.numel() for p in self.parameters())

    @property
    def stored(self) -> int:
        """Numbers that are kept to draw from."""
        return self.trained

    def take_range(self, x: Tensor) -> Tensor:
        """Remember the least and the largest of x, and return x between -1 and 1."""
        self.low.copy_(x.min())
        self.high.copy_(x.max())
        return 2 * (x.to(self.device) - self.low) / (self.high - self.low) - 1

    def give_range(self, x: Tensor) -> Tensor:
        """From between -1 and 1 back to standardised log-mels."""
        return self.low + (x.clamp(-1, 1) + 1) / 2 * (self.high - self.low)

    @abstractmethod
    def fit(self, x: Tensor, y: Tensor, clock: Clock, seed: int) -> int:
        """Train on log-mels `(N, 1, M, T)` of classes `(N,)`, on any device, until the clock says
        so; returns the steps.
        """

    @abstractmethod
    def draw(self, y: Tensor, seed: int) -> Tensor:
        """Standardised log-mels `(n, 1, M, T)` of classes y `(n,)`, on the CPU; the same for the
        same classes, seed and device.
        """


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's own random state at a seed; as it was before, afterwards. ebmkit has no other."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def batches(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of `size` rows, every row once before any comes twice."""
    rows = torch.randperm(len(x))
    while True:
        while len(rows) < size:
            rows = torch.cat([rows, torch.randperm(len(x))])
        part, rows = rows[:size].to(x.device), rows[size:]
        yield x[part], y[part]


def falling(passed: float) -> float:
    """Share of the learning rate when so much of the time has passed."""
    return min(1.0, 2 * (1 - passed))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


class Diffusion(Peer):
    """A class-conditional DDPM: `diffusers`' UNet2DModel on patches, DDIM for drawing.

    Arguments:
        shape, n_classes: As of `Peer`.
        patch: Side of the squares of cells that make a pixel's channels.
        channels: Widths of the U-net, each at half the resolution of the one before.
        layers: Residual blocks at each.
        batch: Clips a step.
        rate: Learning rate of AdamW.
        steps: Of DDIM, with eta = 0.
        horizon: Of the diffusion; its betas are those of the cosine schedule.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        n_classes: int,
        patch: int = 2,
        channels: tuple[int, ...] = (32, 64, 128),
        layers: int = 1,
        batch: int = 16,
        rate: float = 1e-3,
        steps: int = 50,
        horizon: int = 1000,
    ):
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

        super().__init__(shape, n_classes)
        self.patch, self.batch, self.rate, self.steps = patch, batch, rate, steps
        network: Any = UNet2DModel(
            sample_size=(shape[0] // patch, shape[1] // patch),
            in_channels=patch**2,
            out_channels=patch**2,
            layers_per_block=layers,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            norm_num_groups=8,
            num_class_embeds=n_classes,
        )
        self.network = network.to(memory_format=torch.channels_last)
        how: dict[str, Any] = {
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "v_prediction",
        }
        self.forwards: Any = DDPMScheduler(horizon, **how)
        self.backwards: Any = DDIMScheduler(horizon, timestep_spacing="trailing", **how)

    def fit(self, x: Tensor, y: Tensor, clock: Clock, seed: int) -> int:
        from diffusers.training_utils import EMAModel

        average = EMAModel(self.network.parameters(), 0.999, use_ema_warmup=True, power=0.75)
        optimiser = torch.optim.AdamW(self.network.parameters(), self.rate, weight_decay=1e-4)
        self.network.train()
        with seeded(seed, self.device):
            clips = F.pixel_unshuffle(self.take_range(x), self.patch)
            rows = batches(clips, y.to(self.device), self.batch)
            for passed in clock:
                clip, label = next(rows)
                loss = self.loss(clip, label)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                set_rate(optimiser, self.rate * min(falling(passed), (clock.done + 1) / 100))
                optimiser.step()
                average.step(self.network.parameters())
        average.copy_to(self.network.parameters())
        self.network.eval()
        return clock.done

    def loss(self, clip: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of v, as the network finds it in noisy clips `(B, P, M', T')`."""
        noise = torch.randn_like(clip)
        horizon = self.forwards.config["num_train_timesteps"]
        t = torch.randint(horizon, (len(clip),), device=clip.device)
        noisy = self.forwards.add_noise(clip, noise, t)
        v = self.forwards.get_velocity(clip, noise, t)
        return F.mse_loss(self.network(noisy, t, class_labels=y).sample, v)

    @torch.no_grad()
    def draw(self, y: Tensor, seed: int) -> Tensor:
        with seeded(seed, self.device):
            return torch.cat([self._chunk(part.to(self.device)).cpu() for part in y.split(DRAWN)])

    def _chunk(self, y: Tensor) -> Tensor:
        size = (self.patch**2, *(side // self.patch for side in self.shape))
        x = torch.randn(len(y), *size, device=self.device)
        self.backwards.set_timesteps(self.steps, device=self.device)
        for t in self.backwards.timesteps:
            predicted = self.network(x, t, class_labels=y).sample
            x = self.backwards.step(predicted, t, x).prev_sample
        return self.give_range(F.pixel_shuffle(x, self.patch))
