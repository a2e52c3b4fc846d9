import warnings

import pytest
import torch
from checks import holds_on_a_fresh_seed
from conftest import random_reference
from planted_faults import FAULTS, caught
from sampler_laws import ADJUSTED, LAWS, given, gumbel
from torch.utils._python_dispatch import TorchDispatchMode

from sance_audio.energy import ReferencedEnergy, value_and_grad
from sance_audio.networks import ResidualEnergy
from sance_audio.samplers import (
    HMC,
    MALA,
    Annealed,
    Langevin,
    ReferenceLangevin,
    ReferencePreconditioner,
    ReplicaExchange,
    SamplingError,
    SamplingWarning,
    anneal,
    sample,
    warm_up,
)

SAMPLERS = {
    "langevin": lambda: Langevin(0.05),
    "preconditioned langevin": lambda: Langevin(0.05, ReferencePreconditioner(given())),
    "scheduled langevin": lambda: Langevin(lambda step: 0.1 / (1 + step)),
    "langevin, a step size a chain": lambda: Langevin(torch.full((6,), 0.05)),
    "reference langevin": lambda: ReferenceLangevin(given(), 0.1),
    "adjusted reference langevin": lambda: ReferenceLangevin(given(), 0.3, adjusted=True),
    "mala": lambda: MALA(0.3),
    "hmc": lambda: HMC(0.3, 3),
    "annealed": lambda: Annealed(MALA(0.3), lambda step: min(1.0, 0.25 + step / 4)),
    "replicas": lambda: ReplicaExchange(MALA(0.3), (1.0, 0.5, 0.2)),
    "replicas with a reference": lambda: ReplicaExchange(
        ReferenceLangevin(given(), 0.3, adjusted=True), (1.0, 0.5)
    ),
    "scheduled replicas": lambda: ReplicaExchange(MALA(lambda step: 0.3), (1.0, 0.5)),
}
"""A new sampler joins the contract by a line."""


def of_six(build):
    """A sampler for six chains, and the same for the third of them alone."""
    whole = build()
    return whole, whole.rows(slice(2, 3))


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name, generator):
    """What every sampler keeps to."""
    sampler, third = of_six(SAMPLERS[name])
    x = torch.randn(6, 4, generator=generator)
    state = sampler.init(gumbel, x)
    assert torch.equal(state.x, x)
    moved, info = sampler.step(gumbel, state, generator)
    assert moved.x.shape == x.shape
    assert moved.step == 1
    assert info.accepted.shape == (6,)
    assert ((info.accepted >= 0) & (info.accepted <= 1)).all()
    assert not moved.x.requires_grad
    again = sampler.init(gumbel, moved.x)
    torch.testing.assert_close(moved.value, again.value)
    torch.testing.assert_close(moved.grad, again.grad)
    # a generator per chain: a chain does not depend on its neighbours
    seeds = [torch.Generator().manual_seed(i) for i in range(6)]
    alone = [torch.Generator().manual_seed(2)]
    many = sample(gumbel, sampler, x, 5, generator=seeds)
    one = sample(gumbel, third, x[2:3], 5, generator=alone)
    torch.testing.assert_close(many[2:3], one)


@pytest.mark.parametrize("law", LAWS)
def test_law(law):
    holds_on_a_fresh_seed(LAWS[law])


@pytest.mark.parametrize("fault", FAULTS)
def test_the_laws_catch_a_planted_fault(fault):
    assert caught(fault), f"{fault}: passes {FAULTS[fault][1]}"


