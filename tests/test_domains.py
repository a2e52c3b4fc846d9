"""A detector of recordings from two domains, of which one is heard a few times only."""

import numpy as np
import pytest

from sance_audio.detection import EnergyDetector
from sance_audio.detection.domains import DomainDetector, DomainScorer, fit_pair, radius_of
from sance_audio.detection.typicality import Fold
from sance_audio.ranking import auc

RATE = 8000
PITCH = {"source": 500.0, "target": 1300.0}


def hum(domain: str, seed: int, odd: bool = False) -> np.ndarray:
    """Half a second of a machine: a tone, its harmonics and noise; odd ones also whistle."""
    rng = np.random.default_rng([seed, domain == "target", odd])
    t = np.arange(RATE // 2) / RATE
    f = PITCH[domain] * rng.uniform(0.97, 1.03)
    wave = sum(np.sin(2 * np.pi * k * f * t + rng.uniform(0, 6)) / k for k in (1, 2))
    noise = 0.3 if domain == "source" else 0.6
    wave = wave + noise * rng.standard_normal(len(t))
    if odd:
        wave = wave + 0.25 * np.sin(2 * np.pi * rng.uniform(2800, 3400) * t)
    return (0.1 * wave).astype(np.float32)


TRAIN = [("source", i) for i in range(60)] + [("target", i) for i in range(10)]
CLIPS = [hum(*about) for about in TRAIN]
DOMAINS = [domain for domain, _ in TRAIN]
SETTINGS = {"preset": "smoke", "calibration": 0.0, "sample_rate": RATE}


@pytest.fixture(scope="module")
def fitted():
    plain = EnergyDetector(**SETTINGS).fit(CLIPS)
    return plain, DomainDetector(**SETTINGS).fit(CLIPS, domains=DOMAINS)


def scores(detector, domain, first=1000, odd=False, count=40):
    return detector.anomaly_score([hum(domain, first + i, odd) for i in range(count)])


def auc_of(detector, normal):
    """Of a domain's normals against odd clips of both."""
    s, a, b = scores(detector, normal), *(scores(detector, d, odd=True) for d in PITCH)
    odd = np.arange(len(s) + len(a) + len(b)) >= len(s)
    return auc(odd, np.concatenate([s, a, b]))


def test_the_few_are_no_longer_odd(fitted):
    plain, both = fitted
    assert auc_of(both, "target") > auc_of(plain, "target") + 0.1
    assert auc_of(both, "source") > 0.8
    apart = [
        (scores(d, "target").mean() - scores(d, "source").mean()) / scores(d, "source").std()
        for d in fitted
    ]
    assert apart[1] < apart[0] / 2


def test_the_few_do_not_see_themselves(fitted):
    """Fitted target normals look as odd as new ones, within three standard errors of ten."""
    both = fitted[1]
    own = both.normal_scores_[np.array(DOMAINS) == "target"]
    new = scores(both, "target", count=100)
    assert abs(own.mean() - new.mean()) < 3 * new.std() / len(own) ** 0.5


def test_without_domains_it_is_the_plain_detector(fitted):
    same = DomainDetector(**SETTINGS).fit(CLIPS)
    assert np.array_equal(scores(same, "source"), scores(fitted[0], "source"))


def test_a_score_does_not_depend_on_the_batch(fitted):
    both, clips = fitted[1], [hum("target", 2000 + i) for i in range(5)]
    one_by_one = [both.anomaly_score([clip])[0] for clip in clips]
    assert np.array_equal(both.anomaly_score(clips), one_by_one)


def test_saved_it_is_an_energy_detector_with_the_same_scores(fitted, tmp_path):
    both = fitted[1]
    both.save_pretrained(tmp_path)
    again = EnergyDetector.from_pretrained(tmp_path)
    assert isinstance(again._scorer, DomainScorer)
    assert np.array_equal(scores(again, "target"), scores(both, "target"))
    assert again.gamma_threshold() == both.gamma_threshold()


def test_the_score_is_the_smaller_of_the_domains(fitted):
    both = fitted[1]
    rows = [r for some in both._describer.rows(both.windows(CLIPS[:3])) for r in some]
    parts = both._scorer.source(rows), both._scorer.target(rows)
    assert np.array_equal(both._scorer(rows), np.minimum(*parts))


def test_statistics_of_the_few_are_drawn_to_those_of_the_many():
    """With PRIOR = 2: 10 of 12 parts of the target's mean and variance are its own."""
    rng = np.random.default_rng(0)
    v = rng.normal(size=(90, 4)) + np.repeat([[0.0], [5.0]], [80, 10], 0)
    target, folds = np.arange(90) >= 80, np.arange(90) % 8
    pair, own = fit_pair(v, folds, target)
    assert own[~target, 0].mean() == pytest.approx(0, abs=1e-9)
    terms = [
        np.concatenate([f.terms(v[folds == j]) for j, f in zip(range(8), p.folds, strict=True)])
        for p in pair
    ]
    order = np.concatenate([np.flatnonzero(folds == j) for j in range(8)])
    many, few = terms[0][~target[order]], terms[1][target[order]]
    assert pair[0].centre == pytest.approx(many.mean(0))
    assert pair[1].centre == pytest.approx((10 * few.mean(0) + 2 * many.mean(0)) / 12)
    assert pair[1].spread ** 2 == pytest.approx((10 * few.var(0) + 2 * many.var(0)) / 12, rel=1e-6)


def test_a_setting_that_is_heard_less_often_is_not_odd_for_it():
    """Distances count relative to those of the normals themselves: by hand, in one dimension."""
    normals = np.array([[0.0], [1.0], [2.0], [20.0], [24.0]])
    # Nearest others, five or all there are: of 0 the 1 2 20 24, of 20 the 24 18 19 20.
    assert radius_of(normals)[[0, 3]] == pytest.approx([47 / 4, (4 + 18 + 19 + 20) / 4])
    fold = Fold(np.zeros(1), np.ones(1), np.eye(1), normals, np.array([1.0, 1.0, 1.0, 4.0, 4.0]))
    k = fold.terms(np.array([[4.0], [28.0]]))[:, 1]
    assert k == pytest.approx(
        np.log([2 / 1, 4 / 4]), abs=1e-8
    )  # 2 from a normal, and 4 from another
    assert radius_of(np.zeros((4, 2))) == pytest.approx([1e-3] * 4)  # copies


@pytest.mark.parametrize("few", [True, False])
def test_one_of_a_domain_is_compared_with_all(few):
    v = np.random.default_rng(0).normal(size=(20, 3))
    pair, own = fit_pair(v, np.arange(20) % 4, (np.arange(20) == 0) == few)
    assert pair[0] is pair[1]
    assert np.array_equal(own[:, 0], own[:, 1])


def test_either_domain_may_be_the_small_one():
    """Halves of the normals, which the networks' views are of, hold one or two of it."""
    clips, domains = CLIPS[57:], DOMAINS[57:]
    detector = DomainDetector(**SETTINGS).fit(clips, domains=domains)
    assert np.isfinite(detector.anomaly_score(clips)).all()


def test_mistakes_are_said():
    detector = DomainDetector(**SETTINGS)
    with pytest.raises(ValueError, match="domains are source and target, found 'near'"):
        detector.fit(CLIPS, domains=["near"] * len(CLIPS))
    with pytest.raises(ValueError, match="2 recordings of the target domain are too few"):
        detector.fit(CLIPS[:62], domains=["target"] * 2 + ["source"] * 60)
    with pytest.raises(ValueError, match="62 clips, found 70"):
        detector.fit(CLIPS[:62], domains=DOMAINS)
    with pytest.raises(ValueError, match="score='energy' knows no domains"):
        DomainDetector(score="energy", **SETTINGS).fit(CLIPS, domains=DOMAINS)
