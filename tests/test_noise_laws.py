"""Laws that every kind of noise obeys, and the faults that each of them catches."""

import copy
import math

import pytest
import torch
from conftest import random_reference, small_model

from sance_audio.config import TrainConfig
from sance_audio.diagnostics import annealed_log_z
from sance_audio.divergences import PAIRS, RANKED, objective
from sance_audio.energy import EnergyModel, GivenEnergy, ReferencedEnergy, value_and_grad
from sance_audio.ledger import Ledger
from sance_audio.noise import SelfNoise, make

KINDS = {
    "self": TrainConfig(interval=4, pool=4),
    "self, learned": TrainConfig(interval=4, pool=4, dlogz="learned"),
    "weighted": TrainConfig(interval=4, weighted=True, per_component=4),
    "pcd": TrainConfig.persistent_contrastive_divergence(per_component=2),
    "gaussian": TrainConfig(noise="gaussian"),
    "gaussian, learned": TrainConfig(noise="gaussian", dlogz="learned"),
    "flow": TrainConfig(noise="flow", flow_transforms=2, flow_width=16),
}


def started(kind, temperature=1.0):
    """A kind of noise after its first refresh, the network that it is noise for, a generator."""
    if kind == "flow":
        pytest.importorskip("zuko")
    model, g = small_model(), torch.Generator().manual_seed(0)
    energy = ReferencedEnergy(model.reference, model.density.network, temperature)
    noise = make(KINDS[kind], energy, model.shape, g)
    noise.refresh(energy.network, g)
    return noise, energy.network.requires_grad_(True), g


def nudge(network, g, by=0.02):
    with torch.no_grad():
        for p in network.parameters():
            p += by * torch.randn(p.shape, generator=g)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_balanced_static_and_known(kind):
    noise, network, g = started(kind)
    first = noise.draw(1, g)
    assert first.c.bincount().tolist() == [len(noise.c) // 3] * 3
    assert first.x.shape == (len(noise.c), 1, 16, 16)
    assert not first.x.requires_grad
    assert not first.frozen.requires_grad
    expected = noise.frozen_energy(first.x, first.c)
    torch.testing.assert_close(first.frozen, expected, rtol=1e-4, atol=1e-4)
    pool = noise.pool_x.clone()
    nudge(network, g)
    noise.log_ratio(network, noise.pool_x[0], first)
    assert torch.equal(noise.pool_x, pool)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_h_is_the_log_ratio(kind, temperature):
    """`(G_k - F / tau) - dlogZ`, with E_k[exp(h)] = 1 over the pool, component by component; its
    gradient is that of `-F / tau`.
    """
    noise, network, g = started(kind, temperature)
    if noise.offset is None:
        nudge(network, g)
    data, drawn = noise.pool_x[0], noise.draw(1, g)
    h, value = noise.log_ratio(network, data, drawn)
    c = torch.cat([noise.c, drawn.c])
    x = torch.cat([data, drawn.x])
    torch.testing.assert_close(value, network(x, c) / temperature)
    plain = noise.frozen_energy(x, c) - value
    apart = torch.stack([(h - plain)[c == k].mean() for k in range(3)])
    torch.testing.assert_close(h, plain + apart[c], rtol=1e-3, atol=1e-3)
    if noise.dlogz == "pool":
        pool, weight = noise.pool_log_ratio() + apart, noise.pool_log_weight()
        weight = torch.zeros_like(pool) if weight is None else weight
        mean = (pool.exp() * weight.softmax(0)).sum(0)
        torch.testing.assert_close(mean.float(), torch.ones(3), rtol=1e-3, atol=1e-3)
    parameters = list(network.parameters())
    found = torch.autograd.grad(h.sum(), parameters, retain_graph=True)
    expected = torch.autograd.grad(-value.sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_all_that_decides_the_noise(kind):
    noise, network, g = started(kind)
    ledger = Ledger()
    for _ in range(2):
        nudge(network, g)
        noise.refresh(network, g, ledger)
        h, _ = noise.log_ratio(network, noise.pool_x[0], noise.draw(1, g))
        h.square().mean().backward()
        noise.after_step(network, noise.pool_x[0])
    state, random = copy.deepcopy(noise.state_dict()), g.get_state()
    other, _, _ = started(kind)
    other.load_state_dict(state)
    drawn = []
    for one in (noise, other):
        g.set_state(random)
        for _ in range(2):
            one.refresh(network, g, copy.deepcopy(ledger))
            last = one.draw(1, g)
            h, _ = one.log_ratio(network, one.pool_x[0], last)
            h.square().mean().backward()
            one.after_step(network, one.pool_x[0])
        drawn.append((last.x, h))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])


# Right after a refresh the gradient is maximum likelihood's; the faults that must show

ALL = [*PAIRS, *RANKED]


