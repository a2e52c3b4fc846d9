import numpy as np
import pytest
import torch

from sance_audio import evaluation


def patterns(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = 0.5 * torch.randn(n, 1, 32, 32, generator=g)
    for i in range(n):
        x[i, 0, 8 * int(y[i]) : 8 * int(y[i]) + 10] += 1.5
    return x, y


def test_the_classifier_learns_and_is_reproducible():
    x, y = patterns(120, 0)
    a = evaluation.train_classifier(x, y, 3, epochs=4)
    b = evaluation.train_classifier(x, y, 3, epochs=4)
    test_x, test_y = patterns(60, 1)
    heard = evaluation.describe(a, test_x, test_y)
    assert heard.phi.shape == (60, 64)
    np.testing.assert_allclose(heard.probabilities.sum(1), 1, rtol=1e-9)
    assert heard.right.mean() > 0.95
    np.testing.assert_array_equal(heard.phi, evaluation.describe(b, test_x).phi)


def described(n: int, classes, meant=None, seed: int = 0) -> evaluation.Described:
    phi = np.random.default_rng(seed).normal(size=(n, 4))
    return evaluation.Described(phi, np.eye(3)[classes], meant)


def test_a_row_counts_what_was_seen():
    classes = np.array([0, 0, 1, 1] * 5)
    ours = described(20, classes, np.array([0, 0, 1, 2] * 5))
    real = described(60, np.arange(60) % 3, seed=1)
    row = evaluation.row(ours, real, ("a", "b", "c"), n_equal=12)
    assert row["accuracy"] == 0.75
    assert row["seen_as"] == {"a": 10, "b": 10, "c": 0}
    assert row["clips"] == 20
    assert row["inception_score"] == pytest.approx(2.0)
    assert row["kid"]["low"] < row["kid"]["value"] < row["kid"]["high"]
    assert row["fid"] != row["fid_all"]
    assert 0 <= row["recall"] <= 1


def test_a_row_of_unlabelled_clips_claims_no_accuracy():
    row = evaluation.row(
        described(4, np.zeros(4, int)), described(9, np.zeros(9, int)), ("a", "b", "c"), 4
    )
    assert row["accuracy"] is None
    assert row["inception_score"] is None
    assert row["recall"] is None, "four clips have no fifth neighbour"
    assert np.isfinite(row["fid"])


def test_the_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    evaluation.row(
        described(9, np.zeros(9, int)), described(9, np.zeros(9, int)), ("a", "b", "c"), 9
    )
    assert torch.equal(before, torch.get_rng_state())


def test_knn_scores_are_higher_for_what_is_far():
    x, _ = patterns(60, 0)
    score = evaluation.knn_scores(x[:40], torch.cat([x[40:], x[40:] + 3]))
    assert score[20:].min() > score[:20].max()
