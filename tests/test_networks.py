import pytest
import torch
from conftest import random_reference

from sance_audio.energy import ReferencedEnergy, value_and_grad
from sance_audio.networks import (
    LEVEL_SIZES,
    SIZES,
    DenseEnergy,
    NoiseConditionalEnergy,
    ResidualEnergy,
)

NETWORKS = {
    **{name: lambda size=size: ResidualEnergy(3, **size) for name, size in SIZES.items()},
    **{
        f"levels {name}": lambda size=size: NoiseConditionalEnergy(3, **size)
        for name, size in LEVEL_SIZES.items()
    },
    "dense": lambda: DenseEnergy(3, dimensions=64 * 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_contract(name, generator):
    """What every network keeps to; a new one joins by a line in NETWORKS."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    x, c = torch.randn(3, 1, 64, 64, generator=generator), torch.tensor([0, 1, 2])
    assert network(x, c).tolist() == [0, 0, 0], "F = 0 at first"
    torch.nn.init.normal_(network.head.weight)
    for module in network.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    energy = network(x, c)
    assert energy.shape == (3,)
    if hasattr(network, "map"):
        torch.testing.assert_close(network.map(x, c).sum((1, 2)), energy)
    torch.testing.assert_close(type(network)(**network.settings)(x, c), torch.zeros(3))
    torch.testing.assert_close(network(x[1:2], c[1:2]), energy[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, c.flip(0))[0], energy[0]), "it ignores its condition"
    energy.sum().backward()
    for key, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, f"{key} gets no gradient"


def last_variance(network: ResidualEnergy) -> float:
    """Variance of the last feature map for white noise of variance 1."""
    h = network.stem(torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    c = torch.zeros(8, dtype=torch.long)
    for stage in network.stages:
        for k, block in enumerate(stage):
            h = block(h / 2**0.5 if k else h, c)
        h = torch.nn.functional.avg_pool2d(h, 2)
    return float(h.detach().var())


@pytest.mark.parametrize("frequencies", [0, 64])
def test_a_dense_layer_keeps_the_variance_of_its_input(frequencies, generator):
    torch.manual_seed(0)
    network = DenseEnergy(dimensions=2, width=256, depth=4, frequencies=frequencies)
    variances = []
    for layer in network.layers:
        layer.register_forward_hook(lambda _m, _x, y: variances.append(float(y.detach().var())))
    network(torch.randn(4096, 2, generator=generator))
    assert all(1 / 3 < variance < 3 for variance in variances), variances


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_initialisation_preserves_variance_and_pytorch_s_does_not(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    assert 1 / 5 < last_variance(network) < 5
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.reset_parameters()
    assert last_variance(network) < 1 / 20


def test_a_longer_clip_has_more_energy(generator):
    torch.manual_seed(0)
    network = ResidualEnergy()
    torch.nn.init.normal_(network.head.weight)
    x = torch.randn(1, 1, 64, 128, generator=generator)
    assert network.map(x).shape[2] == 2 * network.map(x[..., :64]).shape[2]


def test_energy_is_minus_log_density_plus_network(generator):
    torch.manual_seed(0)
    network = ResidualEnergy(3, channels=(8, 8), depth=(1,))
    torch.nn.init.normal_(network.head.weight)
    reference = random_reference()
    energy = ReferencedEnergy(reference, network)
    x, c = torch.randn(4, 1, 16, 16, generator=generator), torch.tensor([0, 1, 2, 1])
    expected = network(x, c) - reference.log_prob(x, c)
    torch.testing.assert_close(energy(x, c), expected)
    torch.testing.assert_close(energy.given(c)(x), expected)
    torch.testing.assert_close(energy.given(c).rows(slice(1, 3))(x[1:3]), expected[1:3])
    # the marginal is the log-sum-exp over all components; here there are fewer than it would prune
    energy.log_z.copy_(torch.tensor([0.5, -1.0, 2.0]))
    weight = torch.tensor([0.2, 0.3, 0.5]).log()
    every = torch.stack([-energy(x, torch.full((4,), k)) - energy.log_z[k] for k in range(3)], 1)
    torch.testing.assert_close(energy.marginal(x, weight), -(every + weight).logsumexp(1))


def test_the_gradient_is_the_finite_difference(generator):
    torch.manual_seed(0)
    network = ResidualEnergy(3, channels=(8, 8), depth=(1,)).double()
    torch.nn.init.normal_(network.head.weight)
    energy = (
        ReferencedEnergy(random_reference().double(), network).double().given(torch.tensor([1]))
    )
    x = torch.randn(1, 1, 16, 16, generator=generator, dtype=torch.double)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.double)
    _, grad = value_and_grad(energy, x)
    step = 1e-5
    difference = (energy(x + step * direction) - energy(x - step * direction)) / (2 * step)
    assert float((grad * direction).sum()) == pytest.approx(difference.item(), rel=1e-5)
