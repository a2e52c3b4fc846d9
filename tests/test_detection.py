import numpy as np
import pytest
import torch
from conftest import small_model

from sance_audio import EnergyDetector, audio
from sance_audio.weights import WeightsError, load_weights, save_weights


def normals(n: int, seed: int = 0) -> list[torch.Tensor]:
    """Clips that the small model draws itself."""
    return list(small_model().generate(n, torch.Generator().manual_seed(seed)))


def odd(n: int) -> list[torch.Tensor]:
    t = torch.arange(960) / 4000
    return [torch.sin(2 * torch.pi * (300 + 40 * i) * t) for i in range(n)]


@pytest.fixture(scope="module")
def detector() -> EnergyDetector:
    return EnergyDetector(small_model(), alpha=0.1).fit(normals(100))


def test_signs_are_scikit_learn_s(detector):
    clips = normals(20, 1) + odd(10)
    score = detector.anomaly_score(clips)
    np.testing.assert_array_equal(detector.score_samples(clips), -score)
    decision = detector.decision_function(clips)
    np.testing.assert_allclose(decision, -score - detector.offset_)
    np.testing.assert_array_equal(detector.predict(clips), np.where(decision < 0, -1, 1))
    assert score[20:].mean() > score[:20].mean()


def test_p_values_are_conformal(detector):
    n = len(detector.calibration_)
    assert n == 40
    p = detector.p_value(normals(20, 1) + odd(10))
    assert ((p >= 1 / (n + 1)) & (p <= 1)).all()
    np.testing.assert_allclose((p * (n + 1)) % 1, 0, atol=1e-9)
    assert (p[20:] <= 0.1).mean() >= 0.9
    # predict flags exactly what has p <= alpha
    clips = normals(60, 2)
    flagged = detector.predict(clips) == -1
    np.testing.assert_array_equal(flagged, detector.p_value(clips) <= detector.alpha)


def test_false_alarms_hold_at_alpha():
    """Exchangeable normals are flagged at most alpha of the time: 4 standard errors over 20
    splits.
    """
    clips, rates = normals(160, 3), []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(160)
        fit, held_out = order[:100], order[100:]
        d = EnergyDetector(small_model(), alpha=0.1, seed=seed).fit([clips[i] for i in fit])
        rates.append((d.predict([clips[i] for i in held_out]) == -1).mean())
    assert np.mean(rates) < 0.1 + 4 * np.std(rates) / np.sqrt(20)


def test_calibration_clips_touch_no_fit():
    """Moving calibration clips far away changes their scores, not how others are scored."""
    clips = normals(100)
    order = np.random.default_rng(0).permutation(100)
    changed = [
        torch.ones(960) * (-1) ** torch.arange(960) if i in order[:40] else c
        for i, c in enumerate(clips)
    ]
    a, b = (EnergyDetector(small_model(), alpha=0.1).fit(c) for c in (clips, changed))
    np.testing.assert_array_equal(a.precision_, b.precision_)
    assert b.calibration_.mean() > a.calibration_.mean()


def test_kinds_of_clips(detector, tmp_path):
    clip = normals(1)[0]
    audio.write(tmp_path / "a.wav", clip, 4000)
    kinds = [tmp_path / "a.wav", str(tmp_path / "a.wav"), clip, clip.numpy(), (clip.numpy(), 4000)]
    scores = detector.anomaly_score(kinds)
    np.testing.assert_allclose(scores, scores[0], rtol=0.05)
    assert scores[2] == scores[3] == scores[4]


def test_saved_and_loaded_it_is_the_same_detector(detector, tmp_path):
    detector.model.save_pretrained(tmp_path)
    detector.save_pretrained(tmp_path)
    again = EnergyDetector.from_pretrained(tmp_path)
    clips = normals(5, 4) + odd(3)
    for key, value in detector.assess(clips).items():
        np.testing.assert_array_equal(again.assess(clips)[key], value)
    np.testing.assert_array_equal(again.predict(clips), detector.predict(clips))
    assert again.alpha == detector.alpha


