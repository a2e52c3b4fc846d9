import numpy as np
import pytest
import scipy.linalg
import torch

from sance_audio import evaluation


def features(seed: int, n: int = 200, d: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + seed


def test_frechet_distance_is_the_textbook_formula():
    a, b = features(0), features(1)
    s, r = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ r).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + r - 2 * root)
    assert evaluation.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert evaluation.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert evaluation.frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_with_fewer_clips_than_dimensions():
    few = features(0, n=4)
    assert np.isfinite(evaluation.frechet_distance(few, features(1)))


def test_inception_score_averages_over_clips_not_classes():
    """90 % of the clips in one class of ten: 1.6, where the wrong axis says 80."""
    seen = np.zeros(1000, dtype=int)
    seen[900:] = 1 + np.arange(100) % 9
    score = evaluation.inception_score(np.eye(10)[seen])
    p = np.bincount(seen) / 1000
    assert score == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert 1.6 < score < 1.8


def test_paired_interval_covers_a_known_difference():
    """Over 200 data sets the 95 % interval of a mean covers its truth in 86 to 100 % of them."""
    covered = 0
    for seed in range(200):
        d = np.random.default_rng(seed).normal(0.3, 1.0, 60)
        interval = evaluation.paired_interval(lambda i, d=d: float(d[i].mean()), 60, resamples=200)
        covered += interval["low"] < 0.3 < interval["high"]
        assert interval["low"] <= interval["difference"] <= interval["high"]
    assert covered >= 0.86 * 200


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
    phi, p = a.describe(test_x)
    assert phi.shape == (60, 64)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert (p.argmax(1) == test_y.numpy()).mean() > 0.95
    np.testing.assert_array_equal(phi, b.describe(test_x)[0])


def test_a_row_counts_what_was_seen():
    p = np.eye(3)[[0, 0, 1, 1]]
    row = evaluation.row(
        features(0, 4), p, np.array([0, 0, 1, 2]), features(1), ("a", "b", "c"), n_equal=3
    )
    assert row["accuracy"] == 0.75
    assert row["seen_as"] == {"a": 2, "b": 2, "c": 0}
    assert row["clips"] == 4
    assert "fid_at_3" in row


def test_knn_scores_are_higher_for_what_is_far():
    x, _ = patterns(60, 0)
    score = evaluation.knn_scores(x[:40], torch.cat([x[40:], x[40:] + 3]))
    assert score[20:].min() > score[:20].max()


def test_copies_of_training_clips_are_seen():
    g = torch.Generator().manual_seed(0)
    train, test = torch.randn(2, 80, 1, 8, 8, generator=g)
    fresh = evaluation.neighbour_ratio(torch.randn(80, 1, 8, 8, generator=g), train, test)
    copies = evaluation.neighbour_ratio(train + 0.01, train, test)
    assert 0.8 < fresh["at_median"] < 1.25
    assert copies["at_median"] < 0.1
    assert copies["at_5_percent"] < 0.1
