"""Synthesised machines: repeatable, sound, and with faults that lie where they are said to."""

import numpy as np
import pytest
import torch
from scipy.signal import stft

from sance_audio.datasets import machines
from sance_audio.datasets.machines import FAULTS, KINDS, SAMPLE_RATE, Sound

EVERY = [(kind, fault) for kind in KINDS for fault in FAULTS[kind]]


def sound(*about, **more):
    return Sound(*about, **more).load().waveform


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_for_the_same_seeds_and_no_other(kind):
    first = sound(kind, 3, 1)
    assert torch.equal(first, sound(kind, 3, 1))
    assert first.dtype == torch.float32
    assert first.shape == (5 * SAMPLE_RATE,)
    for other in (sound(kind, 4, 1), sound(kind, 3, 2), sound(kind, 3, 1, FAULTS[kind][0])):
        assert not torch.equal(first, other)


@pytest.mark.parametrize(("kind", "fault"), [*EVERY, *((kind, None) for kind in KINDS)])
def test_finite_neither_silent_nor_clipped(kind, fault):
    for recording in range(4):
        x = sound(kind, recording, 0, fault)
        assert torch.isfinite(x).all()
        assert 0.02 < float(x.abs().max()) < 0.99, recording
        assert 0.003 < float(x.square().mean().sqrt()) < 0.2, recording


@pytest.mark.parametrize(("kind", "fault"), EVERY)
def test_a_fault_changes_the_spectrogram_in_its_rectangles_alone(kind, fault):
    """At least 97 % of the power of the change lies in them, give or take a frame and a band, and
    they cover less than half of the picture."""
    for recording in range(3):
        clip = Sound(kind, recording, 7, fault)
        change = clip.load().waveform - sound(kind, recording, 7)
        f, t, z = stft(change.numpy(), SAMPLE_RATE, nperseg=512, noverlap=384)
        inside = np.zeros(z.shape, bool)
        for start, end, low, high in clip.patches:
            bands = (f >= low - 32) & (f <= high + 32)
            inside |= bands[:, None] & (t >= start - 0.032) & (t <= end + 0.032)
        power = np.abs(z) ** 2
        assert power[inside].sum() > 0.97 * power.sum()
        assert 0.001 < inside.mean() < 0.5


@pytest.mark.parametrize(("kind", "fault"), EVERY)
def test_rectangles_lie_within_the_clip_and_the_band(kind, fault):
    for recording in range(10):
        clip = Sound(kind, recording, 0, fault, seconds=4.0)
        assert clip.patches
        for start, end, low, high in clip.patches:
            assert 0 <= start < end <= 4.0
            assert 0 < low < high <= SAMPLE_RATE / 2


@pytest.mark.parametrize(("kind", "fault"), EVERY)
def test_severity_is_the_level_of_the_change(kind, fault):
    """6 dB more are twice the change, up to what there is to take away."""
    before = sound(kind, 2, 5)
    weak, strong = (sound(kind, 2, 5, fault, severity=dB) - before for dB in (-26.0, -20.0))
    ratio = float(strong.square().sum() / weak.square().sum())
    assert 10 * np.log10(ratio) == pytest.approx(6, abs=0.1)


def test_level_in_the_rectangles_is_as_said():
    clip = Sound("fan", 1, 0, "rub", severity=3.0)
    ((start, end, low, high),) = clip.patches
    normal = sound("fan", 1, 0)

    def power(x):
        f = np.fft.rfftfreq(len(x), 1 / SAMPLE_RATE)
        y = np.fft.irfft(np.fft.rfft(x) * ((f >= low) & (f <= high)), len(x))
        return np.mean(y[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] ** 2)

    level = power((clip.load().waveform - normal).numpy()) / power(normal.numpy())
    assert 10 * np.log10(level) == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_takes_of_a_recording_resemble_each_other(kind):
    """Mean spectra of two takes are nearer than those of two recordings."""

    def spectrum(recording, take):
        z = stft(sound(kind, recording, take).numpy(), SAMPLE_RATE, nperseg=512)[2]
        return np.log(np.mean(np.abs(z) ** 2, 1))

    def distance(a, b):
        return np.sqrt(np.mean((a - b) ** 2))

    found = [[spectrum(recording, take) for take in (0, 1)] for recording in range(8)]
    within = np.mean([distance(a, b) for a, b in found])
    between = np.mean([distance(found[i][0], found[i - 1][0]) for i in range(8)])
    assert within < 0.7 * between


def test_corpus_groups_and_sizes():
    corpus = machines.prepare(train=4, valid=2, test=3, takes=2)
    sizes = {s: len(corpus.split(s)) for s in ("train", "valid", "test", "odd")}
    assert sizes == {"train": 24, "valid": 12, "test": 18, "odd": 18}
    assert len({clip.name for clip in corpus.clips}) == len(corpus.clips)
    assert len({clip.source.digest() for clip in corpus.clips}) == len(corpus.clips)
    groups = {s: {clip.group for clip in corpus.split(s)} for s in sizes}
    assert groups["odd"] == groups["test"]
    assert not groups["train"] & (groups["valid"] | groups["test"])
    assert not groups["valid"] & groups["test"]
    odd = machines.faulty("pump", range(3), 2)
    assert {clip.fault for clip in odd} == set(FAULTS["pump"])
    assert all(clip.fault is None for clip in machines.normals("pump", range(3), 2))


def test_what_does_not_exist_is_said():
    with pytest.raises(ValueError, match="no 'lathe' with fault None; there are"):
        Sound("lathe", 0, 0)
    with pytest.raises(ValueError, match="no 'fan' with fault 'leak'"):
        Sound("fan", 0, 0, "leak")
    with pytest.raises(ValueError, match="no 'lathe'"):
        machines.faulty("lathe", range(1), 1)
    with pytest.raises(ValueError, match="seconds must be 2 or more, found 1"):
        Sound("fan", 0, 0, seconds=1.0)
