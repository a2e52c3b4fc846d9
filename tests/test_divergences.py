import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sance_audio.divergences import (
    PAIRS,
    RANKED,
    alpha,
    effective_sample_size,
    logistic,
    objective,
)

MEMBERS = {
    **PAIRS,
    "logistic, nu = 3": logistic(3.0),
    "logistic, nu = 0.25": logistic(0.25),
    "alpha = 1.5": alpha(1.5),
    "alpha = 3": alpha(3.0),
}


def slope(function, h):
    h = torch.tensor(h, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(function(h), h)
    return float(grad)


@pytest.mark.parametrize("name", MEMBERS)
@given(h=st.floats(-20, 20))
def test_the_law_of_the_family(name, h):
    pair = MEMBERS[name]
    d, n = slope(pair.data, h), slope(pair.noise, h)
    assert abs(n + math.exp(h) * d) <= 1e-10 * max(1, abs(n))
    assert d < 0


@pytest.mark.parametrize("name", MEMBERS)
def test_the_loss_falls_to_the_true_ratio(name):
    """Two states: E_data[d(h)] + E_noise[n(h)] is least at h = log p / q in both."""
    p, q = torch.tensor([0.3, 0.7], dtype=torch.double), torch.tensor([0.6, 0.4]).double()
    pair = MEMBERS[name]
    h = torch.log(p / q).requires_grad_(True)
    loss = (p * pair.data(h) + q * pair.noise(h)).sum()
    (grad,) = torch.autograd.grad(loss, h, create_graph=True)
    assert grad.abs().max() < 1e-12
    for i in range(2):
        assert torch.autograd.grad(grad[i], h, retain_graph=True)[0][i] > 0


@pytest.mark.parametrize("name", MEMBERS)
def test_right_after_a_refresh_the_gradient_is_maximum_likelihood_s(name):
    """d/dh at h = 0 is -phi''(1) on data and +phi''(1) on noise."""
    pair = MEMBERS[name]
    assert slope(pair.data, 0.0) == pytest.approx(-pair.curvature, rel=1e-12)
    assert slope(pair.noise, 0.0) == pytest.approx(pair.curvature, rel=1e-12)


@pytest.mark.parametrize("nu", [1, 3])
@pytest.mark.parametrize("name", RANKED)
def test_the_same_of_the_losses_of_batches(name, nu):
    data = torch.zeros(4, 2, dtype=torch.double, requires_grad=True)
    noise = torch.zeros(4 * nu, 2, dtype=torch.double, requires_grad=True)
    loss, scale = RANKED[name], RANKED[name].curvature(nu)
    of_data, of_noise = torch.autograd.grad(loss(data, noise), (data, noise))
    torch.testing.assert_close(of_data, torch.full_like(data, -scale / data.numel()))
    torch.testing.assert_close(of_noise, torch.full_like(noise, scale / noise.numel()))


@pytest.mark.parametrize("name", RANKED)
def test_an_offset_per_component_cancels(name):
    g = torch.Generator().manual_seed(0)
    data, noise = torch.randn(12, 3, generator=g).double().split([4, 8])
    offset = torch.tensor([5.0, -2.0, 0.3], dtype=torch.double)
    loss = RANKED[name]
    torch.testing.assert_close(loss(data + offset, noise + offset), loss(data, noise))
    assert not torch.allclose(loss(data + offset, noise), loss(data, noise))


def test_ranking_is_the_cross_entropy_of_the_data_among_its_negatives():
    g = torch.Generator().manual_seed(0)
    data, noise = torch.randn(12, 2, generator=g).split([3, 9])
    logits = torch.cat([data.unsqueeze(0), noise.view(3, 3, 2)]).flatten(1).T
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(RANKED["ranking"](data, noise), expected)


def test_donsker_varadhan_at_its_optimum_is_minus_the_divergence():
    """For Gaussians N(1, 1) and N(0, 1), h = x - 1/2: the loss is -KL = -1/2."""
    g = torch.Generator().manual_seed(0)
    data = 1 + torch.randn(200_000, 1, generator=g).double()
    noise = torch.randn(200_000, 1, generator=g).double()
    loss = RANKED["donsker_varadhan"](data - 0.5, noise - 0.5)
    error = math.sqrt((1 + math.e - 1) / 200_000)  # of the mean of h, and of log mean exp h
    assert abs(float(loss) + 0.5) < 6 * error


EVERY = {**MEMBERS, **RANKED}


@pytest.mark.parametrize("h", [-1e4, -90.0, 90.0, 1e4])
@pytest.mark.parametrize("name", EVERY)
def test_finite_far_out_in_float32(name, h):
    data = torch.full((4, 2), h, requires_grad=True)
    noise = torch.full((8, 2), h, requires_grad=True)
    loss = EVERY[name](data, noise)
    for grad in torch.autograd.grad(loss, (data, noise), retain_graph=True):
        assert torch.isfinite(grad).all()
    assert torch.isfinite(loss)
    mixed = torch.cat([noise[:4], -noise[4:]])
    assert torch.isfinite(EVERY[name](data, mixed))


def test_saturation_is_counted():
    far, near = torch.full((3, 2), 1e3), torch.ones(3, 2)
    expected = {"logistic": 0, "kl": 6, "least_squares": 12, "exponential": 6, "alpha": 6}
    for name, pair in PAIRS.items():
        assert pair.saturated(near, near) == 0
        assert pair.saturated(far, far) == expected[name], name
    assert PAIRS["exponential"].saturated(-far, near) == 6, "on data the exponent is -h / 2"
    assert RANKED["ranking"].saturated(far, far) == 0
    assert PAIRS["kl"].saturated(near, far.double()) == 6
    assert PAIRS["kl"].saturated(near, 100 * near.double()) == 0, "float64 reaches further"


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_nu_and_alpha_are_positive_numbers(value):
    with pytest.raises(ValueError, match="nu must be"):
        logistic(value)
    with pytest.raises(ValueError, match="alpha must be"):
        alpha(value)


def test_losses_by_name():
    assert objective("logistic", 3).curvature == 0.75
    assert objective("alpha", 1, 3.0).exponents == (2.0, 3.0)
    assert objective("kl") is PAIRS["kl"]
    assert objective("ranking") is RANKED["ranking"]
    with pytest.raises(ValueError, match="there are logistic, kl"):
        objective("hinge")
    with pytest.raises(ValueError, match="named 'kl'"):
        alpha(1)
    with pytest.raises(ValueError, match=r"found \(2, 3\) and \(5, 3\)"):
        RANKED["ranking"](torch.zeros(2, 3), torch.zeros(5, 3))


def test_effective_sample_size():
    assert float(effective_sample_size(torch.zeros(10))) == pytest.approx(10)
    assert float(effective_sample_size(torch.tensor([0.0, -1e4]))) == pytest.approx(1)
    w = torch.tensor([1.0, 2.0, 3.0])
    assert float(effective_sample_size(w.log() + 100)) == pytest.approx(36 / 14, rel=1e-4)
