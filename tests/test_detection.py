import numpy as np
import pytest
import torch
from conftest import small_model

from sance_audio import EnergyDetector, audio
from sance_audio.detection import conformal, perturbations
from sance_audio.detection.splits import held_out
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
    n = detector.calibration_.recordings
    assert n == len(detector.calibration_.scores) == 40
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
        d = EnergyDetector(small_model(), alpha=0.1, seed=seed, preset="smoke")
        d.fit([clips[i] for i in fit])
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
    np.testing.assert_array_equal(a.normal_scores_, b.normal_scores_)
    probe = normals(5, 9) + odd(3)
    np.testing.assert_array_equal(a.anomaly_score(probe), b.anomaly_score(probe))
    assert b.calibration_.scores.mean() > a.calibration_.scores.mean()


def test_kinds_of_clips(detector, tmp_path):
    clip = normals(1)[0]
    audio.write(tmp_path / "a.wav", clip, 4000)
    kinds = [tmp_path / "a.wav", str(tmp_path / "a.wav"), clip, clip.numpy(), (clip.numpy(), 4000)]
    scores = detector.anomaly_score(kinds)
    np.testing.assert_allclose(scores, scores[0], atol=0.3)  # a file has 16 bits
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


def test_a_detector_of_another_version_is_refused(detector, tmp_path):
    detector.model.save_pretrained(tmp_path)
    path = detector.save_pretrained(tmp_path)
    settings, tensors = load_weights(path, "detector")
    kept = {k: settings[k] for k in ("detector", "offset", "model", "version")}
    for version, found in ((None, "version 1"), (4, "version 4")):
        save_weights(path, "detector", kept | {"version": version or 1}, tensors)
        with pytest.raises(WeightsError, match=f"a detector of {found}, this one reads 3: fit it"):
            EnergyDetector.from_pretrained(tmp_path)


def test_the_bare_energy_and_the_reference_alone():
    clips = normals(60)
    bare = EnergyDetector(small_model(), score="energy", alpha=0.1).fit(clips)
    np.testing.assert_allclose(bare.anomaly_score(clips[:4]), bare.assess(clips[:4])["energy"])
    energies = small_model().energy(torch.stack(clips[:4]), 4000)
    np.testing.assert_allclose(bare.anomaly_score(clips[:4]), energies, rtol=1e-5)
    alone = EnergyDetector(small_model(), learnt=False, alpha=0.1).fit(clips)
    learnt = EnergyDetector(small_model(), alpha=0.1, preset="smoke").fit(clips)
    assert not alone._scorer.networks
    assert len(learnt._scorer.networks) == 2
    model = small_model()
    x = model.log_mels(torch.cat([model.windows(c) for c in clips[:4]]))
    reference = model.energy_of(x, reference_only=True)
    np.testing.assert_allclose(alone.assess(clips[:4])["energy"], reference, rtol=1e-5)


def test_labels_passed_by_habit_are_ignored():
    clips = normals(60)
    a = EnergyDetector(small_model(), alpha=0.1).fit(clips, np.ones(60))
    b = EnergyDetector(small_model(), alpha=0.1).fit(clips)
    np.testing.assert_array_equal(a.calibration_.scores, b.calibration_.scores)


def test_identical_normals_are_an_error():
    for same in (normals(1)[0], torch.zeros(960)):
        with pytest.raises(ValueError, match="normal clips are all alike"):
            EnergyDetector(small_model(), alpha=0.1).fit([same] * 40)


