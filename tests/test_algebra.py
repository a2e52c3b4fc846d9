"""Energies made of energies: each against the law of what it is."""

import math

import pytest
import torch
from checks import holds_on_a_fresh_seed
from conftest import random_reference
from sampler_laws import moments

from sance_audio.energy import (
    FixedRegion,
    Guided,
    LowPrecision,
    Marginal,
    Mixture,
    Observed,
    ReferencedEnergy,
    Sum,
    rows_of,
    value_and_grad,
)
from sance_audio.networks import ResidualEnergy
from sance_audio.samplers import MALA, sample


class Gaussian:
    """`|x - m|^2 / (2 v)`, m one a row where it is `(B, 1)`."""

    def __init__(self, mean, variance: float):
        self.mean, self.variance = mean, variance

    def __call__(self, x):
        return ((x - self.mean).square() / (2 * self.variance)).flatten(1).sum(1)

    def rows(self, part):
        own = self.mean[part] if isinstance(self.mean, torch.Tensor) else self.mean
        return Gaussian(own, self.variance)


def difference(a, b, x):
    """Energies are equal up to a constant, gradients are equal."""
    (va, ga), (vb, gb) = value_and_grad(a, x), value_and_grad(b, x)
    torch.testing.assert_close(ga, gb)
    return (va - vb - (va - vb).mean()).abs().max()


def x_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_product_of_gaussians_is_a_gaussian():
    """Precisions add: 1/v = sum w_k / v_k, m = v sum w_k m_k / v_k."""
    product = Sum([Gaussian(1.0, 0.5), Gaussian(-2.0, 2.0)], [1.0, 3.0])
    v = 1 / (1 / 0.5 + 3 / 2.0)
    assert difference(product, Gaussian(v * (1 / 0.5 - 2 * 3 / 2.0), v), x_of(7, 4)) < 1e-12
    assert difference(Sum([Gaussian(1.0, 0.5)], [0.25]), Gaussian(1.0, 2.0), x_of(7, 4)) < 1e-12


def test_a_mixture_is_minus_the_log_of_the_sum_of_densities():
    x = x_of(50, 1)
    own = Mixture([Gaussian(-1.0, 0.5), Gaussian(2.0, 1.5)], [0.3, 0.7], log_z=[
        0.5 * math.log(2 * math.pi * v) for v in (0.5, 1.5)])  # fmt: skip
    two = torch.distributions.Normal(
        torch.tensor([-1.0, 2.0]).double(), torch.tensor([0.5, 1.5]).double().sqrt()
    )
    truth = (two.log_prob(x) + torch.tensor([0.3, 0.7]).double().log()).logsumexp(1)
    torch.testing.assert_close(own(x), -truth)


def test_guidance_goes_from_one_energy_to_the_other_and_beyond():
    x, base, goal = x_of(5, 3), Gaussian(0.0, 1.0), Gaussian(1.0, 1.0)
    torch.testing.assert_close(Guided(goal, base, 0.0)(x), base(x))
    torch.testing.assert_close(Guided(goal, base, 1.0)(x), goal(x))
    assert difference(Guided(goal, base, 3.0), Gaussian(3.0, 1.0), x) < 1e-12


def test_a_class_is_the_mixture_of_its_components():
    base = random_reference()
    torch.manual_seed(0)
    network = ResidualEnergy(3, channels=(8, 8), depth=(1,), positions=1)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    energy = ReferencedEnergy(base, network)
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one = Marginal(energy, base.log_weight(2))(x)
        torch.testing.assert_close(one, energy.given(torch.full((4,), 2))(x))
        guided = Guided(
            Marginal(energy, base.log_weight(2)), Marginal(energy, base.log_weight()), 1
        )
        torch.testing.assert_close(guided(x), one)


CORRELATED = torch.tensor([[2.0, 0.8, 0.3], [0.8, 1.0, -0.2], [0.3, -0.2, 0.5]])


def correlated(x):
    return 0.5 * (x * (x @ CORRELATED.inverse())).sum(1)


def test_a_fixed_region_has_the_conditional_distribution():
    """Of a Gaussian: m = C_uo C_oo^-1 x_o, C_uu - C_uo C_oo^-1 C_ou."""
    n, free = 20_000, torch.tensor([True, False, True])
    c, u, o = CORRELATED, [0, 2], [1]
    gain = c[u][:, o] @ c[o][:, o].inverse()
    mean, cov = gain @ torch.tensor([1.5]), c[u][:, u] - gain @ c[o][:, u]
    root = torch.linalg.cholesky(cov).inverse()

    def scores(seed: int) -> torch.Tensor:
        known = torch.full((n, 3), torch.nan)
        known[:, 1] = 1.5
        region = FixedRegion(correlated, known, free)
        g = torch.Generator().manual_seed(seed)
        z = sample(region, MALA(0.15), torch.zeros(n, 2), 150, generator=g)
        assert torch.equal(region.complete(z)[:, 1], known[:, 1]), "known cells stay, to the bit"
        assert torch.equal(region.narrow(region.complete(z)), z)
        return moments((z - mean) @ root.T, 0.0, 1.0, 3.0)

    holds_on_a_fresh_seed(scores)


