"""Threads and path are measured, stored with the model, and used."""

import pytest
import torch
from conftest import small_model

from sance_audio import generation, tuning
from sance_audio.chunks import run_chunks, slices, threads_of
from sance_audio.model import AudioEBM
from sance_audio.samplers import Compute
from sance_audio.tuning import tune


def with_ratio(ratio):
    """A clock that has more threads take `ratio` of the time of one."""

    def timed(functions, rounds):
        for function in functions.values():
            function()
        return {n: [1.0 if n == 1 else ratio] * rounds for n in functions}

    return timed


@pytest.mark.parametrize(("ratio", "threads"), [(0.5, 2), (0.9, 1), (10.0, 1)])
def test_more_threads_are_taken_only_where_they_pay(monkeypatch, ratio, threads):
    monkeypatch.setattr(tuning, "timed", with_ratio(ratio))
    monkeypatch.setattr(tuning, "cores", lambda: 2)
    before = torch.get_num_threads()
    found = tune(small_model(), 0.1, planned=100)
    assert (found.threads, found.path) == (threads, "eager")
    assert f"{ratio:.2f} of that with 2" in found.why
    assert "not compiled" in found.why
    assert torch.get_num_threads() == before


def test_a_path_is_looked_for_where_much_is_planned(monkeypatch):
    asked = []

    def choose(energy, sampler, x0, *, compute):
        asked.append((tuple(x0.shape), sampler.step_size))
        return Compute("compiled", threads=compute.threads, why="as told")

    monkeypatch.setattr(tuning, "choose", choose)
    found = tune(small_model(), 0.1, planned=10**12, rounds=1)
    assert found.path == "compiled"
    assert found.why.endswith("; as told")
    assert asked == [((16, 1, 16, 16), 0.1)]


def test_a_real_measurement_says_its_figures():
    found = tune(small_model(), 0.1, rounds=2)
    assert "us a step and clip with one thread a chunk" in found.why
    assert found.threads >= 1


def test_the_choice_travels_with_the_model_and_is_used(tmp_path, monkeypatch):
    model = small_model()
    model.compute = Compute(threads=2, block=4, why="measured")
    model.save_pretrained(tmp_path)
    again = AudioEBM.from_pretrained(tmp_path)
    assert again.compute == model.compute
    seen = []
    whole = generation.sample

    def spy(*args, compute, **kwargs):
        seen.append((compute, torch.get_num_threads()))
        return whole(*args, compute=compute, **kwargs)

    monkeypatch.setattr(generation, "sample", spy)
    first = again.generate(3, torch.Generator().manual_seed(1))
    assert seen == [(model.compute, 2)]
    torch.testing.assert_close(first, small_model().generate(3, torch.Generator().manual_seed(1)))


def test_threads_are_given_back_whatever_happens():
    before = torch.get_num_threads()
    seen = []

    def broken():
        with threads_of(before + 1):
            seen.append(torch.get_num_threads())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        broken()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    counts = run_chunks(lambda part: torch.get_num_threads(), slices(4, 2), threads=2)
    assert counts == [2, 2]
