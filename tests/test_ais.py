"""Annealed importance sampling: Z is unbiased, the bounds hold, and faults are caught."""

import math
from itertools import pairwise

import pytest
import torch
from checks import holds_on_a_fresh_seed
from conftest import random_reference
from torch import Tensor

from sance_audio.diagnostics import AnnealedLogZ, ais, annealing, tuned_mala
from sance_audio.diagnostics.path import AnnealedEnergy, Remembered, temperatures
from sance_audio.samplers import HMC, MALA, Info, Langevin, ReferenceLangevin, State


class Gaussian:
    """Independent normal variables `(D,)`; `off` makes its density wrong by a factor exp(off)."""

    def __init__(self, mean: Tensor, deviation: Tensor, off: float = 0.0):
        self.mean, self.deviation, self.off = mean, deviation, off

    def log_prob(self, x: Tensor) -> Tensor:
        u = (x - self.mean) / self.deviation
        normaliser = (self.deviation.log() + 0.5 * math.log(2 * math.pi)).sum()
        return -u.square().sum(1) / 2 - normaliser + self.off

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.mean + self.deviation * torch.randn(n, len(self.mean), generator=generator)


def wide(d: int, off: float = 0.0) -> Gaussian:
    """A base for `skewed`: near it, not it."""
    return Gaussian(torch.full((d,), -0.5), torch.full((d,), 1.4), off)


def skewed(x: Tensor) -> Tensor:
    """The logarithms of exponential variables: `int exp(x - exp(x)) dx = 1`, in any dimension."""
    return (x.exp() - x).sum(1)


def score(result: AnnealedLogZ, truth: float) -> Tensor:
    """Standard errors between the estimate of Z (not of log Z) and the truth."""
    assert result.relative_error < 0.1, "too few chains or temperatures for a check"
    return torch.tensor((1 - math.exp(truth - result.log_z)) / result.relative_error)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("d", "chains", "steps"), [(2, 2048, 20), (16, 2048, 60), (128, 1024, 600)]
)
def test_z_is_unbiased_for_a_skewed_target(d, chains, steps):
    def z(seed: int) -> Tensor:
        generator = seeded(seed)
        return score(ais(skewed, wide(d), chains=chains, steps=steps, generator=generator), 0.0)

    holds_on_a_fresh_seed(z)


TARGET = Gaussian(torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16))


def shifted(x: Tensor) -> Tensor:
    """The energy of `TARGET`, log Z = 1.5."""
    return -TARGET.log_prob(x) - 1.5


def test_both_ends_are_unbiased_and_bound_log_z():
    def both(seed: int) -> Tensor:
        generator = seeded(seed)
        exact = TARGET.sample(1024, generator)
        result = ais(
            shifted,
            Gaussian(torch.zeros(16), torch.full((16,), 1.5)),
            chains=1024,
            steps=100,
            schedule=lambda t: t**1.5,
            generator=generator,
            exact_samples=exact,
        )
        assert result.lower_bound() < 1.5 < result.upper_bound()
        assert result.lower_bound(0.5) == pytest.approx(result.log_z - math.log(2))
        assert result.upper_bound(0.5) == pytest.approx(result.upper + math.log(2))
        backwards = AnnealedLogZ(result.reverse_log_weight, result.accepted)  # of 1 / Z
        return torch.stack([score(result, 1.5), score(backwards, -1.5)])

    holds_on_a_fresh_seed(both)


# -- Planted faults ------------------------------------------------------------------------------


def skewed_score(seed: int, base: Gaussian | None = None, **changes) -> Tensor:
    settings = {"chains": 8192, "steps": 60, "chunk": 8192} | changes
    return score(ais(skewed, base or wide(16), generator=seeded(seed), **settings), 0.0)


def test_without_a_fault_the_check_holds():
    holds_on_a_fresh_seed(skewed_score)


def test_a_step_that_is_never_rejected_is_caught():
    with pytest.raises(AssertionError, match="z-scores"):
        holds_on_a_fresh_seed(lambda seed: skewed_score(seed, sampler=lambda beta: Langevin(0.3)))


