"""Convergence diagnostics against ArviZ, cell by cell; and the record that a trace keeps."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sance_audio.diagnostics import (
    Trace,
    autocorrelation,
    bulk_ess,
    mcse_mean,
    mean_ess,
    r_hat,
    tail_ess,
)
from sance_audio.samplers import Info, Langevin, State, sample

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # arviz announces its successor
    import arviz

# With numba, ArviZ takes a variance as E[x^2] - E[x]^2 and loses the digits that are compared.
arviz.Numba.disable_numba()

STATISTICS: dict[str, tuple[Callable, Callable]] = {
    "bulk_ess": (bulk_ess, lambda x: arviz.ess(x, method="bulk")),
    "tail_ess": (tail_ess, lambda x: arviz.ess(x, method="tail")),
    "mean_ess": (mean_ess, lambda x: arviz.ess(x, method="mean")),
    "r_hat": (r_hat, lambda x: arviz.rhat(x, method="rank")),
    "mcse_mean": (mcse_mean, lambda x: arviz.mcse(x, method="mean")),
}


def autoregressive(rng: np.random.Generator, shape: tuple[int, int], rho: float) -> np.ndarray:
    x = rng.standard_normal(shape)
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + (1 - rho**2) ** 0.5 * x[:, t]
    return x


def metropolis(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A random walk on a standard Gaussian with steps so large that most are rejected: ties."""
    x = np.zeros(shape)
    here = rng.standard_normal(shape[0])
    for t in range(shape[1]):
        there = here + 6 * rng.standard_normal(shape[0])
        accept = np.log(rng.random(shape[0])) < (here**2 - there**2) / 2
        here = np.where(accept, there, here)
        x[:, t] = here
    return x


CHAINS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "independent": lambda g, s: g.standard_normal(s),
    "AR(1) .9": lambda g, s: autoregressive(g, s, 0.9),
    "AR(1) -.5": lambda g, s: autoregressive(g, s, -0.5),
    "alternating": lambda g, s: autoregressive(g, s, -0.99),
    "a random walk": lambda g, s: g.standard_normal(s).cumsum(1),
    "different means": lambda g, s: g.standard_normal(s) + np.arange(s[0])[:, None],
    "different spreads": lambda g, s: g.standard_normal(s) * (1 + np.arange(s[0]))[:, None],
    "Cauchy": lambda g, s: g.standard_cauchy(s),
    "ties of rejections": metropolis,
    "whole numbers": lambda g, s: g.integers(0, 5, s).astype(float),
    "signs": lambda g, s: np.sign(g.standard_normal(s)),
    "an offset": lambda g, s: 1e4 + g.standard_normal(s),
    "constant": lambda g, s: np.full(s, 0.3),
}
SHAPES = [(4, 500), (4, 501), (3, 77), (2, 8), (2, 4), (1, 200), (1, 5)]


