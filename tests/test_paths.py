"""How steps are computed: paths agree, give way in words, and are chosen by measurement."""

import shutil
import warnings

import pytest
import torch
from conftest import random_reference
from sampler_laws import given, gumbel

from sance_audio.energy import LowPrecision, ReferencedEnergy
from sance_audio.networks import ResidualEnergy
from sance_audio.samplers import (
    HMC,
    MALA,
    Compute,
    Langevin,
    ReferenceLangevin,
    ReplicaExchange,
    SamplingError,
    SamplingWarning,
    choose,
    paths,
    sample,
)

compiler = pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"),
    reason="torch.compile needs a C++ compiler (g++ or clang++) on the path",
)


@pytest.fixture(autouse=True)
def _no_silent_fallback():
    """A path that gives way is an error, but where a test expects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SamplingWarning)
        yield


def run(sampler, compute, energy=gumbel, steps=21, x0=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    x0 = torch.linspace(-1, 1, 24).view(6, 4) if x0 is None else x0
    return sample(energy, sampler, x0, steps, generator=g, compute=compute)


@compiler
@pytest.mark.parametrize(
    "build",
    [
        lambda: Langevin(0.05),
        lambda: Langevin(lambda step: 0.1 / (1 + step)),
        lambda: MALA(0.3),
        lambda: HMC(0.2, 2),
        lambda: ReferenceLangevin(given(), 0.3, adjusted=True),
    ],
    ids=["langevin", "scheduled", "mala", "hmc", "reference"],
)
def test_compiled_steps_end_where_eager_ones_do(build):
    """Same stream of random numbers; whole blocks and what is left over."""
    compiled = run(build(), Compute("compiled", block=4))
    torch.testing.assert_close(compiled, run(build(), Compute()), rtol=1e-4, atol=1e-5)


@compiler
def test_a_compiled_network_follows_its_weights():
    """Weights that change in place, as a snapshot's at a refresh, are seen."""
    torch.manual_seed(0)
    network = ResidualEnergy(3, channels=(8, 8), depth=(1,), positions=1)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    base, c = random_reference(), torch.arange(3)
    energy = ReferencedEnergy(base, network)
    x0 = base.sample(c, torch.Generator().manual_seed(0)).view(3, 1, 16, 16)

    def end(compute):
        sampler = ReferenceLangevin(base.given(c), 0.1)
        return run(sampler, compute, energy.given(c), steps=8, x0=x0)

    first = end(Compute("compiled"))
    torch.testing.assert_close(first, end(Compute()), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        network.head.weight.mul_(-3)
    second = end(Compute("compiled"))
    torch.testing.assert_close(second, end(Compute()), rtol=1e-3, atol=1e-3)
    assert (first - second).abs().max() > 0.01


@compiler
def test_a_chain_that_fails_in_a_compiled_block_stops_too():
    def cliff(x):
        return torch.where(x[:, 0].abs() > 50, torch.nan, 0.5 * x.square().sum(1))

    x0 = torch.zeros(3, 2)
    x0[1] = 60
    with pytest.warns(SamplingWarning, match=r"chain 1 \(step 0\)"):
        x = run(Langevin(0.1), Compute("compiled"), cliff, 16, x0)
    assert torch.equal(x[1], x0[1])
    assert (x[[0, 2]] != x0[[0, 2]]).all()
    with pytest.raises(SamplingError, match="no chain moved"):
        run(MALA(1e6), Compute("compiled"), steps=16)


def test_a_path_that_cannot_be_had_gives_way_and_says_why(monkeypatch):
    expected = run(Langevin(0.05), None)
    with pytest.warns(SamplingWarning, match=r"cuda_graph steps.*the chains are on cpu"):
        assert torch.equal(run(Langevin(0.05), Compute("cuda_graph")), expected)
    ladder = ReplicaExchange(MALA(0.3), (1.0, 0.5))
    with pytest.warns(SamplingWarning, match="more than x, value and gradient"):
        run(ladder, Compute("compiled"))

    def broken(energy, sampler, block):
        def call(*args):
            raise RuntimeError("no compiler was found")

        return call

    monkeypatch.setattr(paths, "compiled_block", broken)
    with pytest.warns(SamplingWarning, match="no compiler was found"):
        found = run(Langevin(0.05), Compute("compiled"))
    torch.testing.assert_close(found, expected)
    chosen = choose(gumbel, Langevin(0.05), torch.zeros(3, 2))
    assert chosen.path == "eager"
    assert "no compiler was found" in chosen.why


def test_a_path_that_ends_elsewhere_is_not_chosen(monkeypatch):
    def wrong(*parts):
        def call(energy, sampler, block, *rest):
            x, *more = paths.moves(energy, sampler, block, *rest)
            return (x * 1.01, *more)

        return call

    monkeypatch.setattr(paths, "compiled_block", wrong)
    chosen = choose(gumbel, Langevin(0.05), torch.ones(3, 2), rounds=1)
    assert chosen.path == "eager"
    assert "ends elsewhere" in chosen.why


@pytest.mark.parametrize(("factor", "path"), [(0.5, "compiled"), (1.0, "eager"), (2.0, "eager")])
def test_the_faster_path_is_chosen(monkeypatch, factor, path):
    """Never one that is slower than the eager one, nor one as fast."""

    def timed(functions, rounds):
        return {name: [factor if name != "eager" else 1.0] * rounds for name in functions}

    monkeypatch.setattr(paths, "timed", timed)
    monkeypatch.setattr(
        paths, "compiled_block", lambda *parts: paths.moves
    )  # as right as eager: it is eager
    chosen = choose(gumbel, Langevin(0.05), torch.ones(3, 2))
    assert chosen.path == path
    assert f"compiled {factor:.2f} of that" in chosen.why


def test_bfloat16_energies_keep_chains_in_their_own_type():
    torch.manual_seed(0)
    network = ResidualEnergy(1, channels=(8, 8), depth=(1,), positions=1)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    x0 = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def energy(x):
        return network(x) + 0.5 * x.flatten(1).square().sum(1)

    exact = run(Langevin(0.05), None, energy, 5, x0)
    low = run(Langevin(0.05), Compute(precision="bfloat16"), energy, 5, x0)
    assert low.dtype == torch.float32
    assert 0 < (low - exact).abs().max() < 0.05
    with torch.no_grad():
        assert LowPrecision(network)(x0).dtype == torch.float32


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="path must be one of eager"):
        Compute("jit")
    with pytest.raises(ValueError, match="precision must be one of float32"):
        Compute(precision="float16")
    with pytest.raises(ValueError, match="block must be at least 1"):
        Compute(block=0)