def test_a_stale_weight_is_caught(monkeypatch):
    work, seen = annealing._work, []

    def stale(energy, base, x, change):
        seen.append(x)
        return work(energy, base, seen[-2] if len(seen) > 1 else x, change)

    def z(seed: int) -> Tensor:
        seen.clear()
        return skewed_score(seed)

    monkeypatch.setattr(annealing, "_work", stale)
    with pytest.raises(AssertionError, match="z-scores"):
        holds_on_a_fresh_seed(z)


def test_a_base_that_is_not_normalised_is_caught():
    with pytest.raises(AssertionError, match="z-scores"):
        holds_on_a_fresh_seed(lambda seed: skewed_score(seed, wide(16, off=0.2)))


# -- What is not known is not claimed ------------------------------------------------------------

LOG_Z = 1.145
MODES = torch.tensor([-6.0, 6.0])


def two_modes(x: Tensor) -> Tensor:
    """Unit Gaussians at -6 and 6, half the mass each, with log Z = 1.145."""
    logs = -(x - MODES).square() / 2 - 0.5 * math.log(2 * math.pi) - math.log(2)
    return -logs.logsumexp(1) - LOG_Z


LEFT = Gaussian(MODES[:1], torch.ones(1))


def test_a_mode_that_no_chain_visits_leaves_a_lower_bound_only(generator):
    result = ais(two_modes, LEFT, chains=512, steps=50, generator=generator)
    assert result.log_z == pytest.approx(0.45, abs=0.02)  # half of the mass, and sure of itself
    assert result.ess > 0.99
    assert result.standard_error < 0.01
    assert result.lower_bound() < LOG_Z
    assert result.upper is None
    assert result.upper_bound() is None
    assert result.reverse_log_weight is None
    assert "<=" not in str(result)
    assert "not bounded from above" in str(result)
    assert "true if these visited every mode" in str(result)


def test_exact_samples_of_both_modes_bound_it_from_above(generator):
    noise = torch.randn(512, 1, generator=generator)
    exact = noise + MODES[torch.randint(2, (512, 1), generator=generator)]
    result = ais(two_modes, LEFT, chains=512, steps=50, generator=generator, exact_samples=exact)
    assert result.lower_bound() < LOG_Z < result.upper_bound()
    assert result.upper == pytest.approx(LOG_Z, abs=0.3)
    assert f"log Z <= {result.upper_bound():.3f}" in str(result)
    assert "if the samples given were exact" in str(result)


def test_the_lower_bound_holds_for_weights_worth_nothing():
    results = [
        ais(skewed, wide(128), chains=8, steps=1, generator=seeded(seed)) for seed in range(200)
    ]
    assert max(r.ess for r in results) < 0.9
    above = sum(r.lower_bound(0.9) > 0 for r in results)
    assert above <= 40  # of 200, at most 20 on average: 40 is 4.7 standard errors away
    assert any(r.standard_error == math.inf for r in results)
    assert all(math.isnan(r.accepted) for r in results)  # one change of beta, no transition


# -- The path ------------------------------------------------------------------------------------


def test_tuned_steps_are_accepted_as_they_should_be_and_belong_to_other_chains():
    betas = temperatures(40, None)
    tuned = tuned_mala(skewed, wide(16), betas, 512, seeded(1))
    sizes = [tuned(beta).step_size for beta in betas[1:]]
    assert sizes == [tuned(beta + 0.01).step_size for beta in betas[1:]]
    result = ais(skewed, wide(16), steps=40, sampler=tuned, generator=seeded(2))
    assert result.accepted == pytest.approx(MALA.target, abs=0.1)
    mixed = ais(
        lambda x: skewed(1e3 * x) - 16 * math.log(1e3),
        Gaussian(torch.full((16,), -5e-4), torch.full((16,), 1.4e-3)),
        steps=40,
        generator=seeded(2),
    )
    assert mixed.accepted == pytest.approx(MALA.target, abs=0.1)  # whatever the scale


