"""What samplers must keep to, as z-scores: `law(seed)` gives standard errors from the truth.

Used by test_samplers.py, where each must hold, and by planted_faults.py, where each fault must
make one fail. The skewed target has the energy sum(exp(x) - x): x is the logarithm of an
exponential variable, so exact draws are at hand; its mean is -0.5772, variance 1.6449, fourth
central moment 14.61. A Gaussian would hide an error of sign.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sance_audio.diagnostics import mean_ess
from sance_audio.reference import ComponentGaussian, GaussianReference
from sance_audio.samplers import (
    HMC,
    MALA,
    Annealed,
    Langevin,
    ReferenceLangevin,
    ReferencePreconditioner,
    ReplicaExchange,
    sample,
)

MEAN, VARIANCE, FOURTH = -0.5772156649, 1.6449340668, 14.6113636
"""Mean and central moments of the skewed target."""
ENOUGH = 200
"""Effective samples, below which the moments of long chains are not judged; the fewest that any
sampler here has are about 600.
"""


def gumbel(x: Tensor) -> Tensor:
    """Energy exp(x) - x in each dimension."""
    return (x.exp() - x).sum(1)


def exact(shape: tuple[int, ...], generator: torch.Generator, beta: float = 1.0) -> Tensor:
    """Exact draws of `beta * gumbel`: log of a Gamma(beta) variable of rate beta."""
    if beta == 1:
        return torch.empty(shape).exponential_(generator=generator).log()
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        gamma = torch.distributions.Gamma(torch.tensor(beta), torch.tensor(beta))
        return gamma.sample(shape).log()


def reference(lam: tuple[float, ...] = (2.5, 0.4), rest: float = 0.8) -> GaussianReference:
    """A Gaussian in four dimensions with mean 0.3 and the given eigenvalues, then `rest`."""
    basis = torch.eye(4)[None, :, : len(lam)]
    return GaussianReference(
        torch.full((1, 4), 0.3), basis, torch.tensor([lam]), torch.tensor([rest])
    )


def given() -> ComponentGaussian:
    return reference().given(torch.zeros(1, dtype=torch.long))


def moments(x: Tensor, mean: float | Tensor, variance: float | Tensor, kurtosis: float) -> Tensor:
    """z-scores of mean and variance of independent rows `(n, D)`, of the products of neighbouring
    dimensions, and of rows 1, 2 and n / 2 apart, whose means are 0; kurtosis is the fourth
    central moment over the variance squared.
    """
    n, u = len(x), (x.double() - mean) / torch.as_tensor(variance).double().sqrt()
    across = u * u.roll(1, 1) if u.shape[1] > 1 else u[:, :0]
    found = [u.mean(0) * n**0.5, (u.square().mean(0) - 1) * (n / (kurtosis - 1)) ** 0.5]
    return torch.cat([*found, across.mean(0) * n**0.5, *apart(u)])


def apart(u: Tensor) -> list[Tensor]:
    """z-scores `(1,)` of the mean products of standardised rows 1, 2 and n / 2 apart; each row is
    in one pair.
    """
    half = len(u) // 2
    pairs = ((u[::2], u[1::2]), (u[::4], u[2::4]), (u[1::4], u[3::4]), (u[:half], u[half:]))
    return [(a * b).sum().reshape(1) / (a * b).square().sum().sqrt() for a, b in pairs]


def transient(seed: int, n: int = 20_000, eps: float = 0.3, steps: int = 3) -> Tensor:
    """ULA on a Gaussian: `u' = (1 - eps P/C) u + sqrt(2 eps P) xi`, so that mean and variance
    after k steps are known; P the reference's covariance, capped at 1.
    """
    g, base = torch.Generator().manual_seed(seed), given()
    lam = torch.tensor([2.5, 0.4, 0.8, 0.8])
    p = lam.clamp_max(1.0)
    mean, variance = torch.full((4,), 2.0), torch.zeros(4)
    for _ in range(steps):
        mean, variance = (
            (1 - eps * p / lam) * mean,
            (1 - eps * p / lam) ** 2 * variance + 2 * eps * p,
        )
    sampler = Langevin(eps, ReferencePreconditioner(base))
    x = sample(lambda x: -base.log_prob(x), sampler, torch.full((n, 4), 2.3), steps, generator=g)
    return moments(x - 0.3, mean, variance, 3.0)


def ornstein_uhlenbeck(seed: int, n: int = 20_000, eps: float = 0.3, steps: int = 3) -> Tensor:
    """ReferenceLangevin with F = 0, from a point: mean rho^k u_0, variance (1 - rho^2k) lambda."""
    g, base = torch.Generator().manual_seed(seed), given()
    lam = torch.tensor([2.5, 0.4, 0.8, 0.8])
    rho = torch.exp(-eps * lam.clamp_max(1.0) / lam) ** steps
    sampler = ReferenceLangevin(base, eps)
    x = sample(lambda x: -base.log_prob(x), sampler, torch.full((n, 4), 2.3), steps, generator=g)
    return moments(x - 0.3, 2 * rho, (1 - rho**2) * lam, 3.0)


def reference_invariant(eps: float):
    """ReferenceLangevin with F = 0 leaves exact draws of the reference as they are."""

    def law(seed: int, n: int = 20_000) -> Tensor:
        g, base = torch.Generator().manual_seed(seed), reference()
        x = base.sample(torch.zeros(n, dtype=torch.long), g)
        energy = lambda x: -given().log_prob(x)  # noqa: E731
        x = sample(energy, ReferenceLangevin(base, eps), x, 3, generator=g)
        return moments(x, 0.3, torch.tensor([2.5, 0.4, 0.8, 0.8]), 3.0)

    return law


def scores(x: Tensor, beta: float = 1.0) -> Tensor:
    """z-scores of independent rows that should be draws of beta times the skewed target's energy:
    log Gamma variables, whose cumulants are polygamma functions.
    """
    b = torch.tensor(beta, dtype=torch.float64)
    mean, variance = b.digamma() - b.log(), torch.polygamma(1, b)
    kurtosis = 3 + float(torch.polygamma(3, b) / variance**2)
    mean_of_exp = (x.double().exp().mean(0) - 1) * (len(x) * beta) ** 0.5
    return torch.cat([moments(x, mean, variance, kurtosis), mean_of_exp])


def invariant(build, steps: int = 6, n: int = 60_000, chunk: int | None = None):
    """Exact draws of the skewed target stay exact draws, and neighbours move on their own."""

    def law(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        x0 = exact((n, 2), g)
        x = sample(gumbel, build(), x0, steps, generator=g, chunk=chunk)
        moved = (x - x0).abs().mean(1).clamp_max(2.0).double()
        return torch.cat([scores(x), *apart(((moved - moved.mean()) / moved.std())[:, None])])

    return law


def long_run(build, target=gumbel):
    """64 chains from one point, 300 steps and 700 more: mean and variance, with as many effective
    samples as the chains say; at least `ENOUGH` of them.
    """

    def law(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        draws = sample(target, build(), torch.zeros(64, 2), 1000, generator=g, thin=1)[300:]
        draws = draws.transpose(0, 1).double()
        found = []
        for power, truth, spread in ((1, 0.0, VARIANCE), (2, VARIANCE, FOURTH - VARIANCE**2)):
            v = (draws - MEAN).pow(power)
            ess = mean_ess(v)
            assert bool((ess > ENOUGH).all()), f"too few effective samples: {ess.tolist()}"
            found.append((v.mean((0, 1)) - truth) / (spread / ess).sqrt())
        return torch.cat(found)

    return law


def replicas_invariant(seed: int, n: int = 10_000, steps: int = 5) -> Tensor:
    """Replicas at exact draws of their temperatures stay so, each, and independent of each other
    and in whether they were exchanged; and exchange as often as exact draws would.
    """
    g = torch.Generator().manual_seed(seed)
    betas = (1.0, 0.6, 0.35, 0.2)
    sampler = ReplicaExchange(MALA(0.5), betas)
    xs = torch.stack([exact((n, 2), g, beta) for beta in betas])
    state = sampler.start(gumbel, xs)
    for _ in range(steps):
        before = state
        state, _ = sampler.step(gumbel, state, g)
    replicas = state.replicas.x.view(4, n, 2)
    found = [scores(x, beta) for x, beta in zip(replicas, betas, strict=True)]
    u = torch.stack([_centred(x, beta) for x, beta in zip(replicas, betas, strict=True)])
    products = torch.cat([u[:-1] * u[1:], u[:1] * u[2:3], u[1:2] * u[3:]])
    found.append((products.sum(1) / products.square().sum(1).sqrt()).flatten())
    found.append(_exchanged(before, state, n, betas))
    return torch.cat(found)


def _centred(x: Tensor, beta: float) -> Tensor:
    b = torch.tensor(beta, dtype=torch.float64)
    return x.double() - (b.digamma() - b.log())


def _exchanged(before: Any, after: Any, n: int, betas: tuple[float, ...]) -> Tensor:
    """z-scores, of the last step, an even one: whether pairs (0, 1) and (2, 3) were exchanged
    together; and of the chances that were told, against those of fresh exact draws.
    """
    told = after.swaps - before.swaps
    g = torch.Generator().manual_seed(1234)
    found = []
    for r in (0, 2):
        a, b = (gumbel(exact((n, 2), g, beta)) for beta in betas[r : r + 2])
        chance = ((betas[r] - betas[r + 1]) * (a - b)).clamp_max(0).exp().double()
        found.append((told[r] - chance.mean()) / (chance.std() * (2 / n) ** 0.5))
    x, y = (state.replicas.x.view(4, n, 2) for state in (before, after))
    # a place that came from the neighbour is far from where it was
    far = (y - x).abs().mean(2).clamp_max(2.0).double()
    far = (far - far.mean(1, keepdim=True)) / far.std(1, keepdim=True)
    together = far[1] * far[2]
    return torch.stack([*found, together.sum() / together.square().sum().sqrt()])


def acceptance(build, steps: int = 3, n: int = 20_000):
    """Proposals are accepted as often as is told."""

    def law(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        sampler, found = build(), []
        state = sampler.init(gumbel, exact((n, 2), g))
        for _ in range(steps):
            after, info = sampler.step(gumbel, state, g)
            moved = (after.x != state.x).any(1).double()
            a, state = info.accepted.double(), after
            found.append((moved - a).sum() / (a * (1 - a)).sum().clamp_min(1.0).sqrt())
        return torch.stack(found)

    return law


def per_chain(build, n: int = 40_000):
    """A step size a chain, and a reference a chain, in no order: still invariant."""
    eps = 0.1 + 0.9 * torch.rand(n, generator=torch.Generator().manual_seed(99))
    return invariant(lambda: build(eps, n), n=n)


def differing(n: int) -> ComponentGaussian:
    """Two kinds of Gaussians, in no order."""
    kind = torch.randint(2, (n,), generator=torch.Generator().manual_seed(98))
    mean = torch.tensor([[-0.4, -0.4], [0.2, -1.0]])[kind]
    basis = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])[kind]
    return ComponentGaussian(
        mean, basis, torch.tensor([[1.5], [3.0]])[kind], torch.tensor([1.0, 2.0])[kind]
    )


class Tilted:
    """Reference `standard()` times exp(-F), F = |x|^2 / 2: a Gaussian at every beta F."""

    def learnt(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.learnt(x) - standard().log_prob(x)


def tilted(beta: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of the reference times exp(-beta F)."""
    lam = torch.tensor([1.5, 1.0])
    variance = 1 / (1 / lam + beta)
    return variance * (-0.4 / lam), variance