def reference(of: Callable, x: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # 0 / 0 in chains that never change
        return float(np.ravel(of(x))[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_statistic_agrees_with_arviz(shape):
    rng = np.random.default_rng(shape)
    for chains, make in CHAINS.items():
        x = make(rng, shape)
        for name, (ours, theirs) in STATISTICS.items():
            found, expected = float(ours(torch.from_numpy(x))), reference(theirs, x)
            assert found == pytest.approx(expected, rel=1e-6, nan_ok=True), (name, chains)


def test_cells_are_judged_by_themselves():
    rng = np.random.default_rng(0)
    makers = list(CHAINS.values())
    x = np.stack([makers[i % len(makers)](rng, (4, 500)) for i in range(15)], -1)
    x = x.reshape(4, 500, 3, 5)
    for name, (ours, theirs) in STATISTICS.items():
        found = ours(torch.from_numpy(x))
        assert found.shape == (3, 5), name
        expected = [[reference(theirs, x[:, :, i, j]) for j in range(5)] for i in range(3)]
        assert found.numpy() == pytest.approx(np.array(expected), rel=1e-6, nan_ok=True), name


def test_thousands_of_cells_go_in_one_call(generator):
    x = torch.randn(4, 200, 4096, generator=generator)
    for name, (ours, _) in STATISTICS.items():
        found = ours(x)
        assert found.shape == (4096,), name
        for cell in (0, 1234, 4095):
            assert found[cell].item() == pytest.approx(float(ours(x[..., cell])), rel=1e-12), name


def test_cells_taken_in_blocks_are_the_same(generator, monkeypatch):
    x = torch.randn(2, 20, 7, 3, generator=generator)
    whole = {name: ours(x) for name, (ours, _) in STATISTICS.items()}
    monkeypatch.setattr("sance_audio.diagnostics.convergence.BLOCK", 5 * 2 * 20)
    for name, (ours, _) in STATISTICS.items():
        assert torch.equal(ours(x), whole[name]), name


def test_autocorrelation_is_arviz_s_of_each_chain():
    rng = np.random.default_rng(3)
    x = np.stack([autoregressive(rng, (3, 101), rho) for rho in (0.9, -0.5)], -1)
    found = autocorrelation(torch.from_numpy(x))
    assert found.shape == (3, 101, 2)
    for cell in range(2):
        expected = arviz.autocorr(x[..., cell], axis=1)
        assert found[..., cell].numpy() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert torch.equal(autocorrelation(torch.from_numpy(x), lags=7), found[:, :8])
    assert autocorrelation(torch.ones(1, 5)).isnan().all()


def test_chains_that_stay_where_they_are_do_not_converge():
    apart = torch.arange(4.0)[:, None].expand(4, 101)
    assert r_hat(apart) == torch.inf
    assert bulk_ess(apart) < 10
    assert r_hat(torch.ones(4, 100)).isnan()


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (torch.zeros(100), r"draws must be \(chains, draws, \.\.\.\).*found \(100,\)"),
        (torch.zeros(4, 0), "not empty"),
        (torch.zeros(100, 3), r"at least 4 draws a chain, found \(100, 3\)"),
        (torch.tensor([[0.0, 1.0, torch.nan, 2.0]]), "finite real numbers, found 1"),
        (torch.tensor([[0.0, 1.0, torch.inf, 2.0]]), "finite real numbers, found 1"),
        (torch.zeros(4, 8, dtype=torch.cfloat), "finite real numbers, found complex"),
    ],
)
def test_draws_that_cannot_be_judged_are_refused(draws, message):
    for ours, _ in STATISTICS.values():
        with pytest.raises(ValueError, match=message):
            ours(draws)
    with pytest.raises(ValueError, match=message):
        autocorrelation(draws)


def test_lags_are_checked():
    with pytest.raises(ValueError, match="lags must lie between 0 and draws - 1 = 9, found 10"):
        autocorrelation(torch.zeros(2, 10), lags=10)


# -- The trace -----------------------------------------------------------------------------------


def squares(x: torch.Tensor) -> torch.Tensor:
    return x.square().flatten(1).sum(1) / 2


def test_a_trace_holds_what_each_step_left(generator):
    trace, x0 = Trace(keep=True, thin=3), torch.zeros(5, 2, 3)
    last = sample(squares, Langevin(0.2), x0, 20, generator=generator, callback=trace)
    assert len(trace) == 20
    assert trace.energies.shape == trace.accepted.shape == (5, 20)
    assert trace.x.shape == (5, 6, 2, 3)
    assert torch.allclose(trace.energies[:, -1], squares(last))
    assert torch.allclose(trace.energies[:, 2::3], torch.stack([*map(squares, trace.x)]))
    assert trace.accepted.min() == 1


def test_a_summary_leaves_the_warm_up_out(generator):
    trace = Trace(keep=True, thin=2)
    x0 = torch.full((4, 3), 1e6)
    sample(squares, Langevin(0.1), x0, 600, generator=generator, callback=trace)
    whole, settled = trace.summary(), trace.summary(skip=201)
    assert (settled.chains, settled.steps, settled.accepted) == (4, 399, 1)
    assert settled.energy.r_hat < 1.1 < whole.energy.r_hat
    assert settled.x.r_hat == float(r_hat(trace.x[:, 100:]).max())
    assert settled.x.bulk_ess == float(bulk_ess(trace.x[:, 100:]).min())
    assert settled.energy.tail_ess == float(tail_ess(trace.energies[:, 201:]))
    assert "4 chains, 399 steps" in str(settled)
    assert "x, worst cell" in str(settled)


def test_acceptance_is_averaged_and_states_are_kept_on_request_only():
    trace = Trace()
    for step in range(1, 9):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        state, accepted = State(x, squares(x), x), torch.tensor([0.25, 0.75])
        trace(step, state, Info(accepted))
        state.value.fill_(99)  # what a sampler does with its buffers later is not recorded
    assert trace.summary().accepted == 0.5
    assert trace.summary().x is None
    assert trace.energies.max() < 99
    with pytest.raises(ValueError, match=r"holds no states: ask for Trace\(keep=True\)"):
        trace.x  # noqa: B018


def test_misuse_of_a_trace_is_named():
    trace, x = Trace(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"holds no energies: run `sample`"):
        trace.energies  # noqa: B018
    trace(1, State(x, squares(x), x), Info(torch.ones(2)))
    with pytest.raises(ValueError, match="skip must leave at least 4 of 1 steps, found 0"):
        trace.summary()
    with pytest.raises(ValueError, match="holds 2 chains, found 3"):
        trace(2, State(torch.zeros(3, 3), torch.zeros(3), x), Info(torch.ones(3)))
    with pytest.raises(ValueError, match="thin must be at least 1, found 0"):
        Trace(thin=0)
