"""Distances between sets of clips, against plain formulas written out here."""

import numpy as np
import pytest
import scipy.linalg

from sance_audio import evaluation, metrics


def features(seed: int, n: int = 200, d: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + seed


def plain_fid(a, b):
    s, r = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ r).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + r - 2 * root)


def plain_kid(a, b):
    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    within = [
        np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])
        for z in (a, b)
    ]
    return sum(within) - 2 * np.mean([[kernel(x, y) for y in b] for x in a])


@pytest.mark.parametrize("distance", [metrics.frechet_distance, evaluation._fid])
def test_fid_is_the_plain_formula(distance):
    a, b = features(0), features(1)
    assert distance(a, b) == pytest.approx(plain_fid(a, b), rel=1e-6)
    assert distance(b, a) == pytest.approx(plain_fid(a, b), rel=1e-6)
    assert distance(a, a) == pytest.approx(0, abs=1e-6)


def test_fid_with_fewer_clips_than_dimensions():
    assert np.isfinite(metrics.frechet_distance(features(0, n=4), features(1)))


@pytest.mark.parametrize(
    "distance", [lambda a, b: metrics.kernel_distances(a, b, resamples=2)[0], evaluation._kid]
)
def test_kid_is_the_plain_formula(distance):
    a, b = features(0, 40), features(1, 40)
    assert distance(a, b) == pytest.approx(plain_kid(a, b), rel=1e-6)


def test_kid_of_sets_of_unequal_size():
    a, b = features(0, 30), features(1, 50)
    assert metrics.kernel_distances(a, b)[0] == pytest.approx(plain_kid(a, b), rel=1e-6)


@pytest.mark.parametrize("score", [metrics.inception_score, evaluation._inception])
def test_inception_score_is_the_plain_formula(score):
    p = np.random.default_rng(0).dirichlet(np.full(10, 0.3), 300)
    marginal = p.mean(0)
    plain = np.exp(np.mean([(row * np.log(row / marginal)).sum() for row in p]))
    assert score(p) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("score", [metrics.inception_score, evaluation._inception])
def test_inception_score_averages_over_clips_not_classes(score):
    """90 % of the clips in one class of ten: 1.6, where the wrong axis says 80."""
    seen = np.zeros(1000, dtype=int)
    seen[900:] = 1 + np.arange(100) % 9
    p = np.bincount(seen) / 1000
    expected = np.exp(-(p * np.log(p)).sum())
    assert score(np.eye(10)[seen]) == pytest.approx(expected, rel=1e-6)
    assert 1.6 < expected < 1.8


def test_precision_recall_density_coverage_are_the_plain_formulas():
    real, fake, k = features(0, 60), features(0, 80)[::-1] + 0.4, 5
    distance = {
        name: [[np.linalg.norm(x - y) for y in b] for x in a]
        for name, (a, b) in {"rr": (real, real), "ff": (fake, fake), "rf": (real, fake)}.items()
    }
    radius = [sorted(row)[k] for row in distance["rr"]]
    reach = [sorted(row)[k] for row in distance["ff"]]
    between = distance["rf"]
    rows, columns = range(len(real)), range(len(fake))
    inside = [[between[i][j] <= radius[i] for j in columns] for i in rows]
    expected = {
        "precision": np.mean([any(inside[i][j] for i in rows) for j in columns]),
        "recall": np.mean([any(between[i][j] <= reach[j] for j in columns) for i in rows]),
        "density": np.mean([sum(inside[i][j] for i in rows) / k for j in columns]),
        "coverage": np.mean([min(between[i]) <= radius[i] for i in rows]),
    }
    found = metrics.manifold(real, fake, k)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < found["precision"] < 1 or 0 < found["recall"] < 1


def test_a_missing_class_lowers_recall_and_coverage_not_precision():
    rng = np.random.default_rng(0)
    centres = 8 * rng.normal(size=(5, 16))

    def clips(classes, n=200):
        return centres[classes[np.arange(n) % len(classes)]] + rng.normal(size=(n, 16))

    every = np.arange(5)
    real = clips(every)
    whole, lacking = (metrics.manifold(real, clips(c)) for c in (every, every[:4]))
    assert lacking["recall"] < whole["recall"] - 0.15
    assert lacking["coverage"] < whole["coverage"] - 0.15
    assert lacking["precision"] > whole["precision"] - 0.1


