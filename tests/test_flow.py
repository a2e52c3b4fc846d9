"""The flow: starts as the reference, is normalised, and samples what its density says."""

import copy
import math
import sys

import pytest
import torch
from checks import holds_on_a_fresh_seed
from conftest import random_reference
from torch import Tensor

from sance_audio.noise.flow import LOG_SCALE, ReferenceFlow
from sance_audio.reference import GaussianReference

SHAPE = (2, 4)
N = 100_000


def make(spread: float = 0.0, components: int = 2, **settings) -> ReferenceFlow:
    """A flow over 2 x 4 maps; its last layers, zero at first, moved at random by `spread`."""
    torch.manual_seed(0)
    reference = random_reference(components, SHAPE[0] * SHAPE[1], rank=3)
    flow = ReferenceFlow(reference, SHAPE, **{"transforms": 4, "width": 16} | settings)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in flow.parameters() if spread else ():
            p += spread * torch.randn(p.shape, generator=g)
    return flow


def exact(flow: ReferenceFlow) -> ReferenceFlow:
    """In float64, the reference's basis orthonormal to as many digits."""
    flow = flow.double()
    flow.reference.basis = torch.linalg.qr(flow.reference.basis)[0]
    return flow


def conditions(n: int, components: int = 2) -> Tensor:
    return torch.arange(n) % components


def from_reference(flow: ReferenceFlow, seed: int) -> tuple[Tensor, Tensor]:
    c = conditions(N)
    g = torch.Generator().manual_seed(seed)
    return flow.reference.sample(c, g).view(-1, 1, *SHAPE), c


def from_flow(flow: ReferenceFlow, seed: int) -> tuple[Tensor, Tensor]:
    c = conditions(N)
    return flow.sample(c, torch.Generator().manual_seed(seed)), c


def z_score(values: Tensor) -> Tensor:
    """Of a mean that should be 0, in standard errors, by column."""
    return values.mean(0) / (values.std(0) / math.sqrt(len(values)))


class Wrong(ReferenceFlow):
    """The planted error: 5 % of the log determinant is missing."""

    def learnt(self, x, c):
        _, log_det = self.transform(c).call_and_ladj(self.whitened(x, c))
        return super().learnt(x, c) + 0.05 * log_det


def test_starts_as_the_reference(generator):
    flow = make()
    c = conditions(6)
    x = 3 * torch.randn(6, 1, *SHAPE, generator=generator)
    assert flow.learnt(x, c).eq(0).all()
    torch.testing.assert_close(flow(x, c), -flow.reference.log_prob(x, c))
    noise = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    drawn = flow.sample(c, torch.Generator().manual_seed(5))
    assert drawn.shape == (6, 1, *SHAPE)
    torch.testing.assert_close(drawn.flatten(1), flow.reference.given(c).colour(noise))


def test_whitened_is_what_the_reference_colours(generator):
    flow = exact(make())
    c, noise = conditions(6), torch.randn(6, 8, generator=generator).double()
    x = flow.reference.given(c).colour(noise).view(6, 1, *SHAPE)
    torch.testing.assert_close(flow.whitened(x, c), noise)