class Rowed:
    """An energy that holds something per row: how much of `skewed` it is, always 1."""

    def __init__(self, factor: Tensor):
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * skewed(x)

    def rows(self, part: slice) -> "Rowed":
        return Rowed(self.factor[part])


def test_chunks_take_their_rows_and_repeat():
    settings = {"chains": 70, "steps": 10, "chunk": 32}
    first = ais(Rowed(torch.ones(70)), wide(4), generator=seeded(3), **settings)
    again = ais(skewed, wide(4), generator=seeded(3), **settings)
    assert first.log_weight.shape == (70,)
    assert torch.equal(first.log_weight, again.log_weight)
    assert first.accepted == again.accepted


def test_infinite_energies_are_weights_of_zero(generator):
    def half(x: Tensor) -> Tensor:
        """The half of a unit Gaussian right of 0: Z = 1/2."""
        energy = x.square().sum(1) / 2 + 0.5 * math.log(2 * math.pi)
        return energy.masked_fill(x[:, 0] < 0, torch.inf)

    result = ais(
        half, Gaussian(torch.zeros(1), torch.ones(1)), chains=512, steps=4, generator=generator
    )
    assert result.log_weight.isneginf().any()
    assert math.exp(result.log_z) == pytest.approx(0.5, abs=4 * 0.5 * result.relative_error)


class Still:
    """A sampler that stays where it is, and leaves everything invariant."""

    def init(self, energy, x):
        return State(x, energy(x), torch.zeros_like(x))

    def step(self, energy, state, generator):
        return state, Info(torch.zeros(len(state.x)))


def test_any_sampler_will_do(generator):
    """Without motion annealing is plain importance sampling."""
    seen = []

    def sampler(beta: float) -> Still:
        seen.append(beta)
        return Still()

    result = ais(skewed, wide(2), chains=64, steps=5, sampler=sampler, generator=generator)
    x = wide(2).sample(64, seeded(0))
    plain = -(skewed(x) + wide(2).log_prob(x))
    assert torch.allclose(result.log_weight.float(), plain, atol=1e-5)
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert result.accepted == 0


class Counted:
    """`skewed`, which counts how often it is asked for a gradient, and for a value alone."""

    def __init__(self):
        self.gradients, self.values = 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.gradients += 1
        else:
            self.values += 1
        return skewed(x)


@pytest.mark.parametrize(
    ("sampler", "each"), [(MALA(0.3), 1), (HMC(0.2, 3), 3), (Langevin(0.3), 1), (Still(), 0)]
)
def test_a_temperature_costs_the_gradients_of_its_move_alone(sampler, each):
    """One more to begin with, and two values: of the first weights, and of the check before."""
    energy, settings = Counted(), {"chains": 64, "steps": 20, "chunk": 64}
    ais(energy, wide(4), sampler=lambda beta: sampler, generator=seeded(0), **settings)
    assert energy.gradients == (19 * each + 1 if each else 0)
    assert energy.values == 2


def test_the_pilot_of_step_sizes_costs_one_gradient_a_move():
    energy = Counted()
    tuned_mala(energy, wide(4), temperatures(10, None), 64, seeded(0))
    assert energy.gradients == 60 + 9 * 2 + 1


class InPlace(MALA):
    """Writes the new state over the old one."""

    def move(self, energy, state, noise):
        moved, info = super().move(energy, state, noise)
        return moved._replace(x=state.x.copy_(moved.x)), info


@pytest.mark.parametrize("sampler", [MALA(0.3), HMC(0.2, 3), Langevin(0.3), InPlace(0.3)])
def test_what_is_remembered_is_what_would_be_computed(sampler, monkeypatch):
    settings = {"chains": 70, "steps": 12, "chunk": 32, "sampler": lambda beta: sampler}
    found = ais(skewed, wide(4), generator=seeded(0), **settings)
    monkeypatch.setattr(Remembered, "_recalled", lambda self, x: None)
    computed = ais(skewed, wide(4), generator=seeded(0), **settings)
    torch.testing.assert_close(found.log_weight, computed.log_weight, rtol=0, atol=1e-5)
    assert found.accepted == pytest.approx(computed.accepted, abs=1e-6)