def test_an_observation_gives_the_posterior():
    """y = x_0 + x_1 + noise of deviation 0.5: the textbook update of a Gaussian."""
    n = 20_000
    a, s = torch.tensor([[1.0, 1.0, 0.0]]), 0.5
    cov = (CORRELATED.inverse() + a.T @ a / s**2).inverse()
    mean = cov @ a.T @ torch.tensor([2.0]) / s**2
    root = torch.linalg.cholesky(cov).inverse()

    def scores(seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        posterior = Observed(correlated, torch.tensor([[2.0]]), s, lambda x: x @ a.T)
        x = sample(posterior, MALA(0.1), torch.zeros(n, 3), 200, generator=g)
        return moments((x - mean) @ root.T, 0.0, 1.0, 3.0)

    holds_on_a_fresh_seed(scores)


def test_cells_that_were_not_observed_have_an_infinite_deviation():
    deviation = torch.tensor([0.5, torch.inf])
    denoised = Observed(Gaussian(0.0, 1.0), torch.tensor([[3.0, 99.0]]).double(), deviation)
    plain = Observed(Gaussian(0.0, 1.0), torch.tensor([[3.0, 0.0]]).double(), deviation)
    torch.testing.assert_close(denoised(x_of(4, 2)), plain(x_of(4, 2)))


SHIFTED = Gaussian(torch.arange(6.0, dtype=torch.float64)[:, None], 1.0)
MEMBERS = {
    "sum": lambda: Sum([SHIFTED, Gaussian(0.0, 1.0)], [torch.arange(6.0).double(), 1.0]),
    "mixture": lambda: Mixture([SHIFTED, Gaussian(0.0, 1.0)]),
    "guided": lambda: Guided(SHIFTED, Gaussian(0.0, 1.0), torch.arange(6.0).double()),
    "fixed region": lambda: FixedRegion(
        SHIFTED, x_of(6, 5), torch.tensor([True, False, True, True, False])
    ),
    "observed": lambda: Observed(SHIFTED, x_of(6, 3), 0.5),
    "low precision": lambda: LowPrecision(SHIFTED),
    "nested": lambda: Sum([Guided(SHIFTED, Mixture([SHIFTED, Gaussian(0.0, 2.0)]), 2.0)], [0.5]),
}
"""What holds something per row; a new member joins by a line."""


@pytest.mark.parametrize("name", MEMBERS)
def test_rows_of_an_energy_are_its_rows(name):
    energy, x = MEMBERS[name](), x_of(6, 3)
    whole, grad = value_and_grad(energy, x)
    for part in (slice(2, 5), torch.tensor([5, 0, 0, 3])):
        value, slope = value_and_grad(rows_of(energy, part), x[part])
        torch.testing.assert_close(value, whole[part])
        torch.testing.assert_close(slope, grad[part])
    assert whole.shape == (6,)
    assert bool(grad.isfinite().all())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="0 energies"):
        Sum([])
    with pytest.raises(ValueError, match="2 energies, 1 numbers"):
        Mixture([SHIFTED, SHIFTED], [1.0])
    with pytest.raises(ValueError, match="must be positive"):
        Mixture([SHIFTED], [0.0])
    with pytest.raises(ValueError, match="deviation must be positive"):
        Observed(SHIFTED, x_of(6, 3), 0.0)
    with pytest.raises(ValueError, match="booleans"):
        FixedRegion(SHIFTED, x_of(6, 3), torch.ones(3))
    with pytest.raises(ValueError, match="no cell is free"):
        FixedRegion(SHIFTED, x_of(6, 3), torch.zeros(3, dtype=torch.bool))


def test_infinite_energies_stay_walls():
    """A wall in one energy is a wall in what is made of it; a weight of 0 leaves it out."""
    wall = lambda x: torch.where(x[:, 0] < 0, torch.inf, x[:, 0])  # noqa: E731
    x = torch.tensor([[-1.0], [1.0]])
    assert Guided(wall, wall, 2.0)(x).tolist() == [torch.inf, 1.0]
    assert Guided(wall, Gaussian(0.0, 1.0), 0.5)(x)[0] == torch.inf
    assert bool(Sum([Gaussian(0.0, 1.0), wall], [1.0, 0.0])(x).isfinite().all())
    assert Sum([Gaussian(0.0, 1.0)], [0.0])(x).tolist() == [0, 0]


def test_observations_of_another_shape_are_named():
    x = x_of(3, 2)
    for y, operator in (
        (torch.tensor([[2.0]]).double(), lambda x: x.sum(1)),
        (torch.ones(2).double(), None),
        (x_of(2, 2), None),
        (x_of(3, 1), None),
    ):
        with pytest.raises(ValueError, match=r"y must be \(1, ...\) or \(B, ...\)"):
            Observed(Gaussian(0.0, 1.0), y, 0.5, operator)(x)


def test_a_fixed_region_is_narrowed_without_looking_at_its_cells(monkeypatch):
    region = FixedRegion(SHIFTED, x_of(6, 3), torch.tensor([True, False, True]))
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda *a, **k: pytest.fail("looked"))
    rows = rows_of(region, torch.tensor([1, 1, 4]))
    assert rows(x_of(3, 2)).shape == (3,)