def hums(n: int, seed: int = 0, seconds: float = 0.6, rate: int = 8000) -> list[np.ndarray]:
    """Machines that hum at about 200 Hz, each in its own way."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    out = []
    for _ in range(n):
        pitch, level = 200 * rng.uniform(0.95, 1.05), rng.uniform(0.05, 0.1)
        tones = sum(np.sin(2 * np.pi * k * pitch * t + rng.uniform(0, 6)) / k for k in (1, 2, 3))
        out.append((0.2 * tones + level * rng.standard_normal(len(t))).astype(np.float32))
    return out


def faulty(n: int, seed: int = 1) -> list[np.ndarray]:
    """The same with a squeal."""
    t = np.arange(4800) / 8000
    return [wave + 0.2 * np.sin(2 * np.pi * 2500 * t).astype("f4") for wave in hums(n, seed)]


@pytest.fixture(scope="module")
def alone() -> EnergyDetector:
    """A detector that was given normals only."""
    return EnergyDetector(alpha=0.1, sample_rate=8000).fit(hums(60))


def test_one_call_from_a_folder(alone, tmp_path):
    for i, clip in enumerate(hums(22)):
        audio.write(tmp_path / "normal" / f"{i:02d}.wav", torch.from_numpy(clip), 8000)
    d = EnergyDetector(preset="smoke").fit(tmp_path / "normal")
    assert d.sample_rate_ == 8000
    assert d.calibration_.recordings == 19
    assert (d.predict(tmp_path / "normal") == 1).mean() > 0.5
    again = EnergyDetector(preset="smoke").fit(str(tmp_path / "normal"))
    assert again.threshold() == d.threshold()


def test_normals_alone_are_enough(alone):
    assert (alone.predict(faulty(20)) == -1).all()
    assert (alone.predict(hums(60, 5)) == -1).mean() < 0.35  # 18 of 60 at alpha .1: p < 1e-5
    assert alone.model_ is None
    assert np.isnan(alone.assess(hums(2))["energy"]).all()


def test_saved_without_a_model_it_is_the_same(alone, tmp_path):
    alone.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["detector.safetensors"]
    again = EnergyDetector.from_pretrained(tmp_path)
    clips = hums(4, 3) + faulty(4)
    for name in ("anomaly_score", "p_value"):
        np.testing.assert_array_equal(again.assess(clips)[name], alone.assess(clips)[name])
    assert again.threshold(0.2) == alone.threshold(0.2)
    assert again.gamma_threshold() == alone.gamma_threshold()
    assert again.get_params() == alone.get_params()


def test_a_score_is_that_of_the_clip_alone(alone):
    clips = hums(3, 3) + faulty(2) + [hums(1, 4)[0][:1000]]
    together = alone.anomaly_score(clips)
    for i, clip in enumerate(clips):
        np.testing.assert_allclose(alone.anomaly_score([clip]), together[i], rtol=1e-9)


def test_level_is_no_evidence_and_other_rates_are_resampled(alone):
    clips = hums(8, 3)
    score = alone.anomaly_score(clips)
    np.testing.assert_allclose(alone.anomaly_score([0.01 * c for c in clips]), score, atol=0.05)
    other = [(np.repeat(c, 2), 16_000) for c in clips]
    by_hand = [audio.resample(torch.from_numpy(c), 16_000, 8_000).numpy() for c, _ in other]
    np.testing.assert_allclose(
        alone.anomaly_score(other), alone.anomaly_score(by_hand), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("n", [1, 10, 300, 511])
def test_clips_shorter_than_a_window_have_a_score(alone, n):
    assert np.isfinite(alone.anomaly_score([hums(1)[0][:n]])).all()


def test_the_same_seed_is_the_same_detector():
    a, b, c = (
        EnergyDetector(alpha=0.2, sample_rate=8000, preset="smoke", seed=s).fit(hums(30))
        for s in (0, 0, 1)
    )
    probe = hums(5, 2)
    np.testing.assert_array_equal(a.anomaly_score(probe), b.anomaly_score(probe))
    assert not np.array_equal(a.anomaly_score(probe), c.anomaly_score(probe))


def test_takes_of_one_recording_stay_together():
    """Groups are wholly in the calibration or wholly in the fit, and count once."""
    groups = np.arange(60) // 3
    d = EnergyDetector(alpha=0.2, sample_rate=8000, preset="smoke").fit(hums(60), groups=groups)
    held = held_out(groups, d.alpha, d.calibration, d.seed)
    for g in range(20):
        assert len(set(held[groups == g])) == 1
    assert d.calibration_.recordings == 8
    assert len(d.calibration_.scores) == 24
    p = d.p_value(hums(10, 2))
    assert ((p >= 1 / 9) & (p <= 1)).all()


def test_weighted_p_values_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    groups, scores = rng.integers(0, 6, 40), rng.standard_normal(40).round(1)
    known = conformal.Calibration.of(scores, groups)
    for s in (-9.0, *scores, 0.05, 9.0):
        above = [np.mean(scores[groups == g] >= s) for g in np.unique(groups)]
        expected = (1 + sum(above)) / (len(above) + 1)
        assert known.p_value(np.array([s]))[0] == pytest.approx(expected)
    for alpha in (0.2, 0.3, 0.5):
        t = known.threshold(alpha)
        probe = np.concatenate([scores, scores + 0.05])
        np.testing.assert_array_equal(probe > t, known.p_value(probe) <= alpha + 1e-9)


@pytest.mark.parametrize("size", [1, 4])
def test_grouped_p_values_hold_where_takes_of_a_recording_are_alike(size):
    """5,000 draws of 19 recordings whose takes are all but the same; new recordings are flagged at
    alpha .05 no more often than 4 standard errors above. Counted as clips they would be.
    """
    rng, flagged, naive = np.random.default_rng(0), 0, 0
    for _ in range(5000):
        means = rng.standard_normal(20)
        scores = np.repeat(means[:19], size) + 0.01 * rng.standard_normal(19 * size)
        new = means[19:] + 0.01 * rng.standard_normal(1)
        flagged += (
            conformal.Calibration.of(scores, np.arange(19 * size) // size).p_value(new)[0] <= 0.05
        )
        naive += conformal.Calibration.of(scores, np.arange(19 * size)).p_value(new)[0] <= 0.05
    assert flagged / 5000 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 5000)
    assert naive >= flagged


def test_without_calibration_there_are_scores_and_a_gamma_threshold():
    d = EnergyDetector(sample_rate=8000, preset="smoke", calibration=0).fit(hums(12))
    assert d.calibration_ is None
    assert len(d.normal_scores_) == 12
    assert d.offset_ == -d.gamma_threshold(0.9)
    assert (d.predict(faulty(5)) == -1).all()
    assert np.isnan(d.assess(hums(2))["p_value"]).all()
    for ask in (lambda: d.p_value(hums(2)), d.threshold):
        with pytest.raises(ValueError, match="calibration=0"):
            ask()


def test_the_gamma_threshold_is_a_quantile():
    x = np.random.default_rng(0).gamma(3.0, 2.0, 20_000) - 5
    for q in (0.5, 0.9, 0.99):
        assert np.mean(x <= conformal.gamma_threshold(x, q)) == pytest.approx(q, abs=0.01)


def test_long_recordings_are_windows(alone):
    """Each as if it were a recording of its own, with a peak of its own."""
    long = np.concatenate(hums(50, 7))  # 30 s
    squeal = long.copy()
    squeal[8000:16000] += 0.3 * np.sin(2 * np.pi * 2500 * np.arange(8000) / 8000).astype("f4")
    mean, largest = (
        EnergyDetector(alpha=0.1, sample_rate=8000, aggregate=how, window=10.0).fit(hums(60))
        for how in ("mean", "max")
    )
    parts = [long[s : s + 80_000] for s in (0, 40_000, 80_000, 120_000, 160_000)]
    own = mean.anomaly_score([p * k for p, k in zip(parts, (1, 0.1, 3, 1, 1), strict=True)])
    for d, score in ((mean, own.mean()), (largest, own.max())):
        assert d.count_windows(len(long)) == 5
        a, b = d.anomaly_score([long, squeal])
        assert a == pytest.approx(score, rel=1e-6)
        assert b > a


def test_windows_are_a_little_longer_than_normals(alone):
    assert max(map(len, hums(60))) / 8000 < 2.5 == alone.window_
    longer = EnergyDetector(alpha=0.2, preset="smoke", sample_rate=8000)
    assert longer.fit([np.tile(x, 6) for x in hums(20)]).window_ == pytest.approx(1.1 * 3.6)
    assert longer.fit([np.tile(x, 20) for x in hums(20)]).window_ == 10.0


def test_a_model_is_trained_where_energies_are_asked_for(tmp_path):
    d = EnergyDetector(
        score="energy", preset="smoke", alpha=0.2, sample_rate=8000, calibration=0.4
    ).fit(hums(20))
    assert d.model_ is not None
    assert d.model is None
    clips = hums(3, 2)
    np.testing.assert_allclose(
        d.anomaly_score(clips), d.model_.energy(torch.tensor(np.stack(clips)), 8000), rtol=1e-4
    )
    d.save_pretrained(tmp_path)
    again = EnergyDetector.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.anomaly_score(clips), d.anomaly_score(clips))
    assert again.model is None


def test_networks_tell_normals_from_every_background():
    """What the energies are learnt for: on new normals, the log ratio of each background is higher
    than on samples of that background.
    """
    d = EnergyDetector(sample_rate=8000, calibration=0).fit(hums(40, seconds=1.2))
    network = d._scorer.networks[0][0]
    rows = [r for some in d._describer.rows(d.windows(hums(32, 3, 1.2))) for r in some]
    x = torch.stack([r.log_mel for r in rows]) - network.mean
    g = torch.Generator().manual_seed(0)
    for j, (name, background) in enumerate(perturbations.BACKGROUNDS.items()):
        if name in ("reverse", "desynchronise", "shuffle", "retime"):
            continue  # a steady hum is the same backwards and at any speed
        h, h_noise = (
            network.energies(v / network.scale).mean(2)[:, j] for v in (x, background(x, g))
        )
        assert float(h.mean() - h_noise.mean()) > 0, name


def test_backgrounds_keep_shapes_and_change_something():
    x = torch.randn(5, 64, 30, generator=torch.Generator().manual_seed(0))
    for name, background in perturbations.BACKGROUNDS.items():
        y = background(x, torch.Generator().manual_seed(1))
        assert y.shape == x.shape, name
        assert torch.isfinite(y).all(), name
        assert not torch.equal(x, y), name
        again = background(x, torch.Generator().manual_seed(1))
        assert torch.equal(y, again), name
    drawn = torch.randn(400, 64, 4, generator=torch.Generator().manual_seed(0))
    reference = perturbations.Gaussian(drawn * 2 + 1)
    y = reference(torch.zeros(4000, 64, 4), torch.Generator().manual_seed(0))
    assert abs(float(y.mean()) - 1) < 0.05
    assert abs(float(y.std()) - 2) < 0.1


ANY_LENGTH = "clips have any length: N is no number of features, and no N is wrong"
PARAMETER = "`score` is a parameter here, not a method: the check calls what bears that name"
EXPECTED_FAILURES = {
    "check_n_features_in_after_fitting": ANY_LENGTH,
    "check_outliers_train": ANY_LENGTH,
    "check_fit_score_takes_y": PARAMETER,
    "check_pipeline_consistency": PARAMETER,
}
"""Of scikit-learn's checks, each with its reason."""