def tempered_network(seed: int, n: int = 20_000) -> Tensor:
    """With a reference beta scales F alone: annealed at one half, and in replicas."""
    g = torch.Generator().manual_seed(seed)
    mala, found = ReferenceLangevin(standard(), 0.6, adjusted=True), []
    ladder = ReplicaExchange(mala, (1.0, 0.5))
    xs = []
    for beta in ladder.betas:
        mean, variance = tilted(beta)
        xs.append(mean + variance.sqrt() * torch.randn(n, 2, generator=g))
    x = sample(Tilted(), Annealed(mala, lambda step: 0.5), xs[1], 4, generator=g)
    found.append(moments(x, *tilted(0.5), 3.0))
    state = ladder.start(Tilted(), torch.stack(xs))
    for _ in range(4):
        state, _ = ladder.step(Tilted(), state, g)
    for beta, x in zip(ladder.betas, state.replicas.x.view(2, n, 2), strict=True):
        found.append(moments(x, *tilted(beta), 3.0))
    return torch.cat(found)


def annealed_at_one(build):
    """A schedule that has come to 1 leaves the target invariant."""
    return invariant(lambda: Annealed(build(), lambda step: 1.0))


def annealed_below(seed: int, n: int = 20_000) -> Tensor:
    """At beta = 0.5 throughout, draws of `0.5 E` stay so."""
    g = torch.Generator().manual_seed(seed)
    x = sample(
        gumbel, Annealed(MALA(0.8), lambda step: 0.5), exact((n, 2), g, 0.5), 3, generator=g
    )
    return scores(x, 0.5)


