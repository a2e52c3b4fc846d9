import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sance_audio.divergences import PAIRS, effective_sample_size, logistic

MEMBERS = {**PAIRS, "logistic, nu = 3": logistic(3.0), "logistic, nu = 0.25": logistic(0.25)}


def slope(function, h):
    h = torch.tensor(h, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(function(h), h)
    return float(grad)


@pytest.mark.parametrize("name", MEMBERS)
@given(h=st.floats(-20, 20))
def test_the_law_of_the_family(name, h):
    pair = MEMBERS[name]
    d, n = slope(pair.data, h), slope(pair.noise, h)
    assert n == pytest.approx(-torch.tensor(h, dtype=torch.double).exp().item() * d, rel=1e-6)
    assert d < 0


@pytest.mark.parametrize("name", MEMBERS)
def test_right_after_a_refresh_the_gradient_is_maximum_likelihood_s(name):
    """d/dh at h = 0 is -phi''(1) on data and +phi''(1) on noise."""
    pair = MEMBERS[name]
    assert slope(pair.data, 0.0) == pytest.approx(-pair.curvature)
    assert slope(pair.noise, 0.0) == pytest.approx(pair.curvature)


@pytest.mark.parametrize("h", [-1e4, 1e4])
def test_logistic_is_finite_far_out(h):
    x = torch.tensor(h, requires_grad=True)
    loss = PAIRS["logistic"].data(x) + PAIRS["logistic"].noise(x)
    (grad,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad)


@pytest.mark.parametrize("nu", [0, -1, float("nan"), float("inf")])
def test_nu_must_be_a_number_of_samples(nu):
    with pytest.raises(ValueError, match="nu must be"):
        logistic(nu)


def test_effective_sample_size():
    assert float(effective_sample_size(torch.zeros(10))) == pytest.approx(10)
    assert float(effective_sample_size(torch.tensor([0.0, -1e4]))) == pytest.approx(1)
    w = torch.tensor([1.0, 2.0, 3.0])
    assert float(effective_sample_size(w.log() + 100)) == pytest.approx(36 / 14, rel=1e-4)