def test_scikit_learn_accepts_it():
    from sklearn.utils.estimator_checks import check_estimator

    detector = EnergyDetector(preset="smoke", alpha=0.2)
    results = check_estimator(
        detector, expected_failed_checks=EXPECTED_FAILURES, on_fail=None, on_skip=None
    )
    status = {r["check_name"]: r["status"] for r in results}
    failed = [r["check_name"] for r in results if r["status"] == "failed"]
    assert not failed
    assert sum(r["status"] == "passed" for r in results) > 35
    for name in EXPECTED_FAILURES:  # one that passes meanwhile shall be struck off the list
        assert status[name] == "xfail", name


def test_mistakes_are_named(detector, tmp_path):
    model, clips = small_model(), normals(20)
    few = r"20 recordings .* are too few: alpha=0.05 needs 19 that calibrate and 2 .* 21 or more"
    with pytest.raises(ValueError, match=few):
        EnergyDetector(model).fit(clips)
    with pytest.raises(ValueError, match="8 and 12; pass 48 or more"):
        EnergyDetector(model, calibration=0.4).fit(clips)
    with pytest.raises(ValueError, match="1 recordings"):
        EnergyDetector(model, calibration=0).fit(clips[:1])
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        EnergyDetector(model, calibration=1.5).fit(clips)
    with pytest.raises(ValueError, match="the model's is 4000"):
        EnergyDetector(model, sample_rate=8000).fit(clips)
    with pytest.raises(ValueError, match="a group for each of 20 clips"):
        EnergyDetector(model).fit(clips, groups=[1, 2])
    with pytest.raises(ValueError, match="no clips were given"):
        EnergyDetector(model).fit([])
    with pytest.raises(ValueError, match="score must be"):
        EnergyDetector(model, score="best").fit(clips)
    with pytest.raises(ValueError, match="alpha is a false-alarm rate"):
        EnergyDetector(model, alpha=5).fit(clips)
    with pytest.raises(ValueError, match="Reshape your data"):
        detector.predict(clips[0].numpy())
    with pytest.raises(TypeError, match="a folder or a list of paths"):
        detector.predict("a.wav")
    with pytest.raises(ValueError, match=r"alpha=0.01 is below 1 / \(n \+ 1\) = 0.0244"):
        detector.threshold(0.01)
    with pytest.raises(ValueError, match="quantile lies between"):
        detector.gamma_threshold(1.0)
    with pytest.raises(ValueError, match="has not been fitted"):
        EnergyDetector(model).predict(clips)
    with pytest.raises(ValueError, match=r"\(N,\)"):
        detector.predict([np.zeros((2, 100))])
    with pytest.raises(ValueError, match="NaN"):
        detector.predict([np.full(100, np.nan)])
    with pytest.raises(WeightsError, match=r"no detector\.safetensors"):
        EnergyDetector.from_pretrained(tmp_path)