def standard() -> ComponentGaussian:
    """One Gaussian of two dimensions, of variances 1.5 and 1 and mean -0.4."""
    one = torch.tensor([[[1.0], [0.0]]])
    mean = torch.full((1, 2), -0.4)
    return ComponentGaussian(mean, one, torch.tensor([[1.5]]), torch.tensor([1.0]))


class Bent:
    """A fixed preconditioner that is not a multiple of the identity."""

    p = torch.tensor([1.4, 0.5])

    def apply(self, v: Tensor) -> Tensor:
        return self.p * v

    def root(self, v: Tensor) -> Tensor:
        return self.p.sqrt() * v


ADJUSTED = {
    "MALA": lambda: MALA(0.6),
    "MALA, long steps": lambda: MALA(1.5),
    "MALA, preconditioned": lambda: MALA(0.6, Bent()),
    "HMC": lambda: HMC(0.7, 3),
    "HMC, preconditioned": lambda: HMC(0.6, 2, Bent()),
    "adjusted ReferenceLangevin": lambda: ReferenceLangevin(standard(), 0.6, adjusted=True),
    "replica exchange": lambda: ReplicaExchange(MALA(0.5), (1.0, 0.5)),
}

LAWS = {
    "ULA transient": transient,
    "OU transient": ornstein_uhlenbeck,
    **{f"reference invariant, eps {e}": reference_invariant(e) for e in (0.05, 1.0, 20.0)},
    **{f"{name} invariant": invariant(f) for name, f in ADJUSTED.items() if "replica" not in name},
    **{f"{name} moments": long_run(f) for name, f in ADJUSTED.items()},
    **{f"{name} acceptance": acceptance(f) for name, f in ADJUSTED.items() if "rep" not in name},
    "MALA, a step size a chain": per_chain(lambda eps, n: MALA(eps)),
    "HMC, a step size a chain": per_chain(lambda eps, n: HMC(eps, 2)),
    "adjusted ReferenceLangevin, a step size and a reference a chain": per_chain(
        lambda eps, n: ReferenceLangevin(differing(n), eps, adjusted=True)
    ),
    "MALA in chunks": invariant(ADJUSTED["MALA"], chunk=10_000),
    "replicas invariant": replicas_invariant,
    "tempered network": tempered_network,
    "annealed MALA at 1": annealed_at_one(ADJUSTED["MALA"]),
    "annealed MALA at one half": annealed_below,
}