def apart(noise, network, name, data, nu=1):
    """How far the gradient of a loss lies from phi''(1) (grad F on data - on noise) / tau."""
    drawn = noise.draw(nu, torch.Generator().manual_seed(0))
    h, _ = noise.log_ratio(network, data, drawn, frozen_is_network=True)
    loss = objective(name, nu)
    scale = loss.curvature(nu) if name in RANKED else loss.curvature
    of_data = network(data, noise.c).mean() - network(drawn.x.detach(), drawn.c).mean()
    parameters = list(network.parameters())
    parts = map(noise.by_component, h.split([len(data), len(drawn.x)]))
    found = torch.autograd.grad(loss(*parts), parameters, allow_unused=True)
    expected = torch.autograd.grad(of_data * scale / noise.temperature, parameters)
    found = [torch.zeros_like(b) if a is None else a for a, b in zip(found, expected, strict=True)]
    a, b = (torch.cat([p.flatten() for p in part]) for part in (found, expected))
    return float((a - b).norm() / b.norm())


def exact(temperature=2.0, dlogz="learned"):
    """Noise in float64, refreshed, with the network that it follows and a batch of data."""
    model, g = small_model(), torch.Generator().manual_seed(0)
    density = ReferencedEnergy(model.reference, model.density.network, temperature)
    noise = SelfNoise(density, model.shape, per_component=2, steps=2, dlogz=dlogz, generator=g)
    noise.chains = noise.chains.double()
    for part in (density, noise.frozen, noise.base):
        part.double()
    noise.refresh(density.network, g)
    data = torch.randn(6, 1, 16, 16, generator=g, dtype=torch.double)
    return noise, density.network.requires_grad_(True), data


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_right_after_a_refresh(name):
    noise, network, data = exact()
    assert noise.pool_x.dtype == torch.double
    assert apart(noise, network, name, data) <= 1e-10


@pytest.mark.parametrize("name", ALL)
def test_a_stale_offset_shows(name):
    """A learned dlogZ that a refresh does not take back. The losses of batches cancel it."""
    noise, network, data = exact()
    with torch.no_grad():
        noise.offset.value += 1.0
    gone = apart(noise, network, name, data)
    assert (gone > 1e-3) == (name not in RANKED)
    noise.refresh(network, torch.Generator().manual_seed(0))
    assert apart(noise, network, name, data) <= 1e-10, "a refresh resets it"


@pytest.mark.parametrize("name", ALL)
def test_an_offset_of_one_class_shows(name):
    noise, network, data = exact()
    with torch.no_grad():
        noise.offset.value[1] = 1.0
    assert (apart(noise, network, name, data) > 1e-3) == (name not in RANKED)


@pytest.mark.parametrize("name", ALL)
def test_a_forgotten_temperature_shows(name):
    noise, network, data = exact()
    whole = noise.log_ratio

    def forgetful(*arguments, **settings):
        noise.temperature = 1.0
        found = whole(*arguments, **settings)
        noise.temperature = 2.0
        return found

    noise.log_ratio = forgetful
    assert apart(noise, network, name, data) > 0.5


@pytest.mark.parametrize("name", ALL)
def test_undetached_noise_shows(name):
    """Samples with the graph of the network: the gradient then runs through the sampler too."""
    noise, network, data = exact()
    with torch.enable_grad():
        pool = noise.pool_x.clone().requires_grad_(True)
        grad = torch.autograd.grad(
            network(pool.flatten(0, 1), noise.c.repeat(len(pool))).sum(), pool, create_graph=True
        )[0]
        noise.pool_x = noise.pool_x - 0.1 * grad
    assert apart(noise, network, name, data) > 1e-3


def test_one_offset_for_all_classes_shows(monkeypatch):
    def shared(self):
        return whole(self).mean().expand(3)

    whole = SelfNoise.log_z_ratio
    test_h_is_the_log_ratio("self", 1.0)
    monkeypatch.setattr(SelfNoise, "log_z_ratio", shared)
    with pytest.raises(AssertionError):
        test_h_is_the_log_ratio("self", 1.0)


# Temperature: one model, whose sampler, ratio, log Z and denoising agree


class Tilt(torch.nn.Module):
    """F(x | c) = a_c . x: at temperature tau the model is N(mu - C a, tau C)."""

    def __init__(self, a):
        super().__init__()
        self.a = torch.nn.Parameter(a)

    def forward(self, x, c):
        return (x.flatten(1) * self.a[c]).sum(1)


def tilted(temperature=2.0):
    a = 0.3 * torch.randn(3, 256, generator=torch.Generator().manual_seed(5))
    return ReferencedEnergy(random_reference(), Tilt(a), temperature)


def covariance(reference, k):
    u, lam, s = reference.basis[k], reference.eigenvalues[k], reference.remainder[k]
    return u @ torch.diag(lam - s) @ u.T + s * torch.eye(256)


