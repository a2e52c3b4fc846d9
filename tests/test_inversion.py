import itertools
import math
import subprocess
import sys

import pytest
import torch
from conftest import real_data

from sance_audio import GriffinLim, LogMel, audio
from sance_audio.datasets import fsdd
from sance_audio.inversion import (
    QUALITY,
    Frames,
    LinearGriffinLim,
    griffin_lim,
    inverter,
    linear_griffin_lim,
    mel_residual,
)
from sance_audio.inversion.pulls import Bands

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


@pytest.mark.parametrize("settings", [{}, {"hop_length": 150}, {"hop_length": 300}])
def test_samples_within_a_silent_frame_are_silent(settings):
    """A frame without magnitude says so of all its samples, also where loud ones overlap it."""
    f = features(**settings)
    wave = torch.cat([torch.zeros(1, 3000), tone(440.0, 2000), torch.zeros(1, 3064)], 1)
    mel = f.mel(wave)
    back = GriffinLim(f)(mel, length=wave.shape[1])
    assert back[:, : 3000 - 512].abs().max() == 0
    assert back[:, 5000 + 512 :].abs().max() == 0
    assert float(back[:, 3200:4800].std() / wave[:, 3200:4800].std()) == pytest.approx(1, abs=0.1)
    silent = mel.amax(1)[0] == 0
    assert silent.any()
    assert float(f.mel(back).amax(1)[0][silent].max()) < 0.02 * float(mel.max())  # -34 dB


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
    assert errors[2] < 0.8


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"power": 2.0},
        {"hop_length": 100, "n_fft": 400, "n_mels": 40},
        {"hop_length": 256},
        {"hop_length": 300},
        {"hop_length": 150},
        {"hop_length": 37},
        {"n_fft": 510, "hop_length": 127},
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


