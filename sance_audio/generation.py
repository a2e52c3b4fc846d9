r"""Samples of a model: exact draws of the reference, moved by Langevin dynamics, and cleaned.

    x_hat = x - sigma^2 grad E(x)

The last step is Tweedie's formula: the mean of what x was before noise of standard deviation sigma
was added to it, if E is minus the log density of noisy x.
"""

from __future__ import annotations

__all__ = ["draw"]

from collections.abc import Sequence

import torch
from torch import Tensor

from sance_audio.chunks import chunk_size, run_chunks, slices
from sance_audio.energy import EnergyModel, GivenEnergy, ReferencedEnergy, value_and_grad
from sance_audio.samplers import Compute, ReferenceLangevin, descend, sample


def draw(
    model: EnergyModel,
    classes: Sequence[int],
    seeds: Sequence[int],
    *,
    steps: int,
    step_size: float,
    cap: float,
    temperature: float = 1.0,
    reference_only: bool = False,
    compute: Compute | None = None,
) -> tuple[Tensor, Tensor]:
    """Cleaned log-mels `(B, 1, M, T)` of the given classes, and their components `(B,)`.

    Arguments:
        model: Density and sigma.
        classes: Class of each sample.
        seeds: Seed of each sample; with its place modulo 16, all that decides it.
        steps: Langevin steps; of a noise-conditional model, those of all levels together.
        step_size: eps of the sampler.
        cap: Its cap.
        temperature: tau: samples of p^(1 / tau), reference and network alike; below 1 likelier and
            less varied.
        reference_only: Leave the samples as the reference drew them.
        compute: How steps are computed, and with how many threads; part of what decides the last
            bits.

    Raises:
        ValueError: a negative number of steps; an unknown class; a temperature that is not
            positive.
    """
    if steps < 0:
        raise ValueError(f"the number of Langevin steps cannot be negative, found {steps}")
    device, density, compute = model.device, model.density, compute or Compute()
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    c = torch.stack([_pick(model, y, g) for y, g in zip(classes, generators, strict=True)])
    n, chunk = len(c), chunk_size(device)
    size = -(-n // chunk) * chunk  # whole chunks: the bits of a clip do not depend on n
    generators += [torch.Generator(device).manual_seed(i) for i in range(size - n)]
    full = torch.cat([c, c[-1:].expand(size - n)])
    cells = model.reference.mean.shape[1]
    noise = [torch.randn(cells, generator=g, device=device) for g in generators]
    own = 1.0 if reference_only else density.temperature  # the reference is as it was fitted
    if reference_only:
        density = ReferencedEnergy(model.reference, density.network)
    drawn = ReferencedEnergy(model.reference, density.network, temperature * own)
    base_of = drawn.base

    def finish(part: slice) -> Tensor:
        base, start = base_of.given(full[part]), torch.stack(noise[part])
        x = base.colour(start).view(-1, 1, *model.shape)
        energy = GivenEnergy(density, full[part], 0.0 if reference_only else 1.0)
        if not reference_only and steps > 0 and hasattr(density.network, "levels"):
            how = {"step_size": step_size, "cap": cap, "compute": compute}
            own = generators[part]
            x = descend(drawn, start, full[part], model.shape, steps, generator=own, **how)
        elif not reference_only and steps > 0:
            sampler, moving = ReferenceLangevin(base, step_size, cap), drawn.given(full[part])
            x = sample(moving, sampler, x, steps, generator=generators[part], compute=compute)
        return x - model.sigma**2 * value_and_grad(energy, x)[1]

    on_cpu = device.type == "cpu"
    parts = run_chunks(finish, slices(size, chunk), on_cpu, compute.threads if on_cpu else 1)
    return torch.cat(parts)[:n], c


def _pick(model: EnergyModel, label: int, generator: torch.Generator) -> Tensor:
    """One component of a class, by weight."""
    weights = model.reference.log_weight(label).exp()
    return torch.multinomial(weights, 1, generator=generator)[0]