def test_a_memory_of_the_wrong_place_is_caught(monkeypatch):
    """What is known of a rejected proposal is taken for what is known of where the chain is."""
    recalled = Remembered._recalled

    def proposed(self, x):
        place = recalled(self, x)
        return place and place._replace(value=(self.last or self.here).value)

    monkeypatch.setattr(Remembered, "_recalled", proposed)
    with pytest.raises(AssertionError, match="too few chains"):  # weights all over the place
        holds_on_a_fresh_seed(skewed_score)


class Component:
    """The first Gaussian of a reference, as a base."""

    def __init__(self, reference):
        self.reference = reference

    def log_prob(self, x: Tensor) -> Tensor:
        return self.reference.log_prob(x, torch.zeros(len(x), dtype=torch.long))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.reference.sample(torch.zeros(n, dtype=torch.long), generator)


def test_a_sampler_that_holds_something_per_chain_is_given_its_rows():
    """A tilted Gaussian, of known log Z, moved by steps that are exact in the Gaussian part."""
    base = Component(random_reference(components=1))
    a = 0.1 * torch.randn(256, generator=seeded(5))
    of = base.reference
    u, lam, rest = of.basis[0], of.eigenvalues[0], of.remainder[0]
    variance = ((lam - rest) * (a @ u).square()).sum() + rest * a.square().sum()
    truth = float(variance / 2 - of.mean[0] @ a)

    def z(seed: int) -> Tensor:
        chains = torch.zeros(200, dtype=torch.long)
        result = ais(
            lambda x: x @ a - base.log_prob(x),
            base,
            chains=200,
            steps=60,
            sampler=lambda beta: ReferenceLangevin(
                base.reference.given(chains), 0.2, adjusted=True
            ),
            generator=seeded(seed),
            chunk=64,
        )
        assert result.accepted > 0.5
        return score(result, truth)

    holds_on_a_fresh_seed(z)


def test_the_path_leads_from_base_to_model():
    x = torch.randn(7, 3, generator=seeded(0))
    base = wide(3)
    assert torch.equal(AnnealedEnergy(skewed, base, 1)(x), skewed(x))
    middle = AnnealedEnergy(skewed, base, 0.25)(x)
    assert torch.allclose(middle, 0.25 * skewed(x) - 0.75 * base.log_prob(x))
    betas = temperatures(8, lambda t: t**2)
    assert betas[0] == 0
    assert betas[-1] == 1
    assert all(a < b for a, b in pairwise(betas))


# -- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chains": 1}, "chains must be at least 2, found 1"),
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"schedule": lambda t: t / 2}, "schedule must increase from 0 at 0 to 1 at 1.*to 0.5"),
        ({"schedule": lambda t: round(t)}, "that do not increase"),
        ({"energy": lambda x: x}, r"energy must give one number a row, \(2,\), found \(2, 3\)"),
        ({"energy": lambda x: skewed(x) * math.nan}, "gave NaN or minus infinity: found in 8"),
        ({"exact_samples": torch.zeros(9, 4)}, r"exact_samples must be \(n, \*\(3,\)\)"),
        ({"exact_samples": torch.zeros(1, 3)}, r"n >= 2, found \(1, 3\)"),
    ],
)
def test_mistakes_are_named(changes, message):
    settings = {"energy": skewed, "chains": 8, "steps": 4} | changes
    with pytest.raises(ValueError, match=message):
        ais(settings.pop("energy"), wide(3), generator=seeded(0), **settings)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_is_a_probability(confidence):
    result = AnnealedLogZ(torch.zeros(4), 1.0)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        result.lower_bound(confidence)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        result.upper_bound(confidence)
