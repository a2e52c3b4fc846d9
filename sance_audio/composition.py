r"""Clips of a sum of energies that were trained apart: digit 7, said by jackson.

    E(x | c_1 ... c_K) = sum_k w_k E_k(x | c_k),   E_k(x | c) = -log N(x; mu_c, C_c) + F_k(x | c)

c_k a component of the class y_k of model k, weighed by `p(c_k | y_k)^w_k`. With weights that sum
to 1 (the default is 1 / K) this is the geometric mean of the densities: what all models know of
any clip counts once, as in each of them. A product of Gaussians is a Gaussian,

    prod_k N(x; mu_k, C_k)^w_k = Z N(x; mu, C),    C^-1 = sum_k w_k C_k^-1
    mu = C sum_k w_k C_k^-1 mu_k,    log Z = sum_k w_k log N(mu; mu_k, C_k) - log N(mu; mu, C)

of low rank plus isotropic where they are. So the components of a clip are drawn together, with
probability `~ Z prod_k p(c_k | y_k)^w_k`, then x from the product of their Gaussians, all of it
exact where F = 0; Langevin dynamics adds `sum_k w_k F_k`.

References:
    Combining probability distributions (Genest & Zidek, 1986)
    Training products of experts by minimizing contrastive divergence (Hinton, 2002)
    Compositional visual generation with energy based models (Du, Li & Mordatch, 2020)
"""

from __future__ import annotations

__all__ = ["compose", "draw", "product", "ComposedEnergy"]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sance_audio.chunks import chunk_size, run_chunks, slices
from sance_audio.energy import GivenEnergy, Sum, rows_of
from sance_audio.gaussian import ComponentGaussian
from sance_audio.model import AudioEBM
from sance_audio.samplers import ReferenceLangevin, clip_seeds, sample

TOGETHER = 16
"""Products of Gaussians computed in one batch."""
ALIKE = 1e-3
"""Largest difference of two models' statistics, over the standard deviation of log-mels."""


def compose(
    parts: Sequence[tuple[AudioEBM, str | int]],
    n: int,
    generator: torch.Generator | None = None,
    *,
    weights: Sequence[float] | None = None,
    steps: int | None = None,
    reference_only: bool = False,
) -> Tensor:
    """New clips `(n, window)`, at the models' sample rate, that are of a class of each model.

        compose([(digits, "7"), (speakers, "jackson")], 16)

    Clip i of a generator's seed is the same whatever n. Seed 0 when there is no generator.

    Arguments:
        parts: Models with the class that is wanted of each, by name or index.
        n: Number of clips.
        generator: What decides the clips.
        weights, steps, reference_only: See `draw`.

    Raises:
        ValueError: no clips; an unknown class; models that differ in their features.
    """
    if n < 1 or not parts:
        raise ValueError(f"clips and models must be at least 1, found {n} and {len(parts)}")
    models, seeds = [model for model, _ in parts], clip_seeds(generator, n)
    classes = [_class(model, label) for model, label in parts]
    how: Any = {"weights": weights, "steps": steps, "reference_only": reference_only}
    return models[0].invert(draw(models, [classes] * n, seeds, **how), seeds)