def test_a_detector_belongs_to_its_model(detector, tmp_path):
    """Any other weight, or setting, of the model beside it is refused."""
    detector.save_pretrained(tmp_path)
    heavier = small_model()
    with torch.no_grad():
        heavier.density.network.head.weight.view(-1)[0] += 1e-6
    renamed = small_model()
    renamed.labels = ("a", "b", "d")
    for other in (small_model(trained=False), heavier, renamed):
        other.save_pretrained(tmp_path)
        with pytest.raises(WeightsError, match="calibrated with another model"):
            EnergyDetector.from_pretrained(tmp_path)
    small_model().save_pretrained(tmp_path)
    EnergyDetector.from_pretrained(tmp_path)


def test_a_model_that_changed_after_the_fit_is_refused(tmp_path):
    model = small_model()
    d = EnergyDetector(model, alpha=0.1).fit(normals(60))
    with torch.no_grad():
        model.density.log_z += 1
    model.save_pretrained(tmp_path)
    d.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="calibrated with another model"):
        EnergyDetector.from_pretrained(tmp_path)


def test_a_detector_that_names_no_model_is_refused(detector, tmp_path):
    detector.model.save_pretrained(tmp_path)
    path = detector.save_pretrained(tmp_path)
    settings, tensors = load_weights(path, "detector")
    kept = {k: settings[k] for k in ("detector", "offset")}
    save_weights(path, "detector", kept, tensors)
    with pytest.raises(WeightsError, match="does not say which model"):
        EnergyDetector.from_pretrained(tmp_path)


def test_the_bare_energy_and_the_reference_alone():
    clips = normals(60)
    bare = EnergyDetector(small_model(), score="energy", alpha=0.1).fit(clips)
    np.testing.assert_allclose(bare.anomaly_score(clips[:4]), bare.assess(clips[:4])["energy"])
    alone = EnergyDetector(small_model(), learnt=False, alpha=0.1).fit(clips)
    assert (
        alone.precision_.shape[0]
        < EnergyDetector(small_model(), alpha=0.1).fit(clips).precision_.shape[0]
    )


def test_labels_passed_by_habit_are_ignored():
    clips = normals(60)
    a = EnergyDetector(small_model(), alpha=0.1).fit(clips, np.ones(60))
    b = EnergyDetector(small_model(), alpha=0.1).fit(clips)
    np.testing.assert_array_equal(a.calibration_, b.calibration_)


def test_identical_normals_still_give_finite_scores():
    d = EnergyDetector(small_model(), alpha=0.1).fit([normals(1)[0]] * 40)
    assert np.isfinite(d.anomaly_score(odd(2))).all()


def test_mistakes_are_named(detector, tmp_path):
    model, clips = small_model(), normals(20)
    with pytest.raises(ValueError, match="20 normal clips leave 8 for calibration"):
        EnergyDetector(model).fit(clips)
    with pytest.raises(ValueError, match="no clips were given"):
        EnergyDetector(model).fit([])
    with pytest.raises(ValueError, match="score must be"):
        EnergyDetector(model, score="best").fit(clips)
    with pytest.raises(ValueError, match="alpha is a false-alarm rate"):
        EnergyDetector(model, alpha=5).fit(clips)
    with pytest.raises(ValueError, match="needs a trained model"):
        EnergyDetector().fit(clips)
    with pytest.raises(ValueError, match="has not been fitted"):
        EnergyDetector(model).predict(clips)
    with pytest.raises(ValueError, match=r"\(N,\)"):
        detector.predict([np.zeros((2, 100))])
    with pytest.raises(ValueError, match="NaN"):
        detector.predict([np.full(100, np.nan)])
    with pytest.raises(WeightsError, match=r"no detector\.safetensors"):
        EnergyDetector.from_pretrained(tmp_path)
