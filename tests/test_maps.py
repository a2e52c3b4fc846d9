import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from sance_audio import EnergyDetector, audio
from sance_audio.datasets.machines import Sound
from sance_audio.detection.maps import LocalScorer, MapConfig
from sance_audio.detection.planted import CHANGES, plant
from sance_audio.detection.regions import ScoreMap

RATE = 16_000


def fans(recordings: range, take: int = 0) -> list[torch.Tensor]:
    """A clip of two seconds of each recording of a fan."""
    sounds = (Sound("fan", r, take, seconds=2.0) for r in recordings)
    return [s.load().waveform for s in sounds]


def tone(seconds: float, hertz: float) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * RATE)) / RATE)


@pytest.fixture(scope="module")
def detector() -> EnergyDetector:
    return EnergyDetector(preset="smoke", alpha=0.2, sample_rate=RATE).fit(fans(range(16)))


@pytest.fixture(scope="module")
def burst() -> torch.Tensor:
    """A fan with a tone of 3 kHz from .8 to 1.2 s."""
    clip = fans(range(40, 41))[0]
    clip[round(0.8 * RATE) : round(1.2 * RATE)] += 0.5 * clip.std() * tone(0.4, 3000)
    return clip


def test_axes_are_seconds_and_hertz(detector, burst):
    found = detector.score_map(burst)
    seconds, hertz, score, p = found
    assert score.shape == p.shape == (len(hertz), len(seconds))
    np.testing.assert_allclose(np.diff(seconds), 0.016)
    assert seconds[0] == 0
    assert seconds[-1] == pytest.approx(2.0, abs=0.016)
    assert (np.diff(hertz) > 0).all()
    assert hertz[0] > 20
    assert hertz[-1] < RATE / 2
    assert ((p > 0) & (p <= 1)).all()
    assert np.isfinite(score).all()
    frames = detector.score_frames(burst)
    np.testing.assert_array_equal(frames.seconds, seconds)
    assert frames.score.shape == frames.p_value.shape == seconds.shape


def test_the_map_is_highest_where_a_tone_is(detector, burst):
    found = detector.score_map(burst)
    band, frame = np.unravel_index(found.score.argmax(), found.score.shape)
    assert 0.8 < found.seconds[frame] < 1.2
    assert 2700 < found.hertz[band] < 3300
    frames = detector.score_frames(burst)
    assert 0.8 < frames.seconds[frames.score.argmax()] < 1.2
    region = found.regions()[0]
    assert region.start < 1.0 < region.end
    assert region.low < 3000 < region.high
    assert region.end - region.start < 1.0
    assert region.high - region.low < 2500
    assert region.score == found.score.max()


def test_odder_is_less_probable_within_a_band(detector, burst):
    found = detector.score_map(burst)
    for score, p in zip(found.score, found.p_value, strict=True):
        assert (np.diff(p[np.argsort(score)]) <= 0).all()


@pytest.mark.parametrize("calibration", [None, 0])
def test_false_alarms_of_cells_and_frames_hold(calibration):
    d = EnergyDetector(preset="smoke", alpha=0.1, calibration=calibration, sample_rate=RATE)
    d.fit(fans(range(30)))
    clips = fans(range(100, 140))
    cells = np.concatenate([d.score_map(c).p_value.ravel() for c in clips])
    frames = np.concatenate([d.score_frames(c).p_value for c in clips])
    for alpha in (0.05, 0.1):
        assert (cells <= alpha).mean() <= alpha + 0.02
        assert (frames <= alpha).mean() <= alpha + 0.04


def test_saved_and_loaded_it_is_the_same_map(detector, burst, tmp_path):
    detector.save_pretrained(tmp_path)
    again = EnergyDetector.from_pretrained(tmp_path)
    for name in ("score_map", "score_frames"):
        one, other = (getattr(d, name)(burst) for d in (detector, again))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_without_networks_and_with_few_normals(burst):
    d = EnergyDetector(learnt=False, calibration=0, sample_rate=RATE).fit(fans(range(4)))
    found = d.score_map(burst)
    _, frame = np.unravel_index(found.score.argmax(), found.score.shape)
    assert 0.8 < found.seconds[frame] < 1.2


