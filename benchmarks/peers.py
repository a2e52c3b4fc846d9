"""What a user would pick instead of `sample`, on the same energy and step size."""

from __future__ import annotations

__all__ = ["Run", "bare", "torchebm", "ebmkit", "others", "ours"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sance_audio.samplers import Compute, Langevin, sample

Run = Callable[[int], Any]
"""Runs so many Langevin steps from x0."""


def bare(energy: Any, x0: Tensor, eps: float) -> Run:
    """Gradient and update, nothing else."""
    generator, noise = torch.Generator(x0.device).manual_seed(0), (2 * eps) ** 0.5

    def run(steps: int) -> Tensor:
        x = x0
        for _ in range(steps):
            x = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(energy(x).sum(), x)
            xi = torch.randn(x.shape, generator=generator, device=x.device)
            x = x.detach() - eps * grad + noise * xi
        return x

    return run


def torchebm(energy: Any, x0: Tensor, eps: float) -> Run:
    """torchebm's LangevinDynamics."""
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return energy(x)

    model = Model().to(x0.device)
    sampler = LangevinDynamics(model, step_size=eps, noise_scale=1.0, device=x0.device)
    return lambda steps: sampler.sample(x=x0, n_steps=steps)


def ebmkit(energy: Any, x0: Tensor, eps: float) -> Run:
    """ebmkit's LangevinDynamics."""
    from ebm.samplers import LangevinDynamics

    sampler = LangevinDynamics(step_size=eps)
    return lambda steps: sampler.sample(energy, x0, steps=steps)


def others(energy: Any, x0: Tensor, eps: float) -> dict[str, Run]:
    """torchebm and ebmkit, as far as they are installed."""
    found: dict[str, Run] = {}
    for peer in (torchebm, ebmkit):
        try:
            found[peer.__name__] = peer(energy, x0, eps)
        except ImportError:
            print(f"{peer.__name__} is not installed: pip install 'sance-audio[bench]'")
    return found


def ours(energy: Any, x0: Tensor, eps: float, compute: Compute | None = None) -> Run:
    """`sample` with `Langevin`, computed as told."""
    generator = torch.Generator(x0.device).manual_seed(0)
    return lambda steps: sample(
        energy, Langevin(eps), x0, steps, generator=generator, chunk=len(x0), compute=compute
    )