def seeded(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def test_length_and_seeds():
    f = features()
    mel = f.mel(chirp())
    invert = GriffinLim(f, 4)
    assert invert(mel).shape == (2, 8064)
    for length in (1, 5000, 8063, 8100, 9000):
        assert invert(mel, length=length).shape == (2, length)
    assert torch.equal(invert(mel, length=5000), invert(mel)[:, :5000])
    assert torch.equal(invert(mel), invert(mel))
    both = invert(mel, generator=seeded(1, 2))
    assert not torch.allclose(both, invert(mel, generator=seeded(3, 4)), atol=1e-3)
    one, two = (invert(m, generator=torch.Generator().manual_seed(7)) for m in (mel[:1], mel))
    assert torch.equal(one, two[:1]), "clip i of a generator is the same whatever the batch"


@pytest.mark.parametrize("hop_length", [128, 300])
def test_the_last_part_of_a_hop_is_rebuilt(hop_length):
    """A waveform whose length is no multiple of the hop has as many frames as a shorter one."""
    f = features(hop_length=hop_length)
    wave = tone(440.0, 8064 + 100)
    back = GriffinLim(f, 60)(f.mel(wave), length=wave.shape[1])
    assert back.shape == wave.shape
    level = float(back[:, -90:].std() / wave[:, -90:].std())
    assert 0.7 < level < 1.4
    beyond = GriffinLim(f, 4)(f.mel(wave), length=9000)
    assert beyond[:, 8064 + hop_length :].abs().max() == 0


@pytest.mark.parametrize("count", [2, 3, 20, 65, 256, 300])
def test_a_batch_is_its_clips(count):
    f = features()
    mel = torch.rand(7, 64, count, generator=torch.Generator().manual_seed(0))
    together = GriffinLim(f, 3)(mel, generator=seeded(*range(7)))
    for i in range(7):
        alone = GriffinLim(f, 3)(mel[i : i + 1], generator=seeded(i))
        assert torch.equal(together[i : i + 1], alone), i


@pytest.mark.parametrize(
    "settings", [{}, {"hop_length": 150}, {"hop_length": 256}, {"power": 2.0}]
)
def test_long_clips_go_through_in_blocks_to_the_same_end(settings, monkeypatch):
    """Same noise, blocks of 256, 40 and all frames: the same waveform up to rounding."""
    f = features(**settings)
    mel = f.mel(torch.cat([tone(440.0), chirp(1), tone(900.0), chirp(1)], 1).repeat(1, 4))
    noise = torch.randn(1, 2000 * f.hop_length, generator=torch.Generator().manual_seed(0))

    def fixed(frames, generators, device, together):
        hops = noise[:, : frames.hops * frames.hop].view(1, -1, frames.hop)
        edges = [*range(0, frames.count, together), frames.count]
        edges = [0, *(edge + frames.overlap - 1 for edge in edges[1:])]
        for a, b in itertools.pairwise(edges):
            yield hops[:, a:b], b == frames.hops

    monkeypatch.setattr(inverter, "white_noise", fixed)
    waves = []
    for block in (100_000, 256, 40):
        monkeypatch.setattr(inverter, "BLOCK", block)
        waves.append(GriffinLim(f, 12)(mel))
    for wave in waves[1:]:
        torch.testing.assert_close(wave, waves[0], rtol=0, atol=2e-5)


def test_the_seams_of_a_long_clip_are_no_worse_than_the_rest():
    f = features()
    wave = chirp(40).reshape(1, -1)
    mel = f.mel(wave)
    again = f.mel(GriffinLim(f, 32)(mel))
    count = mel.shape[2]
    assert count > 9 * inverter.BLOCK
    error = (again.clamp_min(1e-6) / mel.clamp_min(1e-6)).log().abs()
    error = (error * (mel > 1e-3 * mel.max())).sum((0, 1))
    pieces = -(-count // inverter.BLOCK)
    seams = [count * k // pieces for k in range(1, pieces)]
    near = torch.zeros(count, dtype=torch.bool)
    for seam in seams:
        near[seam - 8 : seam + 8] = True
    spread = float(error[~near].std()) / math.sqrt(len(seams))  # frames of a seam may move as one
    assert float(error[near].mean()) < float(error[~near].mean()) + 3 * spread


MEMORY = """
import resource, sys, torch
from sance_audio import GriffinLim, LogMel
f = LogMel(8000, 512, 128, 64, f_min=20.0)
mel = torch.rand(1, 64, 1 + int(sys.argv[1]) * 8000 // 128)
invert = GriffinLim(f, 3)
invert(mel[:, :, :600])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wave = invert(mel)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / 1024 - wave.numel() * 4 / 2**20)
"""


def test_ten_minutes_take_the_memory_of_one():
    """MiB beyond mel and waveform."""
    run = [sys.executable, "-c", MEMORY]
    one, ten = (
        float(subprocess.run([*run, s], capture_output=True, text=True, check=True).stdout)
        for s in ("60", "600")
    )
    assert ten < one + 8


def test_waveforms_are_in_proportion_to_mels():
    f = features()
    mel = f.mel(chirp())
    quiet, loud = (GriffinLim(f, 8)(k * mel) for k in (1e-6, 1e6))
    torch.testing.assert_close(1e12 * quiet, loud, rtol=1e-3, atol=1e2)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_level_comes_back(power):
    f = features(power=power)
    wave = chirp(4)
    back = GriffinLim(f)(f.mel(wave))
    assert float((20 * (back.std(1) / wave.std(1)).log10()).abs().max()) < 0.3


def test_the_residual_is_the_log_mel_error():
    f = features()
    mel = f.mel(chirp())
    wave, residual = GriffinLim(f, 6).with_residual(mel)
    assert torch.equal(wave, GriffinLim(f, 6)(mel))
    assert residual.shape == (2,)
    silent = torch.zeros(1, 64, 20)
    assert mel_residual(f, silent, GriffinLim(f, 2)(silent)) == 0
    louder = mel_residual(f, mel, 2 * chirp())  # twice as loud is 6.02 dB off in every cell
    torch.testing.assert_close(louder, torch.full((2,), 20 * math.log10(2)), rtol=1e-4, atol=0)
    power = features(power=2.0)
    twice = mel_residual(power, power.mel(chirp()), 2 * chirp())
    torch.testing.assert_close(twice, louder, rtol=1e-4, atol=0)


def test_quality_names_iterations_and_twins_agree():
    f = features()
    mel = f.mel(chirp())
    assert {q: GriffinLim(f, quality=q).n_iter for q in QUALITY} == QUALITY
    assert GriffinLim(f).n_iter == QUALITY["default"] == 32
    assert torch.equal(griffin_lim(mel, f, quality="fast"), GriffinLim(f, 12)(mel))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_linear_magnitudes_are_met_as_closely_as_by_torchaudio(power):
    transforms = pytest.importorskip("torchaudio.transforms", reason="torchaudio is not installed")
    f = features()
    magnitude = f.stft(chirp()).abs()

    def convergence(wave):
        return float((f.stft(wave).abs() - magnitude).norm() / magnitude.norm())

    torch.manual_seed(0)
    theirs = transforms.GriffinLim(512, n_iter=32, hop_length=128, power=power, length=8064)(
        magnitude**power
    )
    ours = linear_griffin_lim(magnitude**power, 128, power=power, n_iter=32)
    assert convergence(ours) < 1.1 * convergence(theirs) + 0.005
    module = LinearGriffinLim(512, 128, power=power, quality="fast")
    fewer = linear_griffin_lim(magnitude**power, 128, power=power, quality="fast")
    assert torch.equal(module(magnitude**power), fewer)


def test_analysis_and_synthesis_are_torchs():
    wave = chirp()
    for n_fft, hop in ((512, 128), (400, 150), (512, 300), (512, 37)):
        f = LogMel(RATE, n_fft=n_fft, hop_length=hop, n_mels=20, f_min=20.0)
        count = 8064 // hop
        x = wave[:, : hop * (count - 1)]
        frames = Frames(f.window, hop, count)
        spectra = frames.analyse(frames.hops_of(x))
        torch.testing.assert_close(spectra.mT, f.stft(x), rtol=0, atol=1e-4)
        noisy = spectra * torch.rand(spectra.shape, generator=torch.Generator().manual_seed(0))
        back = frames.signal_of(frames.overlapped(noisy) * frames.weights(0, frames.hops))
        theirs = torch.istft(noisy.mT, n_fft, hop, window=f.window, length=x.shape[1])
        torch.testing.assert_close(back, theirs, rtol=0, atol=1e-5)


def test_bands_are_the_filterbank():
    g = torch.Generator().manual_seed(0)
    for settings in ({}, {"mel_scale": "htk", "norm": None}, {"n_mels": 128}, {"f_max": 2000.0}):
        f = features(**settings)
        bank, bands = f.filterbank, Bands(f.filterbank)
        x, m = torch.rand(2, 5, 257, generator=g), torch.rand(2, 5, f.n_mels, generator=g)
        torch.testing.assert_close(bands.gather(x), x @ bank.T)
        shares = bank / bank.sum(0).clamp_min(1e-8)
        torch.testing.assert_close(bands.spread(m), m @ shares)


def test_autocast_changes_nothing():
    f = features()
    mel = f.mel(chirp())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        there = GriffinLim(f, 4)(mel)
    assert there.dtype == torch.float32
    assert torch.equal(there, GriffinLim(f, 4)(mel))


def test_no_gradient_is_recorded():
    f = features()
    mel = f.mel(chirp()).requires_grad_(True)
    assert not GriffinLim(f, 2)(mel).requires_grad


def test_mistakes_are_named():
    f = features()
    with pytest.raises(ValueError, match="n_iter must be at least 1"):
        GriffinLim(f, 0)
    with pytest.raises(ValueError, match="overlap-add"):
        GriffinLim(features(hop_length=512))
    with pytest.raises(ValueError, match="overlap-add"):
        LinearGriffinLim(512, window=torch.zeros(512))
    with pytest.raises(ValueError, match="not both"):
        GriffinLim(f, 12, quality="fast")
    with pytest.raises(ValueError, match="one of fast, default, best, found 'great'"):
        GriffinLim(f, quality="great")
    with pytest.raises(ValueError, match=r"a window \(400,\)"):
        LinearGriffinLim(512, window=torch.ones(400))
    with pytest.raises(ValueError, match=r"expected magnitudes \(B, 257, T >= 2\)"):
        LinearGriffinLim(512)(torch.ones(1, 256, 4))
    with pytest.raises(ValueError, match="expected one generator or 3"):
        GriffinLim(f)(torch.ones(3, 64, 4), generator=seeded(1, 2))
    with pytest.raises(ValueError, match="needs more than 256 samples, found 128"):
        GriffinLim(features(pad_mode="reflect"))(torch.ones(1, 64, 2))
    with pytest.raises(ValueError, match=r"expected mels \(B, 64, T >= 2\)"):
        GriffinLim(f)(torch.ones(1, 40, 10))
    with pytest.raises(ValueError, match="expected mels"):
        GriffinLim(f)(torch.ones(1, 64, 1))
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite and not negative"):
            GriffinLim(f)(torch.full((1, 64, 4), bad))
