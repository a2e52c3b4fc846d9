r"""Energies of normals relative to backgrounds, learnt by noise-contrastive estimation.

For each background j (`perturbations`) with density p_j, one network has a log ratio
`h_j = log p / p_j` per frame, its mean over time per clip; `F_j = -h_j` is the energy of normals
minus that of the background. The loss is logistic, with as many samples of each background as of
normals:

    mean softplus(-h_j(x)) over normals + mean softplus(h_j(y)) over background j, averaged over j

Bare energies are poor detectors (low is not typical), so the detector asks how typical the
network's inner view of a clip is: mean and deviation over time of what the heads read.

References:
    Noise-contrastive estimation (Gutmann & Hyvarinen, 2010)
    Likelihood ratios for out-of-distribution detection (Ren et al., 2019)
    Deep anomaly detection using geometric transformations (Golan & El-Yaniv, 2018)
"""

from __future__ import annotations

__all__ = ["ContrastConfig", "Contrast", "Energies"]

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu, softplus

from sance_audio.detection.descriptors import FLOOR, N_MELS, deviation
from sance_audio.detection.perturbations import BACKGROUNDS, Background, Gaussian

SHORTEST, LONGEST = 24, 64
"""Frames of a crop: the median clip's, between these."""
REFERENCE_CROPS = 300
"""That the Gaussian reference is fitted to."""


@dataclass(frozen=True)
class ContrastConfig:
    """How the energies are learnt."""

    steps: int = 150
    crops: int = 16
    """Normals of a step, and samples of each background."""
    rate: float = 2e-3
    """Of AdamW; falls linearly to zero from half-way."""
    decay: float = 1e-2
    jitter: float = 0.2
    """Standard deviation of the dequantisation, of log-mels scaled to 1."""
    penalty: float = 1e-3
    """Weight of the mean squared log ratio."""
    clip: float = 2.0
    """Largest norm of the gradient."""


PRESETS = {
    "smoke": ContrastConfig(steps=2, crops=4),
    "cpu": ContrastConfig(),
    "gpu": ContrastConfig(),
}


class Energies(nn.Module):
    """Log-mels `(B, M, T)`, standardised, to log ratios h `(B, J, T')` of J backgrounds, T' = T/2
    rounded up: convolutions over time, bands as channels. Zero at its start.

    Arguments:
        backgrounds: J.
        width: Channels.
        generator: Of the first weights.
    """

    def __init__(
        self, backgrounds: int, width: int = 64, generator: torch.Generator | None = None
    ):
        super().__init__()
        self.stem = nn.Conv1d(N_MELS, width, 5, stride=2, padding=2)
        blocks = [nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 4)]
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv1d(width, backgrounds, 1)
        for layer, gain in ((self.stem, 1.0), *((block, 1.7) for block in blocks)):
            deviation = gain / math.sqrt(layer.weight[0].numel())
            nn.init.normal_(layer.weight, std=deviation, generator=generator)
        nn.init.zeros_(self.head.weight)
        for layer in (self.stem, *blocks, self.head):
            nn.init.zeros_(layer.get_parameter("bias"))

    def trunk(self, x: Tensor) -> Tensor:
        """What the heads read, `(B, width, T')`."""
        h = self.stem(x)
        for block in self.blocks:
            h = (h + block(silu(h))) / math.sqrt(2)
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.head(silu(self.trunk(x)))


class Contrast:
    """Energies with the scale of the log-mels they were learnt on.

    Arguments:
        energies: The network.
        mean: `(M, 1)`, of the normals' bands.
        scale: Deviation of their log-mels.
    """

    def __init__(self, energies: Energies, mean: Tensor, scale: Tensor):
        self.energies, self.mean, self.scale = energies.eval().requires_grad_(False), mean, scale

    @classmethod
    def fit(cls, log_mels: Sequence[Tensor], config: ContrastConfig, seed: int) -> Contrast:
        """Learn from normals' log-mels, each `(M, T)`, T of its own."""
        g = torch.Generator().manual_seed(seed)
        whole = torch.cat(list(log_mels), 1)
        mean, scale = whole.mean(1, keepdim=True), whole.std().clamp_min(1e-3)
        length = window_of(log_mels)
        reference = Gaussian(_crops(log_mels, length, REFERENCE_CROPS, g) - mean)
        backgrounds: list[Background] = [*BACKGROUNDS.values(), reference]
        energies = Energies(len(backgrounds), generator=g)
        optimiser = torch.optim.AdamW(
            energies.parameters(), config.rate, betas=(0.9, 0.99), weight_decay=config.decay
        )
        for step in range(config.steps):
            for group in optimiser.param_groups:
                group["lr"] = config.rate * min(1.0, 2 * (1 - step / config.steps))
            x = _crops(log_mels, length, config.crops, g) - mean
            x = torch.cat([x, *(background(x, g) for background in backgrounds)]) / scale
            x = x + config.jitter * torch.randn(x.shape, generator=g)
            h = energies(x).mean(2).view(len(backgrounds) + 1, config.crops, len(backgrounds))
            noise = h[1:].diagonal(dim1=0, dim2=2)
            loss = softplus(-h[0]).mean() + softplus(noise).mean()
            loss = loss + config.penalty * h.square().mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(energies.parameters(), config.clip)
            optimiser.step()
        return cls(energies, mean, scale)

    @torch.no_grad()
    def __call__(self, log_mel: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Of a clip's log-mels `(M, T)`: mean and deviation over time of the trunk `(2 width,)`,
        and F `(T',)`, the mean over backgrounds of the energy of each frame.
        """
        short = max(0, SHORTEST - log_mel.shape[1])
        x = (pad(log_mel, (0, short), value=math.log(FLOOR)) - self.mean) / self.scale
        a = self.energies.trunk(x.unsqueeze(0))
        f = -self.energies.head(silu(a))[0].mean(0)
        return torch.cat([a[0].mean(1), deviation(a[0])]).numpy(), f.numpy()

    def tensors(self) -> dict[str, Tensor]:
        """What `restore` makes it again from."""
        return {**self.energies.state_dict(), "mean": self.mean, "scale": self.scale}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor]) -> Contrast:
        weights = {k: v for k, v in tensors.items() if k not in ("mean", "scale")}
        head, stem = weights["head.bias"], weights["stem.bias"]
        energies = Energies(len(head), len(stem))
        energies.load_state_dict(weights)
        return cls(energies, tensors["mean"], tensors["scale"])


def window_of(log_mels: Sequence[Tensor]) -> int:
    """Frames of a crop."""
    median = float(np.median([x.shape[1] for x in log_mels]))
    return int(min(LONGEST, max(SHORTEST, median)))


def _crops(log_mels: Sequence[Tensor], length: int, count: int, g: torch.Generator) -> Tensor:
    """Random crops `(count, M, length)`; short clips are followed by silence."""
    out = []
    for k in torch.randint(0, len(log_mels), (count,), generator=g).tolist():
        x = log_mels[k]
        extra = x.shape[1] - length
        if extra <= 0:
            out.append(pad(x, (0, -extra), value=math.log(FLOOR)))
        else:
            start = int(torch.randint(0, extra + 1, (), generator=g))
            out.append(x[:, start : start + length])
    return torch.stack(out)
