import pytest
import torch
from conftest import random_reference

from sance_audio.reference import GaussianReference


def dense(reference: GaussianReference, c: int) -> torch.distributions.MultivariateNormal:
    u, lam, s = (
        reference.basis[c].double(),
        reference.eigenvalues[c].double(),
        reference.remainder[c].double(),
    )
    cov = u @ torch.diag(lam - s) @ u.T + s * torch.eye(len(u), dtype=torch.double)
    return torch.distributions.MultivariateNormal(reference.mean[c].double(), cov)


def test_log_density_is_the_dense_gaussian_s():
    reference = random_reference()
    x = torch.randn(6, 1, 16, 16)
    c = torch.tensor([0, 1, 2, 0, 1, 2])
    for i in range(6):
        expected = dense(reference, int(c[i])).log_prob(x[i].flatten().double())
        assert float(reference.log_prob(x, c)[i]) == pytest.approx(float(expected), rel=1e-4)
    every = reference.log_prob_all(x)
    torch.testing.assert_close(every.gather(1, c[:, None])[:, 0], reference.log_prob(x, c))


def test_samples_have_the_covariance(generator):
    reference = random_reference(components=1, dimensions=12, rank=3)
    n = 40_000
    x = reference.sample(torch.zeros(n, dtype=torch.long), generator).double()
    target = dense(reference, 0)
    # standard error of a covariance entry: sqrt((C_ii C_jj + C_ij^2) / n); 144 entries, 6 of them
    cov = target.covariance_matrix
    error = ((cov.diag()[:, None] * cov.diag()[None] + cov**2) / n).sqrt()
    assert ((x.T.cov() - cov).abs() < 6 * error).all()
    assert ((x.mean(0) - target.mean).abs() < 6 * (cov.diag() / n).sqrt()).all()


def test_spectral_applies_functions_of_the_covariance():
    reference = random_reference(components=2)
    given, v = reference.given(torch.tensor([0, 1])), torch.randn(2, 2, 256)
    along = torch.stack([given.eigenvalues, 1 / given.eigenvalues], 1)
    elsewhere = torch.stack([given.remainder, 1 / given.remainder], 1)
    out = given.spectral(v, along, elsewhere)
    for i in range(2):
        cov = dense(reference, i).covariance_matrix
        expected = cov @ v[i, 0].double() + torch.linalg.solve(cov, v[i, 1].double())
        torch.testing.assert_close(out[i].double(), expected, rtol=1e-3, atol=1e-3)


def test_fit_finds_mean_variances_and_dequantisation(generator):
    true = random_reference(components=1, dimensions=64, rank=3)
    x = true.sample(torch.zeros(4000, dtype=torch.long), generator)
    fitted, components = GaussianReference.fit(x, rank=3, sigma=0.5)
    assert fitted.n_components == 1
    assert components.eq(0).all()
    expected = torch.sort(true.eigenvalues[0], descending=True)[0] + 0.25
    torch.testing.assert_close(fitted.eigenvalues[0], expected, rtol=0.15, atol=0)
    torch.testing.assert_close(fitted.remainder[0], true.remainder[0] + 0.25, rtol=0.05, atol=0)


def test_rank_is_padded_where_clips_are_few(generator):
    x = torch.randn(12, 64, generator=generator)
    fitted, _ = GaussianReference.fit(x, rank=24, sigma=0.1)
    assert fitted.basis.shape == (1, 64, 24)
    assert fitted.basis[0, :, 10:].abs().max() == 0
    expected = dense(fitted, 0).log_prob(x.double())
    torch.testing.assert_close(
        fitted.log_prob(x, torch.zeros(12, dtype=torch.long)).double(),
        expected,
        rtol=1e-4,
        atol=1e-2,
    )


