"""The anomaly benchmark: AUC, paired bootstrap, tasks, and peers that tell a tone from noise."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, real_data
from sklearn.metrics import roc_auc_score

RATE = 16000


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks import anomaly

    return anomaly


@pytest.fixture
def peers(bench):
    pytest.importorskip("pyod", reason="needs PyOD: pip install 'sance-audio[bench]'")
    return bench.PEERS


def task_of(bench, odd, groups, part="a"):
    return bench.Task(part, 0, [], [], np.array(odd, bool), [str(g) for g in groups])


def test_auc_is_what_it_is_by_hand_and_by_scikit_learn(bench):
    odd = np.array([0, 0, 1, 1], bool)
    assert bench.auc(odd, np.array([1.0, 2, 3, 4])) == 1
    assert bench.auc(odd, np.array([4.0, 3, 2, 1])) == 0
    assert bench.auc(odd, np.array([1.0, 3, 3, 0])) == pytest.approx(1.5 / 4)  # a tie is half
    assert np.isnan(bench.auc(np.zeros(4, bool), np.arange(4.0)))
    rng = np.random.default_rng(0)
    odd, score = rng.random(50) < 0.4, rng.integers(0, 20, 50).astype(float)
    weight = rng.integers(0, 3, 50).astype(float)
    assert bench.auc(odd, score) == pytest.approx(roc_auc_score(odd, score))
    assert bench.auc(odd, score, weight) == pytest.approx(
        roc_auc_score(odd, score, sample_weight=weight)
    )


def test_a_method_less_itself_is_exactly_zero(bench):
    rng = np.random.default_rng(0)
    tasks = [task_of(bench, rng.random(30) < 0.5, np.arange(30) // 3) for _ in range(3)]
    scores = [rng.standard_normal((2, 30)) for _ in tasks]
    assert bench.paired(tasks, scores, scores) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_recordings_are_resampled_not_clips(bench):
    """Ten copies of each clip tell nothing new: the interval is that of one copy, and wider than
    the one that takes the copies for clips of their own.
    """
    rng = np.random.default_rng(0)
    odd = np.arange(40) % 2 == 1
    ours, other = odd + rng.standard_normal((2, 40))
    task = task_of(bench, odd, np.arange(40))
    once = bench.paired([task], [ours[None]], [other[None]])
    tenfold = [np.repeat(x, 10)[None] for x in (ours, other)]
    odd = np.repeat(odd, 10)
    copies = task_of(bench, odd, np.repeat(np.arange(40), 10))
    apart = task_of(bench, odd, np.arange(400))
    assert bench.paired([copies], [tenfold[0]], [tenfold[1]]) == pytest.approx(once)
    narrow = bench.paired([apart], [tenfold[0]], [tenfold[1]])
    assert narrow["high"] - narrow["low"] < 0.5 * (once["high"] - once["low"])


def test_the_interval_covers_the_truth(bench):
    """Scores N(1, 1) and N(0.5, 1) above normals N(0, 1): AUCs Phi(1/sqrt 2) and Phi(.5/sqrt 2).
    Of 60 intervals at 95 %, fewer than 48 hold the difference once in 1e5 times.
    """
    from scipy.stats import norm

    truth = norm.cdf(1 / np.sqrt(2)) - norm.cdf(0.5 / np.sqrt(2))
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        odd = np.arange(120) % 2 == 1
        ours, other = (shift * odd + rng.standard_normal(120) for shift in (1.0, 0.5))
        found = bench.paired([task_of(bench, odd, range(120))], [ours[None]], [other[None]])
        held += found["low"] <= truth <= found["high"]
    assert held >= 48


def test_a_run_goes_on_from_its_file(bench, monkeypatch, tmp_path):
    """What stands in the file is not computed again; clips that change are."""
    trained = []

    class Level:
        def fit(self, clips):
            trained.append(len(clips))
            return self

        def score(self, clips):
            return np.array([np.std(wave) for wave, _ in clips])

    monkeypatch.setattr(bench, "METHODS", {"level": lambda features, seed: Level()})
    rng = np.random.default_rng(0)

    def clip(name, scale):
        wave = SimpleNamespace(numpy=lambda: scale * rng.standard_normal(RATE))
        recording = SimpleNamespace(waveform=wave, sample_rate=RATE)
        source = SimpleNamespace(load=lambda: recording, digest=lambda: f"{name}{scale}")
        return bench.corpora.Clip(name, "a", "test", source)

    def tasks(scale):
        clips = [clip("x", 1.0), clip("y", 1.0), clip("z", scale)]
        odd = np.array([False, False, True])
        return [bench.Task("a", 0, clips[:2], clips, odd, ["x", "y", "z"])]

    monkeypatch.setattr(bench, "_hear", lambda c: (c.source.load().waveform.numpy(), RATE))
    out, names = tmp_path / "out.json", ["level"]
    first = bench.run(tasks(9.0), "toy", names, 3, out)
    assert json.loads(out.read_text()) == first
    assert bench.run(tasks(9.0), "toy", names, 3, out) == first
    assert trained == [2]
    found = bench.run(tasks(5.0), "toy", names, 3, out)
    assert trained == [2, 2]
    assert len(found) == 2
    summary = bench.summarise(tasks(9.0), "toy", names, 3, found)
    assert summary["level"]["auc"] == summary["level"]["parts"]["a"] == 1.0


def test_tasks_never_judge_what_was_trained_on(bench):
    for split in ("test", "valid"):
        tasks = bench.machine_tasks(None, split)
        assert [(t.part, t.fold) for t in tasks] == [
            (kind, fold) for fold in range(3) for kind in ("fan", "pump", "valve")
        ]
        for task in tasks:
            assert len(task.train) == bench.TRAINED * bench.TAKES
            assert len(task.test) == 2 * bench.JUDGED * bench.TAKES
            assert 2 * task.odd.sum() == len(task.odd)
            assert not {c.group for c in task.train} & set(task.groups)
    judged = [
        {c.group for t in bench.machine_tasks(None, split) for c in (*t.train, *t.test)}
        for split in ("test", "valid")
    ]
    assert not judged[0] & judged[1]


def test_tasks_of_the_real_corpora(bench):
    tasks = bench.esc10_tasks(real_data("esc10").parent, "test")
    assert len(tasks) == 50
    for task in tasks:
        assert (len(task.train), len(task.test), int(task.odd.sum())) == (32, 80, 72)
        assert not {c.group for c in task.train} & set(task.groups)
    assert len(bench.esc10_tasks(real_data("esc10").parent, "valid")) == 20
    for split, trained in (("test", 270), ("valid", 240)):
        tasks = bench.fsdd_tasks(real_data("fsdd").parent, split)
        assert len(tasks) == 10
        for task in tasks:
            assert (len(task.train), len(task.test), int(task.odd.sum())) == (trained, 300, 270)
            assert not {c.name for c in task.train} & {c.name for c in task.test}


def test_peers_tell_tones_from_noise(bench, peers, monkeypatch):
    """Every peer ranks noise above unheard tones, the same with features remembered or not."""
    from benchmarks import anomaly_peers

    monkeypatch.setattr(anomaly_peers, "EPOCHS", 20)
    rng = np.random.default_rng(0)

    def clip(tone):
        wave = 0.02 * rng.standard_normal(RATE // 2)
        if tone:
            pitch = rng.uniform(400, 450)
            wave = wave + 0.3 * np.sin(2 * np.pi * pitch * np.arange(RATE // 2) / RATE)
        return wave.astype(np.float32), RATE

    train, test = [clip(True) for _ in range(24)], [clip(i < 4) for i in range(8)]
    odd, features = np.arange(8) >= 4, bench.Features.remembered()
    for name, make in peers.items():
        score = make(features, 0).fit(train).score(test)
        assert score.shape == (8,), name
        assert roc_auc_score(odd, score) == 1.0, name
        again = make(bench.Features(), 0).fit(train).score(test)
        assert np.allclose(score, again, rtol=1e-6), name
    assert features.acoustic(train[0]).shape == (74,)
    assert features.stacked_frames(train[0]).shape[1] == 640


def test_the_74_features_are_pyod_s(bench, peers):
    """Our kNN on them scores as PyOD's `EmbeddingOD.for_audio` does."""
    from pyod.models.embedding import EmbeddingOD

    rng = np.random.default_rng(0)
    clips = [(rng.standard_normal(8000).astype(np.float32), RATE) for _ in range(14)]
    theirs = EmbeddingOD.for_audio().fit(clips[:10]).decision_function(clips[10:])
    ours = peers["74 features + kNN (PyOD)"](bench.Features(), 0).fit(clips[:10])
    assert np.allclose(ours.score(clips[10:]), theirs, rtol=1e-5)


def test_one_measurement_says_what_it_took(bench, peers):
    task = bench.machine_tasks(None, "valid")[0]
    small = bench.Task("fan", 0, task.train[:8], task.test[:4], task.odd[:4], task.groups[:4])
    found = bench.measure(small, "log-mel statistics + kNN")
    assert found["train"] == 8
    assert found["fit_s"] > 0
    assert found["memory_mib"] >= found["memory_added_mib"] >= 0