@compiler
def test_what_is_not_finite_within_a_compiled_block_is_seen():
    """Chains that leave the half line and come back stop on every path alike."""

    def wall(x):
        return torch.where(x[:, 0] < 0, torch.inf, 0.5 * x[:, 0] ** 2)

    sampler = Langevin(0.3)
    state = sampler.init(wall, torch.ones(200, 1))
    noise = paths._stacked(sampler, state, 8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        eager = paths.moves(wall, sampler, 8, *state[:3], noise)
        compiled = paths.compiled_block(wall, sampler, 8)(wall, sampler, 8, *state[:3], noise)
    assert eager[4].sum() > 100
    assert torch.equal(compiled[4], eager[4])


@compiler
def test_another_step_size_compiles_nothing():
    for k in range(12):
        run(Langevin(0.01 * (k + 1)), Compute("compiled"), steps=8)


def test_a_path_that_failed_is_not_tried_again(monkeypatch):
    tries = []

    def broken(energy, sampler, block):
        def call(*args):
            tries.append(1)
            raise RuntimeError("no compiler was found")

        return call

    monkeypatch.setattr(paths, "compiled_block", broken)
    with pytest.warns(SamplingWarning, match="no compiler was found") as caught:
        run(Langevin(0.05), Compute("compiled"), steps=320)
    assert len(tries) == 1
    assert len(caught) == 1


@pytest.mark.parametrize(("block", "thin"), [(9, None), (12, None), (8, 100), (32, None)])
def test_steps_are_done_in_whole_blocks(monkeypatch, block, thin):
    done = []

    def counted(energy, sampler, k, *rest):
        done.append(k)
        return paths.moves(energy, sampler, k, *rest)

    monkeypatch.setattr(paths, "compiled_block", lambda *parts: counted)
    x0 = torch.zeros(3, 2)
    g = torch.Generator().manual_seed(0)
    how = Compute("compiled", block=block)
    sample(gumbel, Langevin(0.05), x0, 288, generator=g, compute=how, thin=thin)
    assert sum(done) >= 0.95 * 288 // block * block
    assert set(done) == {block}
