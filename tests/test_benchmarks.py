"""Benchmarks run, at a size that tells nothing, so that they do when they are needed."""

import sys

import pytest
import torch
from conftest import ROOT

from sance_audio.samplers import Compute


@pytest.fixture
def sampling(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks import sampling

    return sampling


def test_the_sampling_benchmark_times_all_it_names(sampling, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "choose", lambda *args, **kwargs: Compute(why="eager, as told"))
    monkeypatch.setattr(sampling, "CHAINS", (2,))
    found = sampling.energies(torch.device("cpu"))
    monkeypatch.setattr(
        sampling, "energies", lambda device: {k: found[k] for k in ("small MLP", "CPU network")}
    )
    sampling.speed(torch.device("cpu"), rounds=2, seconds=0.001, largest=100)
    printed = capsys.readouterr().out
    assert "small MLP, 2 chains (choose: eager, as told)" in printed
    assert "CPU network, 2 chains: not run (--largest 100)" in printed
    rows = {line[:34].strip(): line[34:].split() for line in printed.splitlines()}
    assert {"bare loop", "ours, eager"} <= rows.keys()
    assert float(rows["bare loop"][2]) == 1.0
    assert all(float(number) > 0 for number in rows["ours, eager"])


def test_peers_end_where_we_do(sampling):
    """The contestants do the same work: same stationary moments on a standard normal."""
    peers, x0 = sampling.peers, torch.zeros(4000, 1)
    runs = {"bare": peers.bare(quadratic, x0, 0.1), "ours": peers.ours(quadratic, x0, 0.1)}
    for name, run in (runs | peers.others(quadratic, x0, 0.1)).items():
        x = run(60)
        assert float(x.mean()) == pytest.approx(0, abs=0.08), name
        assert float(x.var()) == pytest.approx(1 / (1 - 0.05), abs=0.1), name


def quadratic(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.square().sum(1)


@pytest.mark.slow
def test_the_loading_benchmark_kills_and_resumes_a_build(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks import loading

    assert loading.built(tmp_path, 500) > 0
    path = loading.cache(tmp_path, 500)
    loading.read(path, 500)
    assert 0 < loading.trained(path, 500, 2) < 0.5
    printed = capsys.readouterr().out
    assert "clips on the disk; the other" in printed
    assert "rows made anew are equal to the bit" in printed
    names = {line[:24].strip() for line in printed.splitlines()}
    assert {"memory", "cache", "cache, cold"} <= names


def test_a_curve_over_langevin_steps(finished_run, capsys):
    from benchmarks import steps

    steps.main([str(finished_run), "--num", "20", "--steps", "0", "3"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert rows[0] == list(steps.TITLES)
    assert [row[:2] for row in rows[1:]] == [["0", "0"], ["3", "0"]]
    assert all(0 <= float(row[2]) <= 1 and float(row[3]) >= 0 for row in rows[1:])
