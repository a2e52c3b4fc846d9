import math

import pytest
import torch
from conftest import real_data

from sance_audio import GriffinLim, LogMel, audio
from sance_audio.datasets import fsdd

RATE = 8000


def features(**settings) -> LogMel:
    defaults = {"n_fft": 512, "hop_length": 128, "n_mels": 64, "f_min": 20.0}
    return LogMel(RATE, **{**defaults, **settings})


def tone(frequency: float, length: int = 8064, level: float = 0.5) -> torch.Tensor:
    t = torch.arange(length) / RATE
    return level * torch.sin(2 * math.pi * frequency * t).unsqueeze(0)


def chirp(n: int = 2) -> torch.Tensor:
    t = torch.arange(8064) / RATE
    waves = [torch.sin(2 * math.pi * (200 + 400 * (i + 1) * t) * t) for i in range(n)]
    return 0.5 * torch.stack(waves) * torch.hann_window(8064)


def residual_db(f: LogMel, mel: torch.Tensor, wave: torch.Tensor) -> torch.Tensor:
    """Mean absolute log-mel error per clip, in dB, over cells within 40 dB of the peak."""
    again = f.mel(wave)
    active = mel > mel.amax((1, 2), keepdim=True) * 1e-2
    error = 20 / math.log(10) * (again.clamp_min(1e-6).log() - mel.clamp_min(1e-6).log()).abs()
    return (error * active).sum((1, 2)) / active.sum((1, 2))


@pytest.mark.parametrize("frequency", [200.0, 440.0, 1000.0, 3000.0])
def test_a_tone_keeps_frequency_and_level(frequency):
    f = features()
    wave = GriffinLim(f)(f.mel(tone(frequency)))
    middle = slice(1024, 7168)
    spectrum = torch.fft.rfft(wave[0, middle] * torch.hann_window(6144)).abs()
    band = RATE / 512 * 2
    assert abs(float(spectrum.argmax()) * RATE / 6144 - frequency) < band
    level = 20 * math.log10(float(wave[0, middle].std() / tone(frequency)[0, middle].std()))
    assert abs(level) < 2.0


def test_silence_stays_silence():
    f = features()
    assert GriffinLim(f)(torch.zeros(1, 64, 64)).abs().max() == 0


def test_a_click_stays_in_its_frames():
    f = features()
    click = torch.zeros(1, 8064)
    click[0, 4000] = 1.0
    wave = GriffinLim(f)(f.mel(click))[0]
    energy = wave.square()
    assert float(energy[4000 - 512 : 4000 + 512].sum() / energy.sum()) > 0.99


def test_the_residual_falls_with_iterations():
    f = features()
    mel = f.mel(chirp())
    errors = [residual_db(f, mel, GriffinLim(f, n)(mel)).mean() for n in (1, 12, 100)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1.5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"power": 2.0},
        {"hop_length": 100, "n_fft": 400, "n_mels": 40},
        {"hop_length": 256},
        {"hop_length": 150},
        {"mel_scale": "htk", "norm": None},
        {"pad_mode": "reflect"},
    ],
)
def test_every_geometry_that_overlaps_works(settings):
    f = features(**settings)
    wave = chirp()[:, : f.length(f.frames(8064))]
    mel = f.mel(wave)
    back = GriffinLim(f, 60)(mel)
    assert back.shape == wave.shape
    assert float(residual_db(f, mel, back).max()) < 2.0


def test_it_beats_the_two_step_pipeline():
    """Solving magnitudes first and phases after loses more of the mel than finding both
    together.
    """
    transforms = pytest.importorskip("torchaudio.transforms", reason="torchaudio is not installed")
    f = features()
    mel = f.mel(chirp())
    linear = transforms.InverseMelScale(
        257, 64, RATE, f_min=20.0, norm="slaney", mel_scale="slaney"
    )(mel)
    torch.manual_seed(0)
    two = transforms.GriffinLim(n_fft=512, hop_length=128, power=1.0, n_iter=32)(linear)
    ours = residual_db(f, mel, GriffinLim(f, 32)(mel))
    theirs = (
        residual_db(f, mel[..., :-1], two) if two.shape[1] < 8064 else residual_db(f, mel, two)
    )
    assert (ours < theirs).all()


def test_it_beats_the_two_step_pipeline_on_real_speech():
    """Twelve recordings of the test split; the mel it leaves behind, at 32 iterations each."""
    transforms = pytest.importorskip("torchaudio.transforms", reason="torchaudio is not installed")
    corpus = fsdd.prepare(real_data("fsdd"))
    waves = [clip.source.load().waveform for clip in corpus.split("test")[::25]]
    clips = torch.stack([audio.windows(w, 8064, peak=0.5)[0] for w in waves])
    f = features()
    mel = f.mel(clips)
    linear = transforms.InverseMelScale(
        257, 64, RATE, f_min=20.0, norm="slaney", mel_scale="slaney"
    )(mel)
    torch.manual_seed(0)
    two = transforms.GriffinLim(512, hop_length=128, power=1.0, n_iter=32, length=8064)(linear)
    ours, theirs = (residual_db(f, mel, w).mean() for w in (GriffinLim(f, 32)(mel), two))
    assert ours < 0.7 * theirs


def test_length_seeds_and_batches():
    f = features()
    mel = f.mel(chirp())
    invert = GriffinLim(f, 4)
    assert invert(mel).shape == (2, 8064)
    assert invert(mel, length=9000).shape == (2, 9000)
    assert invert(mel, length=5000).shape == (2, 5000)
    assert torch.equal(invert(mel), invert(mel))

    def seeded(*seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    both = invert(mel, generator=seeded(1, 2))
    torch.testing.assert_close(
        both[1:], invert(mel[1:], generator=seeded(2)), rtol=1e-3, atol=1e-4
    )
    assert not torch.allclose(both, invert(mel, generator=seeded(3, 4)), atol=1e-3)


def test_no_gradient_is_recorded():
    f = features()
    mel = f.mel(chirp()).requires_grad_(True)
    assert not GriffinLim(f, 2)(mel).requires_grad


def test_mistakes_are_named():
    f = features()
    with pytest.raises(ValueError, match="n_iter must be at least 1"):
        GriffinLim(f, 0)
    with pytest.raises(ValueError, match="overlap-add"):
        GriffinLim(features(hop_length=400))
    with pytest.raises(ValueError, match=r"expected mels \(B, 64, T >= 2\)"):
        GriffinLim(f)(torch.ones(1, 40, 10))
    with pytest.raises(ValueError, match="expected mels"):
        GriffinLim(f)(torch.ones(1, 64, 1))
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite and not negative"):
            GriffinLim(f)(torch.full((1, 64, 4), bad))
