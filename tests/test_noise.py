import copy

import pytest
import torch
from conftest import small_model

from sance_audio.divergences import PAIRS, RANKED, objective
from sance_audio.noise import SelfNoise


def make(**settings) -> tuple[SelfNoise, torch.nn.Module, torch.Generator]:
    model = small_model()
    g = torch.Generator().manual_seed(0)
    noise = SelfNoise(model.density, model.shape, steps=3, generator=g, **settings)
    return noise, model.density.network, g


def test_pool_is_balanced_over_components_and_static_until_the_next_refresh():
    noise, network, g = make(per_component=2, groups=4, pool=2)
    noise.refresh(network, g)
    assert noise.pool_x.shape == (2, 6, 1, 16, 16)
    first = noise.draw(2, g)
    assert first.c.bincount().tolist() == [4, 4, 4]
    many = noise.draw(7, g)
    assert many.c.bincount().tolist() == [14, 14, 14]
    pool = noise.pool_x.flatten(0, 1)
    assert all(any(torch.equal(x, p) for p in pool) for x in many.x)
    with torch.no_grad():
        torch.testing.assert_close(network(many.x, many.c), many.frozen, rtol=1e-4, atol=1e-5)


def test_groups_take_turns_and_chains_persist():
    noise, network, g = make(groups=3, pool=1)
    start = noise.chains.clone()
    noise.refresh(network, g)
    assert not torch.equal(noise.chains[0], start[0])
    assert torch.equal(noise.chains[1:], start[1:])
    noise.refresh(network, g)
    assert torch.equal(noise.chains[2], start[2])
    assert torch.equal(noise.chains[1], noise.pool_x[0])


def test_fresh_chains_start_again_from_the_reference():
    noise, network, g = make(groups=1, fresh=1.0)
    noise.chains += 1000.0
    noise.refresh(network, g)
    assert noise.chains.abs().max() < 100


def test_the_snapshot_is_frozen():
    noise, network, g = make()
    noise.refresh(network, g)
    data, draw = noise.pool_x[0], noise.draw(1, g)
    h, value = noise.log_ratio(network, data, draw)
    assert h.abs().max() < 1e-6, "h = 0 at a refresh"
    assert h.shape == value.shape == (6,)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1
    h, _ = noise.log_ratio(network, data, draw)
    assert h.abs().max() > 0
    h.sum().backward()
    assert all(p.grad is None for p in noise.frozen.network.parameters())
    assert all(p.grad is not None for p in network.parameters())


def test_dlogz_is_the_log_mean_per_component():
    noise, network, g = make(per_component=2, groups=4, pool=4)
    noise.refresh(network, g)
    h = noise.pool_h = torch.randn(4, 6, generator=g)
    values = noise.log_z_ratio()
    for component in range(3):
        own = h[:, noise.c == component].flatten()
        assert float(values[component]) == pytest.approx(float(own.exp().mean().log()), abs=1e-5)


def test_an_offset_of_the_energy_is_taken_off():
    """exp(-E) and exp(-E + a_c) are one model: dlogZ absorbs a_c, class by class."""
    noise, network, g = make(per_component=4, groups=2, pool=2)
    noise.refresh(network, g)
    h = noise.pool_h = noise.measure(network) + torch.tensor([3.0, -1.0, 0.5])[noise.c]
    assert (h - noise.log_z_ratio()[noise.c]).abs().max() < 1e-4


def gradient(loss: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
    parts = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("nu", [1, 3])
@pytest.mark.parametrize("name", [*PAIRS, *RANKED])
def test_right_after_a_refresh_the_gradient_is_maximum_likelihood_s(name, nu):
    """Every loss, a real network, float64: phi''(1) (mean grad F on data - on noise) to 1e-10.

    A stale offset in h must show, where the loss does not cancel it.
    """
    model = small_model()
    g = torch.Generator().manual_seed(0)
    noise = SelfNoise(model.density, model.shape, per_component=2, generator=g)
    network = model.density.network.double().requires_grad_(True)
    noise.pool_x = torch.randn(1, 6, 1, 16, 16, generator=g).double()
    noise.pool_frozen = network(noise.pool_x[0], noise.c).detach().view(1, 6)
    data, draw = torch.randn(6, 1, 16, 16, generator=g).double(), noise.draw(nu, g)
    h, value = noise.log_ratio(network, data, draw, frozen_is_network=True)
    loss = objective(name, nu)
    scale = loss.curvature(nu) if name in RANKED else loss.curvature
    parts = list(map(noise.by_component, h.split([6, 6 * nu])))
    found = gradient(loss(*parts), network)
    expected = scale * gradient(value[:6].mean() - value[6:].mean(), network)
    assert (found - expected).norm() <= 1e-10 * expected.norm()
    stale = gradient(loss(*(part - 1.0 for part in parts)), network)
    apart = float((stale - expected).norm() / expected.norm())
    assert (apart < 1e-9) == (name in RANKED), f"an offset of 1 nat moves it by {apart:.0e}"


def test_h_is_the_log_ratio_with_each_component_s_offset_taken_off():
    noise, network, g = make(per_component=4, groups=2, pool=2)
    noise.refresh(network, g)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.02 * torch.randn(p.shape, generator=g)
    data, draw = torch.randn(12, 1, 16, 16, generator=g), noise.draw(2, g)
    h, _ = noise.log_ratio(network, data, draw)
    pool = noise.measure(network)
    offset = noise.log_z_ratio()
    expected = noise.frozen.network(data, noise.c) - network(data, noise.c) - offset[noise.c]
    torch.testing.assert_close(h[:12], expected, rtol=1e-3, atol=1e-5)
    assert len(h) == 36
    weights = (pool - offset[noise.c]).exp()
    for c in range(3):
        assert float(weights[:, noise.c == c].mean()) == pytest.approx(1, abs=1e-4)


def test_state_is_all_that_decides_the_noise():
    noise, network, g = make(groups=3)
    noise.refresh(network, g)
    state, random = copy.deepcopy(noise.state_dict()), g.get_state()
    noise.refresh(network, g)
    expected = noise.draw(1, g)
    other, _, _ = make(groups=3)
    other.load_state_dict(state)
    again = torch.Generator()
    again.set_state(random)
    other.refresh(network, again)
    assert torch.equal(other.draw(1, again).x, expected.x)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="pool=5"):
        make(groups=4, pool=5)
    with pytest.raises(ValueError, match="fresh is a probability"):
        make(fresh=1.5)