@torch.no_grad()
def draw(
    models: Sequence[AudioEBM],
    classes: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
    steps: int | None = None,
    reference_only: bool = False,
) -> Tensor:
    """Log-mels `(B, 1, M, T)` of the sum of the models' energies, dequantised as they were drawn:
    cleaning takes away what tells speakers apart, and the inversion smooths by itself.

    Arguments:
        models: Of the same features, window and dequantisation.
        classes: Of each clip, the class of each model, by index: B times as many as there are
            models.
        seeds: Seed of each clip; with its place modulo 16, all that decides it.
        weights: w_k; all 1 / K when None. Of a larger sum: likelier and less varied clips.
        steps: Langevin steps; the largest of the models' own when None.
        reference_only: The product of the Gaussians alone, exactly.

    Raises:
        ValueError: models that differ in their features; other numbers of weights or classes than
            of models; an unknown class; a negative number of steps.
    """
    weights = _checked(models, weights)
    steps = max(model.steps for model in models) if steps is None else steps
    if steps < 0:
        raise ValueError(f"the number of Langevin steps cannot be negative, found {steps}")
    device, cells = models[0].device, models[0].reference.mean.shape[1]
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    c = _components(models, classes, weights, generators)
    n, chunk = len(c), chunk_size(device)
    size = -(-n // chunk) * chunk  # whole chunks: the bits of a clip do not depend on n
    generators += [torch.Generator(device).manual_seed(i) for i in range(size - n)]
    c = torch.cat([c, c[-1:].expand(size - n, -1)])
    noise = [torch.randn(cells, generator=g, device=device) for g in generators]
    eps, cap = min(m.step_size for m in models), min(m.cap for m in models)

    def finish(part: slice) -> Tensor:
        base = _single(_product(models, c[part], weights)[0])
        x = base.colour(torch.stack(noise[part])).view(-1, 1, *models[0].shape)
        if reference_only or steps == 0:
            return x
        given = [m.density.given(own) for m, own in zip(models, c[part].unbind(1), strict=True)]
        energy = ComposedEnergy(given, weights, base)
        sampler = ReferenceLangevin(base, eps, cap)
        return sample(energy, sampler, x, steps, generator=generators[part])

    return torch.cat(run_chunks(finish, slices(size, chunk), device.type == "cpu"))[:n]


class ComposedEnergy:
    """`x -> sum_k w_k E_k(x | c_k)`, up to log Z: its Gaussian part is one Gaussian a row.

    Arguments:
        energies: E_k, with the components held: `learnt`, its part F_k, and `rows`, as
            `GivenEnergy` has them.
        weights: w_k.
        base: Their `product`, one a row.
    """

    def __init__(
        self, energies: Sequence[GivenEnergy], weights: Sequence[float], base: ComponentGaussian
    ):
        self.energies, self.weights, self.base = tuple(energies), tuple(weights), base

    def __call__(self, x: Tensor) -> Tensor:
        return self.learnt(x) - self.base.log_prob(x)

    def learnt(self, x: Tensor) -> Tensor:
        """The networks' part, `sum_k w_k F_k(x | c_k)`, `(B,)` in nats."""
        return Sum([energy.learnt for energy in self.energies], self.weights)(x)

    def rows(self, part: Any) -> ComposedEnergy:
        return ComposedEnergy(
            [rows_of(energy, part) for energy in self.energies], self.weights, self.base.rows(part)
        )


def product(
    gaussians: Sequence[ComponentGaussian], weights: Sequence[float]
) -> tuple[ComponentGaussian, Tensor]:
    r"""`prod_k N_k(x)^w_k = Z N(x; mu, C)`, row by row, exactly: the Gaussian, and log Z `(B,)`.

    With `C_k^-1 = I / s_k - U_k G_k U_k^T`, `G_k = diag(1 / s_k - 1 / lambda_k)`, the bases side
    by side `V = [U_1 ...] = Q T`, and `t = sum_k w_k / s_k`,

        C^-1 = t I - V diag(w_k G_k) V^T = t (I - Q Q^T) + Q (t I - T diag(w_k G_k) T^T) Q^T

    In float32 log Z of thousands of cells is good to some hundredths of a nat.

    Arguments:
        gaussians: Of B rows each, over the same D cells.
        weights: w_k; one below 0 divides.

    Raises:
        ValueError: no Gaussian is left, where a weight is below 0.
    """
    parts = list(zip(gaussians, weights, strict=True))
    t = torch.stack([w / g.remainder for g, w in parts]).sum(0)
    gain = torch.cat([w * (1 / g.remainder[:, None] - 1 / g.eigenvalues) for g, w in parts], 1)
    q, triangle = torch.linalg.qr(torch.cat([g.basis for g in gaussians], 2))
    less, vectors = torch.linalg.eigh((triangle * gain.unsqueeze(1)) @ triangle.mT)
    precision = t.unsqueeze(1) - less
    if not bool((t > 0).all() and (precision > 0).all()):
        raise ValueError(
            f"weights {tuple(weights)} leave no density: what is divided by is narrower than the "
            f"rest; bring negative weights closer to 0"
        )
    start = gaussians[0].mean
    found = ComponentGaussian(start, q @ vectors, 1 / precision, 1 / t)
    pull = torch.stack([w * _times(g, g.mean - start, -1) for g, w in parts]).sum(0)
    found.mean = start + _times(found, pull, 1)
    top = torch.stack([w * g.log_prob(found.mean) for g, w in parts]).sum(0)
    return found, top - found.log_prob(found.mean)


def _times(g: ComponentGaussian, v: Tensor, power: float) -> Tensor:
    """C^power v, `(B, D)`."""
    along, elsewhere = g.eigenvalues**power, g.remainder**power
    return g.spectral(v.unsqueeze(1), along.unsqueeze(1), elsewhere.unsqueeze(1))


def _product(
    models: Sequence[AudioEBM], c: Tensor, weights: Sequence[float]
) -> tuple[ComponentGaussian, Tensor]:
    """The product of the models' components c `(B, K)`, in float64."""
    given = [m.density.base.given(own) for m, own in zip(models, c.unbind(1), strict=True)]
    return product([_typed(g, torch.float64) for g in given], weights)


def _typed(g: ComponentGaussian, dtype: torch.dtype) -> ComponentGaussian:
    return ComponentGaussian(
        g.mean.to(dtype), g.basis.to(dtype), g.eigenvalues.to(dtype), g.remainder.to(dtype)
    )


def _single(g: ComponentGaussian) -> ComponentGaussian:
    return _typed(g, torch.float32)


def _components(
    models: Sequence[AudioEBM],
    classes: Sequence[Sequence[int]],
    weights: Sequence[float],
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Components `(B, K)` of each clip's classes, drawn together."""
    known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    chosen = []
    for wanted, generator in zip(map(tuple, classes), generators, strict=True):
        if wanted not in known:
            known[wanted] = _combinations(models, wanted, weights)
        each, shares = known[wanted]
        chosen.append(each[torch.multinomial(shares, 1, generator=generator)[0]])
    return torch.stack(chosen)


def _combinations(
    models: Sequence[AudioEBM], classes: Sequence[int], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """All components of some classes with each other `(P, K)`, and their probabilities `(P,)`."""
    log_weights = [m.reference.log_weight(y) for m, y in zip(models, classes, strict=True)]
    inside = [w.isfinite().nonzero().flatten() for w in log_weights]
    each = torch.cartesian_prod(*inside).view(-1, len(models))
    joint = torch.cat([_product(models, c, weights)[1] for c in each.split(TOGETHER)])
    for w, own, log_weight in zip(weights, each.unbind(1), log_weights, strict=True):
        joint = joint + w * log_weight[own]
    return each, joint.softmax(0)


def _class(model: AudioEBM, label: str | int) -> int:
    """Index of a class by name, or as it is."""
    if isinstance(label, int):
        return label
    if label not in model.labels:
        known = ", ".join(model.labels) or "no labels"
        raise ValueError(f"label {label!r}: the model knows {known}")
    return model.labels.index(label)


def _checked(models: Sequence[AudioEBM], weights: Sequence[float] | None) -> tuple[float, ...]:
    """The weights. Raises ValueError for models whose x are not of one kind."""
    for number, model in enumerate(models[1:], 2):
        differ = _differences(models[0], model)
        if differ:
            raise ValueError(
                f"model {number} is not of the same log-mels as the first ({', '.join(differ)}): "
                f"energies add up only where x is the same; train both on the same clips, with "
                f"the same features and window"
            )
    given = (1 / len(models),) * len(models) if weights is None else tuple(weights)
    if len(given) != len(models):
        raise ValueError(f"{len(given)} weights for {len(models)} models: one each")
    return given


def _differences(model: AudioEBM, other: AudioEBM) -> list[str]:
    """In what the x of two models differ, in words."""
    a, b = (m.features.settings for m in (model, other))
    names = "frames", "peak", "sigma", "device"
    a, b = (f | {name: getattr(m, name) for name in names} for f, m in ((a, model), (b, other)))
    words = [f"{name} {b[name]}, not {a[name]}" for name in a if a[name] != b[name]]
    near = ALIKE * float(model.features.std)
    for name in ("mean", "std"):
        found, expected = (float(getattr(m.features, name)) for m in (other, model))
        if abs(found - expected) > near:
            words.append(f"{name} {found:.4g}, not {expected:.4g}")
    return words