def test_components_within_classes(generator):
    centres = torch.tensor([-8.0, 8.0, -3.0, 3.0])
    x = torch.cat([c + torch.randn(40, 8, generator=generator) for c in centres])
    y = torch.arange(160) // 80
    fitted, components = GaussianReference.fit(x, y, components=2, rank=2)
    assert fitted.classes.tolist() == [0, 0, 1, 1]
    for part in components.split(40):
        assert part.unique().numel() == 1, "a cluster was split"
    assert float(fitted.weight.sum()) == pytest.approx(1)
    torch.testing.assert_close(fitted.log_weight(1).exp(), torch.tensor([0.0, 0.0, 0.5, 0.5]))
    with pytest.raises(ValueError, match="none of the 2 classes"):
        fitted.log_weight(2)


def test_a_class_with_too_few_clips():
    with pytest.raises(ValueError, match="class 1 has 2 clips"):
        GaussianReference.fit(torch.randn(10, 8), torch.tensor([0] * 8 + [1] * 2))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nan, "class 1: 1 of 10 clips have NaN or infinite features: leave them out"),
        (torch.inf, "class 1: 1 of 10 clips have NaN or infinite features"),
        (None, r"class 1: its 10 clips are all the same \(variance 0\).* singular"),
    ],
)
def test_data_that_has_no_gaussian(value, message):
    x = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(20) // 10
    if value is None:
        x[10:] = x[10]
    else:
        x[12, 0, 0, 0] = value
    with pytest.raises(ValueError, match=message):
        GaussianReference.fit(x, classes)


def test_a_class_of_one_clip():
    x = torch.randn(11, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="class 1 has 1 clips; a Gaussian needs at least 3: add"):
        GaussianReference.fit(x, torch.tensor([0] * 10 + [1]))


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("hidden", [1, 3, 17, 39])
def test_some_cells_given_the_others_are_the_dense_formulas(hidden, noise, generator):
    """With fewer cells than directions, as many, and nearly all of them; a direction that is
    missing (zero column, lambda = s) and one below the remainder change nothing.
    """
    reference = random_reference(components=3, dimensions=40, rank=6).double()
    reference.basis[1, :, 2] = 0
    reference.eigenvalues[1, 2] = reference.remainder[1]
    reference.eigenvalues[2, 0] = 0.5 * reference.remainder[2]
    known = torch.ones(40, dtype=torch.bool)
    known[torch.randperm(40, generator=generator)[:hidden]] = False
    x = torch.randn(3, 40, generator=generator, dtype=torch.double)
    each = reference.each()
    found, evidence = each.conditional(x, known, noise), each.log_marginal(x, known, noise)
    spoilt = each.conditional(x.masked_fill(~known, torch.nan), known, noise)
    assert torch.equal(spoilt.mean, found.mean)
    for c in range(3):
        target = dense(reference, c)
        cov, mean = target.covariance_matrix, target.mean
        noisy = cov[known][:, known] + noise * torch.eye(int(known.sum()), dtype=torch.double)
        weights = torch.linalg.solve(noisy, cov[known][:, ~known]).T
        conditional_mean = mean[~known] + weights @ (x[c] - mean)[known]
        conditional_cov = cov[~known][:, ~known] - weights @ cov[known][:, ~known]
        torch.testing.assert_close(found.mean[c], conditional_mean, rtol=1e-8, atol=1e-8)
        basis, s = found.basis[c], found.remainder[c]
        low = basis @ torch.diag(found.eigenvalues[c] - s) @ basis.T
        rebuilt = low + s * torch.eye(hidden, dtype=torch.double)
        torch.testing.assert_close(rebuilt, conditional_cov, rtol=1e-8, atol=1e-8)
        joint = torch.distributions.MultivariateNormal(mean[known], noisy)
        torch.testing.assert_close(evidence[c], joint.log_prob(x[c][known]), rtol=1e-8, atol=1e-8)
        if noise:
            continue
        whole = evidence[c] + found.rows(slice(c, c + 1)).log_prob(x[c : c + 1, ~known])[0]
        torch.testing.assert_close(whole, target.log_prob(x[c]), rtol=1e-8, atol=1e-8)