def test_too_few_clips_are_an_error():
    with pytest.raises(ValueError, match="more than 5 clips"):
        metrics.manifold(features(0, 5), features(1, 9))
    with pytest.raises(ValueError, match="at least two"):
        metrics.kernel_distances(features(0, 1), features(1, 9))


def coverage_of(interval, truth: float, sets: int) -> float:
    inside = [low < truth < high for low, high in (interval(seed) for seed in range(sets))]
    return float(np.mean(inside))


def test_the_bootstrap_interval_of_kid_covers_its_truth():
    """Two equal distributions: KID is 0. 150 pairs of sets, 95 % intervals: 88 to 100 %."""

    def interval(seed):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(2, 60, 4))
        found = metrics.percentiles(metrics.kernel_distances(a, b, resamples=200, seed=seed))
        return found["low"], found["high"]

    assert coverage_of(interval, 0.0, 150) >= 0.88


def test_the_paired_interval_of_kid_finds_a_shift():
    real, a = np.random.default_rng(0).normal(size=(2, 300, 8))
    b = a + 0.25
    kid, kid_0 = (metrics.kernel_distances(z, real, fixed=True) for z in (a, b))
    found = metrics.percentiles(kid - kid_0)
    assert found["high"] < 0, "the unshifted set is closer, clip by clip"
    same = metrics.percentiles(kid - kid)
    assert same == {"value": 0, "low": 0, "high": 0}


def test_the_bootstrap_of_kid_is_not_biased_by_clips_drawn_twice():
    """Were a clip a pair with itself, replicates would lie above the value by k(x, x) / n of
    both sets: by more than 1.5 of their standard deviations.
    """
    a, b = np.random.default_rng(0).normal(size=(2, 200, 6))
    values = metrics.kernel_distances(a, b, resamples=2000)
    spread = values[1:].std()
    assert abs(values[1:].mean() - values[0]) < 0.5 * spread
    itself = ((a * a).sum(1) / a.shape[1] + 1) ** 3
    assert 2 * itself.mean() / len(a) > 1.5 * spread, "the planted bias would be seen"


def test_paired_interval_covers_a_known_difference():
    """Over 200 data sets the 95 % interval of a mean covers its truth in 86 to 100 % of them."""

    def interval(seed):
        d = np.random.default_rng(seed).normal(0.3, 1.0, 60)
        found = metrics.paired_interval(lambda i: float(d[i].mean()), 60, resamples=200)
        assert found["low"] <= found["value"] <= found["high"]
        return found["low"], found["high"]

    assert coverage_of(interval, 0.3, 200) >= 0.86


def test_nearest_over_blocks():
    x, others = features(0, 20), features(0, 90)[20:]
    distance, where = metrics.nearest(x, (others[i : i + 16] for i in range(0, 70, 16)))
    every = np.linalg.norm(x[:, None] - others[None], axis=2)
    np.testing.assert_array_equal(where, every.argmin(1))
    np.testing.assert_allclose(distance, every.min(1), rtol=1e-12)
    np.testing.assert_allclose(metrics.nearest(others, [others])[0], 0, atol=1e-12)


def test_windows_of_one_recording_are_no_pairs_and_are_drawn_together():
    """Twenty recordings of ten windows that hardly differ: KID against another set of the same
    kind is 0 within its interval, which treating windows as clips would miss.
    """

    def recordings(seed):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(20, 6)).repeat(10, 0)
        return centres + 0.05 * rng.normal(size=centres.shape), np.arange(20).repeat(10)

    inside = {"known": 0, "not known": 0}
    for seed in range(60):
        (a, of_a), (b, of_b) = recordings(seed), recordings(1000 + seed)
        for name, groups in (("known", (of_a, of_b)), ("not known", (None, None))):
            values = metrics.kernel_distances(a, b, resamples=200, groups=groups)
            found = metrics.percentiles(values)
            inside[name] += found["low"] < 0 < found["high"]
    assert inside["known"] >= 0.85 * 60
    assert inside["not known"] < 0.5 * 60, "the mistake would be seen"


def test_neighbourhoods_leave_out_windows_of_the_same_recording():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 4)).repeat(6, 0)
    real, owner = centres + 1e-3 * rng.normal(size=centres.shape), np.arange(10).repeat(6)
    fake = rng.normal(size=(60, 4))
    narrow = metrics.manifold(real, fake, 5)["precision"]
    wide = metrics.manifold(real, fake, 5, owner)["precision"]
    assert narrow < 0.1 < wide
