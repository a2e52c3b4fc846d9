import librosa
import pytest
import torch

from sance_audio import LogMel


def noise(n: int = 16000) -> torch.Tensor:
    return torch.randn(2, n, generator=torch.Generator().manual_seed(0))


SETTINGS = [
    {"sample_rate": 16000},
    {"sample_rate": 8000, "n_fft": 512, "hop_length": 128, "n_mels": 64, "f_min": 20.0},
    {
        "sample_rate": 16000,
        "n_fft": 512,
        "n_mels": 40,
        "mel_scale": "htk",
        "norm": None,
        "power": 2.0,
    },
    {"sample_rate": 44100, "n_fft": 2048, "hop_length": 512, "n_mels": 128, "f_max": 16000.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_mel_equals_librosa(settings):
    features = LogMel(**settings)
    s = features.settings
    for wave, mel in zip(noise(), features.mel(noise()), strict=True):
        expected = librosa.feature.melspectrogram(
            y=wave.numpy(),
            sr=s["sample_rate"],
            n_fft=s["n_fft"],
            hop_length=s["hop_length"],
            n_mels=s["n_mels"],
            fmin=s["f_min"],
            fmax=s["f_max"],
            htk=s["mel_scale"] == "htk",
            norm=s["norm"],
            power=s["power"],
        )
        torch.testing.assert_close(mel, torch.from_numpy(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS)
def test_mel_equals_torchaudio(settings):
    transforms = pytest.importorskip("torchaudio.transforms", reason="torchaudio is not installed")
    features = LogMel(**settings, pad_mode="reflect")
    s = features.settings
    expected = transforms.MelSpectrogram(
        s["sample_rate"],
        n_fft=s["n_fft"],
        hop_length=s["hop_length"],
        f_min=s["f_min"],
        f_max=s["f_max"],
        n_mels=s["n_mels"],
        power=s["power"],
        norm=s["norm"],
        mel_scale=s["mel_scale"],
    )(noise())
    torch.testing.assert_close(features.mel(noise()), expected, rtol=1e-4, atol=1e-5)


def test_an_empty_filter_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match=r"contain no frequency bin.*fewer n_mels"):
        LogMel(8000, n_fft=128, hop_length=32, n_mels=80)


@pytest.mark.parametrize(
    "bad",
    [
        {"f_max": 9000.0},
        {"hop_length": 0},
        {"mel_scale": "bark"},
        {"norm": "area"},
        {"floor": 0.0},
        {"n_mels": 0},
    ],
)
def test_impossible_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LogMel(16000, **bad)


def test_shapes_lengths_and_frames():
    features = LogMel(8000, n_fft=512, hop_length=128, n_mels=64)
    x = features(noise(8064))
    assert x.shape == (2, 1, 64, features.frames(8064)) == (2, 1, 64, 64)
    assert features.length(64) == 8064
    with pytest.raises(ValueError, match=r"\(B, N\)"):
        features(noise()[0])


def test_standardised_and_back():
    features = LogMel(8000, n_fft=512, hop_length=128, n_mels=64)
    features.fit(features.log_mel(noise()))
    x = features(noise())
    assert abs(float(x.mean())) < 1e-4
    assert abs(float(x.std()) - 1) < 1e-4
    torch.testing.assert_close(features.to_mel(x), features.mel(noise()), rtol=1e-4, atol=1e-6)


def test_the_floor_becomes_exact_silence():
    features = LogMel(8000, n_fft=512, hop_length=128, n_mels=64)
    assert features.to_mel(features(torch.zeros(1, 8000))).abs().max() == 0


def test_silent_training_clips_are_an_error():
    features = LogMel(8000, n_fft=512, hop_length=128, n_mels=64)
    with pytest.raises(ValueError, match="silent"):
        features.fit(features.log_mel(torch.zeros(2, 8000)))


def test_settings_and_buffers_are_all_there_is():
    a = LogMel(8000, n_fft=512, hop_length=128, n_mels=64, floor=1e-3)
    a.fit(a.log_mel(noise()))
    b = LogMel(**a.settings)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(noise()), b(noise()))
