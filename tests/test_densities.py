import pytest
import torch
from checks import holds_on_a_fresh_seed

from sance_audio.datasets.densities import DENSITIES
from sance_audio.toys import grid

N = 40_000


@pytest.mark.parametrize("name", DENSITIES)
def test_integrates_to_one(name):
    density = DENSITIES[name]
    n = 512
    mass = density.log_prob(grid(density.extent, n)).exp().sum() * (2 * density.extent / n) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-3)


def expected_counts(name: str, n: int = 512, coarse: int = 32) -> torch.Tensor:
    """What N samples put into each cell of a coarse grid, `(coarse, coarse)`."""
    density = DENSITIES[name]
    p = density.log_prob(grid(density.extent, n)).exp().view(coarse, n // coarse, coarse, -1)
    return N * p.sum((1, 3)) * (2 * density.extent / n) ** 2


def chi_square(name: str, x: torch.Tensor, coarse: int = 32) -> torch.Tensor:
    """Standardised chi-square of samples `(N, 2)` against the density, over cells that expect ten
    samples or more, the others taken together.
    """
    extent, expected = DENSITIES[name].extent, expected_counts(name, coarse=coarse).flatten()
    column, row = ((x.double() / extent + 1) / 2 * coarse).long().clamp(0, coarse - 1).T
    found = (row * coarse + column).bincount(minlength=coarse**2).double()
    many = expected >= 10
    found = torch.cat([found[many], found[~many].sum()[None]])
    expected = torch.cat([expected[many], (N - expected[many].sum()).clamp_min(10)[None]])
    terms = (found - expected).square() / expected
    return (terms.sum() - len(terms) + 1) / (2 * (len(terms) - 1)) ** 0.5


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_have_the_density(name):
    def score(seed: int, scale: float = 1.0) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        return chi_square(name, scale * DENSITIES[name].sample(N, g))

    holds_on_a_fresh_seed(lambda seed: score(seed).clamp_min(-4)[None], limit=5.0)
    for scale in (0.95, 1.05):
        assert score(0, scale) > 10, "samples 5 % too narrow or too wide pass"


@pytest.mark.parametrize("name", DENSITIES)
def test_the_extent_holds_a_gaussian_of_the_same_moments(name, generator):
    x = DENSITIES[name].sample(N, generator)
    outside = torch.special.erfc(DENSITIES[name].extent / (2**0.5 * x.std(0))).sum()
    assert x.shape == (N, 2)
    assert float((x.abs() > DENSITIES[name].extent).float().mean()) < 1e-3
    assert float(outside) < 2e-3


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_are_their_generator_s(name):
    first, again = (DENSITIES[name].sample(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert DENSITIES[name].log_prob(first).shape == (5,)
