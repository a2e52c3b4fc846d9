import pytest
import torch
from checks import holds_on_a_fresh_seed
from conftest import random_reference

from sance_audio import samplers
from sance_audio.energy import value_and_grad
from sance_audio.reference import GaussianReference
from sance_audio.samplers import Langevin, ReferenceLangevin, sample


def gumbel(x: torch.Tensor) -> torch.Tensor:
    """Energy exp(x) - x in each dimension: skewed; mean -0.5772, variance 1.6449, 4th moment
    14.61.
    """
    return (x.exp() - x).sum(1)


def narrow_reference(dimensions: int = 4) -> GaussianReference:
    basis = torch.eye(dimensions)[None, :, :2]
    return GaussianReference(
        torch.full((1, dimensions), 0.3), basis, torch.tensor([[2.5, 0.4]]), torch.tensor([0.8])
    )


SAMPLERS = {
    "langevin": lambda reference: Langevin(0.05),
    "reference langevin": lambda reference: ReferenceLangevin(reference, 0.1),
    "adjusted reference langevin": lambda reference: ReferenceLangevin(
        reference, 0.3, adjusted=True
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name, generator):
    """What every sampler keeps to; a new one joins by a line in SAMPLERS."""
    sampler = SAMPLERS[name](narrow_reference())
    x = torch.randn(6, 4, generator=generator)
    state = sampler.init(gumbel, x)
    assert torch.equal(state.x, x)
    moved, info = sampler.step(gumbel, state, generator)
    assert moved.x.shape == x.shape
    assert info.accepted.shape == (6,)
    assert ((info.accepted >= 0) & (info.accepted <= 1)).all()
    assert not moved.x.requires_grad
    again = sampler.init(gumbel, moved.x)
    torch.testing.assert_close(moved.value, again.value)
    torch.testing.assert_close(moved.grad, again.grad)
    # a generator per chain: a chain does not depend on its neighbours
    seeds = [torch.Generator().manual_seed(i) for i in range(6)]
    alone = [torch.Generator().manual_seed(2)]
    many = sample(gumbel, sampler, x, 3, generator=seeds)
    one = sample(gumbel, sampler, x[2:3], 3, generator=alone)
    torch.testing.assert_close(many[2:3], one)


def test_reference_langevin_has_the_ornstein_uhlenbeck_transient():
    """From a point, k steps give mean rho^k u0 and variance (1 - rho^2k) lambda, in each
    direction.
    """
    reference, n, steps, eps = narrow_reference(), 20_000, 3, 0.3
    lam = torch.tensor([2.5, 0.4, 0.8, 0.8])
    rho = torch.exp(-eps * lam.clamp_max(1.0) / lam) ** steps

    def scores(seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        x0 = torch.full((n, 4), 2.3)
        energy = lambda x: -reference.given(torch.zeros(1, dtype=torch.long)).log_prob(x)  # noqa: E731
        u = sample(energy, ReferenceLangevin(reference, eps), x0, steps, generator=g) - 0.3
        var = (1 - rho**2) * lam
        centred = u - 2 * rho
        return torch.cat(
            [
                centred.mean(0) / (var / n).sqrt(),
                (centred.square().mean(0) - var) / (var * (2 / n) ** 0.5),
            ]
        )

    holds_on_a_fresh_seed(scores)


def moments(sampler_of, faulty=lambda x: x):
    """Moments of the skewed target after 400 steps of 4,000 independent chains."""
    n = 4000

    def scores(seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        x = faulty(sample(gumbel, sampler_of(), torch.zeros(n, 1), 400, generator=g).double())
        mean, variance, fourth = -0.5772157, 1.6449341, 14.6114
        centred = x - mean
        return torch.stack(
            [
                centred.mean() / (variance / n) ** 0.5,
                (centred.square().mean() - variance) / ((fourth - variance**2) / n) ** 0.5,
            ]
        )

    return scores


def test_the_adjusted_sampler_has_the_right_moments_on_a_skewed_target():
    one = GaussianReference(
        torch.zeros(1, 1), torch.ones(1, 1, 1), torch.tensor([[1.5]]), torch.tensor([1.0])
    )
    holds_on_a_fresh_seed(moments(lambda: ReferenceLangevin(one, 0.5, adjusted=True)))


def scale_noise(monkeypatch, factor: float) -> None:
    whole = samplers.randn
    monkeypatch.setattr(samplers, "randn", lambda like, g: factor * whole(like, g))


@pytest.mark.parametrize("fault", ["noise x 1.2", "wrong sign", "no acceptance"])
def test_the_moment_test_catches_planted_faults(fault, monkeypatch):
    one = GaussianReference(
        torch.zeros(1, 1), torch.ones(1, 1, 1), torch.tensor([[1.5]]), torch.tensor([1.0])
    )
    if fault == "noise x 1.2":
        scale_noise(monkeypatch, 1.2)
    if fault == "wrong sign":
        ratio = ReferenceLangevin._log_ratio
        monkeypatch.setattr(ReferenceLangevin, "_log_ratio", lambda s, a, b: -ratio(s, a, b))
    sampler = ReferenceLangevin(one, 0.5, adjusted=fault != "no acceptance")
    assert (moments(lambda: sampler)(0).abs() > 4).any()


def invariance(step_size: float):
    """z-scores of the reference's moments after three steps from exact draws, with F = 0."""
    reference, n = narrow_reference(), 20_000
    variances = torch.tensor([2.5, 0.4, 0.8, 0.8])

    def energy(x: torch.Tensor) -> torch.Tensor:
        return -reference.log_prob(x, torch.zeros(1, dtype=torch.long))

    def scores(seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        x = reference.sample(torch.zeros(n, dtype=torch.long), g)
        u = sample(energy, ReferenceLangevin(reference, step_size), x, 3, generator=g) - 0.3
        mean = u.mean(0) / (variances / n).sqrt()
        variance = (u.square().mean(0) - variances) / (variances * (2 / n) ** 0.5)
        return torch.cat([mean, variance])

    return scores


@pytest.mark.parametrize("step_size", [0.05, 1.0, 20.0])
def test_reference_langevin_is_exact_without_a_network(step_size):
    """The reference is invariant at any step size: moments along the basis and outside it."""
    holds_on_a_fresh_seed(invariance(step_size))


def test_the_invariance_test_catches_noise_scaled_by_five_percent(monkeypatch):
    scale_noise(monkeypatch, 1.05)
    assert (invariance(1.0)(0).abs() > 4).any()


def test_unadjusted_langevin_is_biased_as_theory_says():
    """Stationary variance 1 / (1 - eps / 2) on a standard normal."""
    eps, n = 0.4, 20_000

    def scores(seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        x = sample(
            lambda x: 0.5 * x.square().sum(1), Langevin(eps), torch.zeros(n, 1), 60, generator=g
        )
        variance = 1 / (1 - eps / 2)
        return (x.square().mean() - variance) / (variance * (2 / n) ** 0.5)

    holds_on_a_fresh_seed(lambda seed: scores(seed).reshape(1))


def test_chunks_do_not_change_a_chain_with_its_own_generator():
    reference = random_reference()
    c = torch.arange(6) % 3
    sampler = ReferenceLangevin(reference.given(c), 0.1)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).square().sum(1)

    def run(chunk):
        generators = [torch.Generator().manual_seed(i) for i in range(6)]
        x0 = torch.zeros(6, 1, 16, 16)
        return sample(energy, sampler, x0, 4, generator=generators, chunk=chunk)

    torch.testing.assert_close(run(None), run(2))
    torch.testing.assert_close(run(None), run(4))


def test_thin_and_callback(generator):
    seen = []
    kept = sample(
        gumbel,
        Langevin(0.1),
        torch.zeros(3, 2),
        7,
        generator=generator,
        thin=3,
        callback=lambda step, state, info: seen.append(step),
    )
    assert kept.shape == (2, 3, 2)
    assert seen == list(range(1, 8))


def test_mistakes_are_named(generator):
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        sample(gumbel, Langevin(0.1), x, 0, generator=generator)
    with pytest.raises(ValueError, match="1 generators for 2 chains"):
        sample(gumbel, Langevin(0.1), x, 1, generator=[generator])
    with pytest.raises(ValueError, match="step_size must be positive"):
        Langevin(0.0)
    with pytest.raises(ValueError, match=r"reference\.given"):
        ReferenceLangevin(random_reference(), 0.1)


def test_a_constant_energy_has_a_zero_gradient():
    value, grad = value_and_grad(lambda x: torch.zeros(len(x)), torch.ones(3, 2))
    assert value.tolist() == [0, 0, 0]
    assert grad.abs().max() == 0