@pytest.mark.parametrize("samples", [1, 100, 1500])
def test_short_clips(detector, samples):
    found = detector.score_map(torch.ones(samples))
    assert found.score.shape[1] == len(found.seconds) == 1 + samples // 256
    assert np.isfinite(found.score).all()
    assert len(detector.score_frames(torch.ones(samples)).score) == len(found.seconds)
    assert isinstance(found.regions(0.5), list)


def test_long_recordings_are_joined(detector, tmp_path):
    """A tone in the third window is found there; a file gives what its samples do."""
    clip = Sound("fan", 40, 0, seconds=26.0).load().waveform
    clip[17 * RATE : round(17.5 * RATE)] += 0.5 * clip.std() * tone(0.5, 3000)
    found = detector.score_map(clip)
    assert (np.diff(found.seconds) > 0).all()
    assert np.diff(found.seconds).max() < 0.032
    assert found.seconds[-1] == pytest.approx(26.0, abs=0.032)
    frames = detector.score_frames(clip)
    np.testing.assert_array_equal(frames.seconds, found.seconds)
    inside = (found.seconds > 17) & (found.seconds < 17.5)
    band = np.abs(found.hertz - 3000).argmin()
    assert found.score[band, inside].mean() > np.quantile(found.score[band], 0.95)
    audio.write(tmp_path / "a.wav", clip / clip.abs().max(), RATE)
    again = detector.score_map(tmp_path / "a.wav")
    np.testing.assert_array_equal(again.seconds, found.seconds)
    np.testing.assert_allclose(again.score[band], found.score[band], atol=0.1)


def test_the_same_seed_gives_the_same_scorer():
    g = torch.Generator().manual_seed(0)
    normals = [torch.randn(64, 60, generator=g) - 3 for _ in range(3)]
    a, b = (LocalScorer.fit(normals, MapConfig(changes=5), 1) for _ in range(2))
    np.testing.assert_array_equal(a(normals[0]), b(normals[0]))


def test_changes_stay_in_their_rectangles():
    x = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32) - 3
    for seed in range(5 * len(CHANGES)):
        y, where = plant(x, np.random.default_rng(seed))
        assert y.shape == where.shape == x.shape
        assert where.any()
        far = np.ones_like(where)
        b, _ = np.nonzero(where)
        far[max(0, b.min() - 3) : b.max() + 4] = False
        np.testing.assert_array_equal(y[far], x[far], err_msg=str(seed))
        assert np.abs(y - x)[where].mean() > 5 * np.abs(y - x)[~where].mean(), seed


def test_regions_are_rectangles_round_what_adjoins():
    score = np.zeros((8, 20))
    score[2:5, 3:9], score[6, 15:], score[0, 0] = 2.0, 1.0, 9.0
    p = np.where(score > 0, 0.001, 1.0)
    found = ScoreMap(np.arange(20) * 0.1, 100.0 * np.arange(1, 9), score, p).regions()
    assert len(found) == 1  # five cells, and one, are too few
    np.testing.assert_allclose(found[0], (0.25, 0.85, 250, 550, 2.0))
    with pytest.raises(ValueError, match="alpha is a false-alarm rate"):
        ScoreMap(np.arange(20), np.arange(8), score, p).regions(0)


def test_mistakes_are_named(detector, tmp_path):
    with pytest.raises(NotFittedError):
        EnergyDetector().score_map(torch.ones(100))
    with pytest.raises(ValueError, match=r"\(N,\)"):
        detector.score_map(np.zeros((2, 100)))
    with pytest.raises(ValueError, match="NaN"):
        detector.score_frames(np.full(100, np.nan))
    with pytest.raises(audio.AudioError):
        detector.score_map(tmp_path / "none.wav")