def test_unadjusted_langevin_is_biased_as_theory_says():
    """Stationary variance 1 / (1 - eps / 2) on a standard normal."""
    eps, n = 0.4, 20_000

    def scores(seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        energy = lambda x: 0.5 * x.square().sum(1)  # noqa: E731
        x = sample(energy, Langevin(eps), torch.zeros(n, 1), 60, generator=g)
        variance = 1 / (1 - eps / 2)
        return ((x.square().mean() - variance) / (variance * (2 / n) ** 0.5)).reshape(1)

    holds_on_a_fresh_seed(scores)


EVALUATIONS = {  # per step, and rows of each
    "langevin": (1, 6),
    "reference langevin": (1, 6),
    "adjusted reference langevin": (1, 6),
    "mala": (1, 6),
    "hmc": (3, 6),
    "annealed": (1, 6),
    "replicas": (1, 18),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_gradient_evaluations(name, generator):
    calls = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return gumbel(x)

    per_step, rows = EVALUATIONS[name]
    sample(counted, SAMPLERS[name](), torch.zeros(6, 4), 7, generator=generator)
    # one at the start; of the last step of an unadjusted sampler none is needed
    spare = "langevin" in name and "adjusted" not in name
    assert calls == [rows] * (1 + 7 * per_step - spare)


WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "item"}


class NoWaiting(TorchDispatchMode):
    """Fails at any operation for which the host would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_step_waits_for_the_device(name, generator):
    sampler = SAMPLERS[name]()
    state = sampler.init(gumbel, torch.zeros(6, 4))
    with NoWaiting():
        for _ in range(3):
            state, _ = sampler.step(gumbel, state, generator)
        with pytest.raises(AssertionError, match="waits"):
            float(state.value.sum())  # the check itself can fail


def test_no_gradient_of_the_parameters_is_computed(generator):
    torch.manual_seed(0)
    network = ResidualEnergy(1, channels=(8, 8), depth=(1,), positions=1)
    torch.nn.init.normal_(network.head.weight)
    seen = []
    for p in network.parameters():
        assert p.requires_grad
        p.register_hook(lambda grad: seen.append(grad))
    sample(network, Langevin(0.1), torch.zeros(2, 1, 16, 16), 2, generator=generator)
    assert not seen
    assert all(p.grad is None for p in network.parameters())
    network(torch.zeros(2, 1, 16, 16)).sum().backward()
    assert seen  # the hooks work


def test_chunks_do_not_change_a_chain_with_its_own_generator():
    base = random_reference().given(torch.arange(6) % 3)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).square().sum(1)

    def run(sampler, chunk):
        generators = [torch.Generator().manual_seed(i) for i in range(6)]
        x0 = torch.zeros(6, 1, 16, 16)
        return sample(energy, sampler, x0, 4, generator=generators, chunk=chunk)

    preconditioner = ReferencePreconditioner(base)
    for sampler in (
        ReferenceLangevin(base, 0.1),
        MALA(torch.linspace(0.01, 0.02, 6), preconditioner),
        ReplicaExchange(ReferenceLangevin(base, 0.1, adjusted=True), (1.0, 0.5)),
    ):
        for chunk in (2, 4):
            torch.testing.assert_close(run(sampler, None), run(sampler, chunk))


def test_ten_thousand_chains_run_in_chunks_by_themselves(generator):
    largest = []

    def energy(x: torch.Tensor) -> torch.Tensor:
        largest.append(len(x))
        return x.flatten(1).square().sum(1)

    x0 = torch.zeros(10_000, 1, 16, 16)
    x = sample(energy, Langevin(0.1), x0, 2, generator=generator)
    assert x.shape == x0.shape
    assert max(largest) <= 256
    assert float(x.flatten(1).std(1).min()) > 0  # every chain moved, each in its own way
    assert len(x[:, 0, 0, 0].unique()) > 9_900


def test_thin_and_callback(generator):
    seen = []
    kept = sample(
        gumbel,
        Langevin(0.1),
        torch.zeros(3, 2),
        7,
        generator=generator,
        thin=3,
        callback=lambda step, state, info: seen.append((step, state.step, len(state.x))),
    )
    assert kept.shape == (2, 3, 2)
    assert seen == [(step, step, 3) for step in range(1, 8)]


def test_a_schedule_is_asked_for_every_step(generator):
    asked = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.1 if step < 2 else 1e-12

    x = sample(gumbel, Langevin(schedule), torch.zeros(3, 2), 2, generator=generator)
    assert asked == [0, 1]
    asked.clear()
    still = sample(gumbel, Langevin(schedule), x, 6, generator=generator, thin=1)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert (still[2:] - still[1]).abs().max() < 1e-4


def test_annealing_over_noise_levels_goes_through_the_stages(generator):
    """Two wells at +-6: from afar, at falling noise levels, both are found in equal parts."""

    def at(level: float):
        variance = 1 + level**2
        return lambda x: (
            -torch.stack([-((x[:, 0] - m) ** 2) / (2 * variance) for m in (-6.0, 6.0)]).logsumexp(
                0
            )
        )

    levels = [10.0, 5.0, 2.0, 1.0, 0.1]
    stages = [(at(s), Langevin(0.1 * (1 + s**2)), 30) for s in levels]
    x = anneal(stages, torch.full((4000, 1), -6.0), generator=generator)
    assert abs(float((x > 0).float().mean()) - 0.5) < 0.04
    assert x.abs().mean() == pytest.approx(6, abs=0.1)
    with pytest.raises(ValueError, match="at least one stage"):
        anneal([], torch.zeros(2, 1), generator=generator)


def two_wells(x: torch.Tensor) -> torch.Tensor:
    """Equal unit Gaussians at +-5."""
    return -torch.logaddexp(-0.5 * (x[:, 0] - 5) ** 2, -0.5 * (x[:, 0] + 5) ** 2)


def test_replicas_cross_where_one_chain_cannot(generator):
    x0 = torch.full((400, 1), -5.0)
    stuck = sample(two_wells, MALA(1.0), x0, 400, generator=generator)
    assert (stuck < 0).float().mean() > 0.97
    ladder = ReplicaExchange(MALA(1.0), (1.0, 0.4, 0.15, 0.05))
    crossed = sample(two_wells, ladder, x0, 400, generator=generator)
    assert (crossed > 0).float().mean() == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("name", ADJUSTED)
@pytest.mark.parametrize("start", [1e-4, 30.0])
def test_warm_up_finds_the_acceptance_it_aims_at(name, start):
    sampler = ADJUSTED[name]().with_step_size(start)
    g = torch.Generator().manual_seed(0)
    tuned, x = warm_up(gumbel, sampler, torch.zeros(64, 2), 300, generator=g)
    assert isinstance(tuned.step_size, float)
    accepted = []
    sample(
        gumbel,
        tuned,
        x,
        100,
        generator=g,
        callback=lambda step, state, info: accepted.append(float(info.accepted.mean())),
    )
    assert sum(accepted) / 100 == pytest.approx(sampler.target, abs=0.1)


def test_warm_up_names_its_mistakes(generator):
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="nothing to tune"):
        warm_up(gumbel, Langevin(0.1), x, 10, generator=generator)
    with pytest.raises(ValueError, match="from one number"):
        warm_up(gumbel, MALA(lambda step: 0.1), x, 10, generator=generator)
    with pytest.raises(ValueError, match="target must lie between"):
        warm_up(gumbel, MALA(0.1), x, 10, generator=generator, target=1.5)
    wall = lambda x: torch.where(x[:, 0] == 0, 0 * x[:, 0], torch.inf)  # noqa: E731
    with pytest.raises(SamplingError, match="of 40 steps the last half accepted"):
        warm_up(wall, MALA(0.1), x, 40, generator=generator)


def cliff(x: torch.Tensor) -> torch.Tensor:
    """A standard normal; NaN for a chain that strays beyond 50."""
    energy = 0.5 * x.square().sum(1)
    return torch.where(x[:, 0].abs() > 50, torch.nan, energy)


@pytest.mark.parametrize("name", ["langevin", "mala", "hmc", "replicas"])
def test_a_chain_that_fails_stops_and_is_named_and_the_others_go_on(name):
    def run(first: float):
        seeds = [torch.Generator().manual_seed(i) for i in range(3)]
        x0 = torch.tensor([[0.1, 0.1], [first, 0.3], [0.2, 0.5]])
        return x0, sample(cliff, SAMPLERS[name](), x0, 40, generator=seeds)

    x0, whole = run(0.0)
    with pytest.warns(SamplingWarning, match=r"of 3 chains 1 stopped.*chain 1 \(step 0\)"):
        x0, x = run(60.0)
    assert torch.equal(x[1], x0[1]), "it stands where it was"
    torch.testing.assert_close(x[[0, 2]], whole[[0, 2]])


def test_an_explosion_stops_at_the_last_finite_place(generator):
    """One chain of four is pushed out by its energy; the step where it stopped is told."""
    push = torch.tensor([0.0, 0.0, -1e3, 0.0])

    class Energy:
        def __init__(self, push):
            self.push = push

        def __call__(self, x):
            return 0.5 * x.square().sum(1) + self.push * x.pow(4).sum(1)

        def rows(self, part):
            return Energy(self.push[part])

    for thin in (None, 1):
        with pytest.warns(SamplingWarning, match=r"chain 2 \(step \d+\)"):
            x = sample(
                Energy(push), Langevin(0.1), torch.ones(4, 2), 40, generator=generator, thin=thin
            )
        assert bool(x.isfinite().all())
    with pytest.raises(SamplingError, match="none is left"):
        sample(Energy(push[2:3]), Langevin(0.1), torch.ones(1, 2), 40, generator=generator)


def test_an_infinite_energy_is_a_wall_for_adjusted_samplers(generator):
    """Half a normal: proposals beyond 0 are rejected; nothing stops, nothing is warned of."""
    wall = lambda x: torch.where(x[:, 0] < 0, torch.inf, 0.5 * x[:, 0] ** 2)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sample(wall, MALA(0.5), torch.ones(4000, 1), 100, generator=generator)
    assert x.min() >= 0
    assert x.mean() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.06)


def test_a_step_that_rejects_everything_leaves_the_state_as_it_is(generator):
    sampler = MALA(1e6)
    state = sampler.init(gumbel, torch.zeros(5, 2))
    after, info = sampler.step(gumbel, state, generator)
    for a, b in zip(after[:3], state[:3], strict=True):
        assert torch.equal(a, b)
    assert info.accepted.max() == 0
    with pytest.raises(SamplingError, match=r"no chain moved.*step_size=1000000.0 is too large"):
        sample(gumbel, sampler, torch.zeros(5, 2), 10, generator=generator)
    big_once = MALA(lambda step: 1e6 if step == 3 else 0.3)
    with pytest.warns(SamplingWarning, match="1 of 10 steps rejected every proposal"):
        sample(gumbel, big_once, torch.zeros(5, 2), 10, generator=generator)


def test_mistakes_are_named(generator):
    x = torch.zeros(2, 2)

    def fails(match, *, energy=gumbel, sampler=None, x0=x, steps=1, g=generator, **more):
        with pytest.raises(ValueError, match=match):
            sample(energy, sampler or Langevin(0.1), x0, steps, generator=g, **more)

    fails("steps must be at least 1", steps=0)
    fails("1 generators for 2 chains", g=[generator])
    fails("thin must lie between", thin=2)
    fails("x0 must be floating-point", x0=torch.zeros(2, 2, dtype=torch.long))
    fails(r"x0 must be chains \(B, ...\)", x0=torch.zeros(2))
    fails(r"one number a row, \(2,\), found \(2, 1\)", energy=lambda x: x.sum(1, keepdim=True))
    fails(r"one number a row, \(2,\), found \(\)", energy=lambda x: x.sum())
    fails("the energy is torch.float64, x0 torch.float32", energy=lambda x: x.double().sum(1))
    linear = torch.nn.Linear(3, 1)
    fails(r"cannot take x \(2, 2\)", energy=lambda x: linear(x).squeeze(1))
    fails(r"cannot take x \(2, 3\) of torch.float64", x0=torch.zeros(2, 3).double(),
          energy=lambda x: linear(x).squeeze(1))  # fmt: skip
    meta = torch.zeros(2, 2, device="meta")
    fails(r"the generator is on cpu, x0 on meta", x0=meta)
    fails(r"reference of 1 rows of 4 cells", sampler=ReferenceLangevin(given(), 0.1))
    fails("must be one positive number", sampler=Langevin(lambda step: -1.0))
    for build in (
        lambda: Langevin(0.0),
        lambda: MALA(float("nan")),
        lambda: HMC(-1.0, 3),
        lambda: ReferenceLangevin(given(), 0.0),
    ):
        with pytest.raises(ValueError, match="step_size must be positive"):
            build()
    with pytest.raises(ValueError, match="n_leapfrog must be at least 1"):
        HMC(0.1, 0)
    with pytest.raises(ValueError, match="cap must be positive"):
        ReferenceLangevin(given(), 0.1, 0.0)
    with pytest.raises(ValueError, match=r"reference\.given"):
        ReferenceLangevin(random_reference(), 0.1)
    with pytest.raises(ValueError, match="betas must fall from 1"):
        ReplicaExchange(MALA(0.1), (1.0, 1.0))
    with pytest.raises(ValueError, match="leaves its target invariant"):
        ReplicaExchange(Langevin(0.1), (1.0, 0.5))


def test_a_constant_energy_has_a_zero_gradient():
    with pytest.warns(UserWarning, match="no gradient with respect to x"):
        value, grad = value_and_grad(lambda x: torch.zeros(len(x)), torch.ones(3, 2))
    assert value.tolist() == [0, 0, 0]
    assert grad.abs().max() == 0


def test_replicas_of_a_model_temper_its_network_alone(generator):
    """beta scales F and leaves the reference, whose part stays exact."""
    base = random_reference()
    torch.manual_seed(0)
    network = ResidualEnergy(3, channels=(8, 8), depth=(1,), positions=1)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    energy = ReferencedEnergy(base, network).given(torch.arange(3))
    sampler = ReplicaExchange(
        ReferenceLangevin(base.given(torch.arange(3)), 0.1, adjusted=True), (1.0, 0.5)
    )
    x0 = base.sample(torch.arange(3), generator).view(3, 1, 16, 16)
    x = sample(energy, sampler, x0, 5, generator=generator)
    assert x.shape == x0.shape
    state = sampler.init(energy, x0)
    torch.testing.assert_close(state.value, energy.learnt(x0).detach())


def test_gradient_modes_of_the_caller_are_no_matter():
    """Under inference mode, as under no_grad, chains move as they do outside."""

    def end():
        g = torch.Generator().manual_seed(0)
        return sample(gumbel, Langevin(0.1), torch.zeros(3, 2), 4, generator=g)

    expected = end()
    with torch.inference_mode():
        inside = end()
    assert torch.equal(inside, expected)
    with torch.no_grad():
        assert torch.equal(end(), expected)


def test_an_energy_that_leads_nowhere_is_said(generator):
    silent = torch.no_grad()(gumbel)
    with pytest.warns(UserWarning, match="no gradient with respect to x"):
        sample(silent, Langevin(0.1), torch.zeros(3, 2), 2, generator=generator)


def test_step_sizes_and_generators_must_be_as_many_as_chains(generator):
    x = torch.zeros(6, 2)
    one = Langevin(torch.full((1,), 0.1))
    assert sample(gumbel, one, x, 2, generator=generator, chunk=1).shape == x.shape
    for count in (3, 9):
        with pytest.raises(ValueError, match=f"{count} step sizes for 6 chains"):
            sample(gumbel, Langevin(torch.full((count,), 0.1)), x, 2, generator=generator)
    with pytest.raises(ValueError, match="one generator stands for several chains"):
        sample(gumbel, Langevin(0.1), x, 2, generator=[generator] * 6, chunk=2)
    with pytest.raises(ValueError, match="0 generators for 6 chains"):
        sample(gumbel, Langevin(0.1), x, 2, generator=None)
    with pytest.raises(ValueError, match="chunk size must be at least 1"):
        sample(gumbel, Langevin(0.1), x, 2, generator=generator, chunk=0)
    with pytest.raises(ValueError, match="a whole number"):
        sample(gumbel, Langevin(0.1), x, 2.0, generator=generator)
    with pytest.raises(ValueError, match="one positive number"):
        sample(gumbel, Langevin(lambda step: torch.ones(6)), x, 2, generator=generator)
    with pytest.raises(ValueError, match="a number or a tensor"):
        Langevin("0.1")
    double = ReferenceLangevin(given(), 0.1), Langevin(0.1, ReferencePreconditioner(given()))
    for sampler in double:
        with pytest.raises(ValueError, match=r"float64, the reference torch\.float32"):
            sample(gumbel, sampler, torch.zeros(6, 4).double(), 2, generator=generator)
    with pytest.raises(ValueError, match="one number a row"):
        warm_up(lambda x: gumbel(x).sum(), MALA(0.1), x, 10, generator=generator)


@pytest.mark.parametrize("outer", ["Annealed", "ReplicaExchange"])
def test_temperatures_of_temperatures_are_refused(outer):
    build = {
        "Annealed": lambda s: Annealed(s, lambda step: 1.0),
        "ReplicaExchange": lambda s: ReplicaExchange(s, (1.0, 0.5)),
    }[outer]
    for inner in (Annealed(MALA(0.1), lambda step: 1.0), ReplicaExchange(MALA(0.1), (1.0, 0.5))):
        with pytest.raises(ValueError, match=f"{outer} cannot hold {type(inner).__name__}"):
            build(inner)


@pytest.mark.parametrize("build", [lambda: MALA(0.4), lambda: HMC(0.5, 3)], ids=["mala", "hmc"])
def test_hot_replicas_move_as_readily_as_cold_ones(build, generator):
    """Step sizes grow with the temperature as each sampler needs it."""
    gauss = lambda x: 0.5 * x.square().sum(1)  # noqa: E731
    sampler = ReplicaExchange(build(), (1.0, 0.3, 0.1, 0.03))
    state = sampler.init(gauss, torch.zeros(200, 10))
    for _ in range(60):
        state, _ = sampler.step(gauss, state, generator)
    accepted = state.accepted / 60
    assert accepted.min() > 0.7 * accepted.max()


def test_one_dead_chain_does_not_hide_the_exchanges_of_the_others():
    sampler = ReplicaExchange(MALA(0.3), (1.0, 0.5))
    x0 = torch.tensor([[0.1], [torch.nan], [0.2]])
    state, g = sampler.init(gumbel, x0), torch.Generator().manual_seed(0)
    for _ in range(4):
        state, _ = sampler.step(gumbel, state, g)
    assert bool(state.swaps.isfinite().all())


def test_half_precision_chains_of_many_cells_are_finite(generator):
    x0 = torch.full((3, 4096), 20.0).half()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(lambda x: x[:, 0], Langevin(1e-3), x0, 2, generator=generator)


def test_warming_up_replicas_builds_no_ladder_anew(generator, monkeypatch):
    built = []
    whole = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: built.append(a) or whole(*a, **k))
    sampler = ReplicaExchange(MALA(0.3), (1.0, 0.5))
    warm_up(gumbel, sampler, torch.zeros(8, 2), 40, generator=generator)
    assert sum(a[0] == (1.0, 0.5) for a in built) <= 1


def test_threads_keep_the_precision_of_the_caller(generator):
    """Autocast holds in chunks that run side by side as it does in one."""
    network = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1))
    seeds = [torch.Generator().manual_seed(i) for i in range(8)]

    def end(chunk):
        for i, g in enumerate(seeds):
            g.manual_seed(i)
        energy = lambda x: network(x).squeeze(1).float()  # noqa: E731
        with torch.autocast("cpu", torch.bfloat16):
            return sample(energy, Langevin(0.1), torch.ones(8, 8), 3, generator=seeds, chunk=chunk)

    torch.testing.assert_close(end(4), end(8), rtol=0, atol=1e-6)