@pytest.mark.parametrize("transforms", [0, 1, 4])
def test_density_is_the_change_of_variables_of_its_samples(transforms):
    """In float64, by the Jacobian of noise -> x: log q = log N(noise) - log |det dx/dnoise|."""
    flow = exact(make(0.3, transforms=transforms))
    c = conditions(4)
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).double()

    def push(row: Tensor, k: Tensor) -> Tensor:
        z = flow.transform(k).inv(row[None])
        return flow.reference.given(k).colour(z)[0]

    jacobian = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda v, i=i: push(v, c[i : i + 1]), noise[i])
            for i in range(4)
        ]
    )
    normal = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1)
    expected = jacobian.slogdet()[1] - normal
    x = torch.stack([push(noise[i], c[i : i + 1]) for i in range(4)]).view(4, 1, *SHAPE)
    torch.testing.assert_close(flow(x, c), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("draw", [from_reference, from_flow])
def test_density_integrates_to_one(draw):
    """Over p_0 exp(-F_q) is q / p_0, over q exp(F_q) is p_0 / q: their means are 1."""
    flow = make(0.1)
    sign = -1 if draw is from_reference else 1
    with torch.no_grad():  # the log determinant off 0, to the side where the weights are bounded
        flow.map.transforms[0].hyper[-1].bias[1::2] -= 0.15 * sign

    @torch.no_grad()
    def scores(seed: int, of: ReferenceFlow = flow) -> Tensor:
        x, c = draw(flow, seed)
        ratio = (sign * of.learnt(x, c)).exp()
        assert ratio.sum() ** 2 / ratio.square().sum() > N / 20, "weights too uneven to judge by"
        return torch.stack([z_score(ratio[c == k] - 1) for k in (0, 1)])

    holds_on_a_fresh_seed(scores)
    wrong = copy.deepcopy(flow)
    wrong.__class__ = Wrong
    assert scores(0, wrong).abs().max() > 8, "5 % of the log determinant missing"


def test_samples_have_the_density_s_moments():
    """E_q[g(x)] over samples, and E_{p_0}[g(x) q(x) / p_0(x)]: first and second moments."""
    flow = make(0.15)

    @torch.no_grad()
    def scores(seed: int, wrong: float = 1.0) -> Tensor:
        x, c = from_flow(flow, seed)
        y, _ = from_reference(flow, seed + 10)
        weight = (-flow.learnt(y, c)).exp()
        z, v = wrong * flow.whitened(x, c), flow.whitened(y, c)
        scores = []
        for power in (1, 2):
            ours, theirs = z**power, weight[:, None] * v**power
            error = ((ours.var(0) + theirs.var(0)) / N).sqrt()
            scores.append((ours.mean(0) - theirs.mean(0)) / error)
        return torch.cat(scores)

    holds_on_a_fresh_seed(scores)
    assert scores(0, 1.05).abs().max() > 8, "samples 5 % too wide"


def test_randomness_is_the_generator_s():
    flow = make(0.15)
    c = conditions(6)
    first = flow.sample(c, torch.Generator().manual_seed(3))
    before = torch.get_rng_state()
    assert torch.equal(flow.sample(c, torch.Generator().manual_seed(3)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(flow.sample(c, torch.Generator().manual_seed(4)), first)


def test_rows_and_components_are_apart(generator):
    flow = make(0.15)
    x = torch.randn(6, 1, *SHAPE, generator=generator)
    together = flow.learnt(x, conditions(6))
    torch.testing.assert_close(flow.learnt(x[2:3], torch.tensor([0])), together[2:3])
    assert (flow.learnt(x, conditions(6) * 0)[1] - together[1]).abs() > 1e-3


def test_training_finds_what_a_gaussian_cannot(generator):
    """A ring of radius 1 in the plane of two cells, width 0.1: its entropy is about
    ln(2 pi) + ln(0.1 sqrt(2 pi e)) = 0.95 nats, the best Gaussian's ln(2 pi e / 2) = 2.14; another
    noise of 0.1 in the fit (sigma) costs the flow nothing.
    """
    n = 4000
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    ring = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(
        n, 2, generator=generator
    )
    x = torch.cat([ring, 0.5 * torch.randn(n, 2, generator=generator)], 1).view(n, 1, 2, 2)

    reference, c = GaussianReference.fit(x, conditions(n), rank=3, sigma=0.1)
    torch.manual_seed(0)
    flow = ReferenceFlow(reference, (2, 2), transforms=4, width=32)
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-3)
    for _ in range(300):
        rows = torch.randint(n // 2, (256,), generator=generator)
        optimiser.zero_grad()
        flow.nll(x[rows], c[rows]).backward()
        optimiser.step()
    with torch.no_grad():
        held_out = flow.nll(x[n // 2 :], c[n // 2 :])
    assert held_out < -0.6
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())


@pytest.mark.parametrize("transforms", [4, 40])
def test_far_out_it_is_finite_and_stretches_no_more_than_its_bound(transforms):
    flow = make(20.0, transforms=transforms)
    c = conditions(6)
    for size in (1.0, 1e3):
        x = (size * torch.randn(6, 1, *SHAPE)).requires_grad_()
        value = flow.learnt(x, c)
        value.sum().backward()
        assert value.isfinite().all()
        assert x.grad.isfinite().all()
    assert flow.sample(c, torch.Generator().manual_seed(0)).isfinite().all()
    _, log_det = flow.transform(c).call_and_ladj(flow.whitened(x, c))
    assert log_det.abs().max() < 8 * LOG_SCALE


def test_mistakes_are_named(monkeypatch):
    reference = random_reference(2, 8, rank=3)
    with pytest.raises(ValueError, match=r"\(2, 5\) has 10 cells, the reference 8"):
        ReferenceFlow(reference, (2, 5))
    with pytest.raises(ValueError, match="transforms must be at least 0"):
        ReferenceFlow(reference, SHAPE, transforms=-1)
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ValueError, match=r"pip install 'sance-audio\[flow\]'"):
        ReferenceFlow(reference, SHAPE)