def check_sampler(energy, temperature):
    """Chains have the mean mu - C a and the variance tau C, along ten directions."""
    g = torch.Generator().manual_seed(0)
    noise = SelfNoise(
        energy, (16, 16), per_component=2000, groups=1, steps=40, step_size=0.5, generator=g
    )
    noise.refresh(energy.network, g)
    x = noise.pool_x[0].flatten(1)[noise.c == 0].double()
    cov = covariance(energy.reference, 0).double()
    mean = energy.reference.mean[0] - cov @ energy.network.a[0].detach().double()
    directions = torch.cat([energy.reference.basis[0].T.double(), torch.eye(256).double()[:6]])
    along = (x - mean) @ directions.T
    variance = temperature * (directions @ cov * directions).sum(1)
    z = along.mean(0) / (variance / len(x)).sqrt()
    spread = along.square().mean(0) / variance
    assert z.abs().max() < 6, z
    assert (spread - 1).abs().max() < 6 * math.sqrt(2 / len(x)), spread


def check_ratio(energy, temperature):
    """h is the difference of the two exact log densities."""
    g = torch.Generator().manual_seed(0)
    noise = SelfNoise(energy, (16, 16), per_component=1600, groups=1, generator=g)
    noise.refresh(energy.network, g)
    other = Tilt(1.3 * energy.network.a.detach())
    x = energy.base.sample(torch.arange(3), g).view(-1, 1, 16, 16)
    data = x.repeat(1600, 1, 1, 1)
    h, _ = noise.log_ratio(other, data, noise.draw(1, g))
    for k in range(3):
        cov = temperature * covariance(energy.reference, k).double()
        mu, c = energy.reference.mean[k].double(), covariance(energy.reference, k).double()

        def log_prob(a, mu=mu, c=c, cov=cov, k=k):
            normal = torch.distributions.MultivariateNormal(mu - c @ a[k].detach().double(), cov)
            return normal.log_prob(x[k].flatten().double())

        expected = float(log_prob(other.a) - log_prob(energy.network.a))
        assert float(h[k].detach()) == pytest.approx(expected, abs=0.1)


def check_log_z(energy, temperature):
    """log Z = a C a / (2 tau) - a mu / tau, annealed and by the ledger's bridge."""
    g = torch.Generator().manual_seed(0)
    found = annealed_log_z(energy, (16, 16), chains=64, steps=40, settle=10, generator=g)
    zero = ReferencedEnergy(energy.reference, Tilt(torch.zeros(3, 256)), temperature)
    noise = SelfNoise(zero, (16, 16), per_component=256, groups=1, steps=20, generator=g)
    noise.refresh(zero.network, g)
    last = noise.bridge(energy.network, Ledger(), g)
    for k in range(3):
        a, mu = energy.network.a[k].detach(), energy.reference.mean[k]
        truth = float(0.5 * a @ covariance(energy.reference, k) @ a - a @ mu) / temperature
        assert float(found.forward[k]) == pytest.approx(
            truth, abs=0.05 + 4 * float(found.standard_error[k])
        )
        error = math.sqrt(last.variance[k])
        assert last.log_z[k] == pytest.approx(truth, abs=0.05 + 4 * error)


CHECKS = [check_sampler, check_ratio, check_log_z]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("check", CHECKS)
def test_one_temperature_for_all(check, temperature):
    check(tilted(temperature), temperature)


@pytest.mark.parametrize("side", ["base", "learnt"])
@pytest.mark.parametrize("check", CHECKS)
def test_a_side_that_forgets_the_temperature_shows(check, side, monkeypatch):
    """The Gaussian part alone, or the network's, left at temperature 1. In the log ratio the
    Gaussian parts cancel, but its samples and its offset come from them.
    """
    if side == "base":
        monkeypatch.setattr(ReferencedEnergy, "base", property(lambda self: self.reference))
    else:
        monkeypatch.setattr(ReferencedEnergy, "learnt", lambda self, x, c: self.network(x, c))
    with pytest.raises(AssertionError):
        check(tilted(2.0), 2.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_denoising_is_the_posterior_mean(temperature):
    """Tweedie: clean x ~ N(m, S), y = x + sigma noise: where the model is the law of y, its mean
    of x given y is `y + sigma^2 grad log p(y)`.
    """
    energy = tilted(temperature)
    sigma, c = 0.2, torch.zeros(4, dtype=torch.long)
    y = energy.base.sample(c, torch.Generator().manual_seed(0))
    cov = covariance(energy.reference, 0).double()
    m = energy.reference.mean[0] - cov @ energy.network.a[0].detach().double()
    law = temperature * cov
    gain = (law - sigma**2 * torch.eye(256)) @ torch.linalg.inv(law)
    expected = m + (y.double() - m) @ gain.T
    x = y.view(-1, 1, 16, 16)
    cleaned = x - sigma**2 * value_and_grad(GivenEnergy(energy, c), x)[1]
    torch.testing.assert_close(cleaned.flatten(1).double(), expected, rtol=1e-3, atol=1e-3)


def test_a_model_of_another_temperature_is_an_error(tmp_path):
    from sance_audio import train

    model = small_model(trained=False)
    assert isinstance(model, EnergyModel)
    x = torch.randn(30, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    with pytest.raises(ValueError, match=r"train\.temperature=2\.0, the model's is 1\.0"):
        train(model, x, torch.arange(30) % 3, TrainConfig(temperature=2.0), tmp_path)
