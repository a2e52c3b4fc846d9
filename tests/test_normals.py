"""A model of normals alone: what it is worth, what it repeats, what it refuses."""

import tempfile

import pytest
import torch

from sance_audio import normals
from sance_audio.normals import train_on_normals
from sance_audio.reference import GaussianReference

RATE = 4000


def hums(n: int, seed: int = 0, length: int = 6000) -> list[torch.Tensor]:
    """Low-passed noise."""
    white = torch.randn(n, length + 15, generator=torch.Generator().manual_seed(seed))
    return list(white.unfold(1, 16, 1).mean(2))


def energies(model, clips) -> torch.Tensor:
    return torch.stack([model.energy(clip, RATE)[0] for clip in clips])


def test_other_sounds_have_more_energy():
    model = train_on_normals(hums(6), RATE, preset="smoke")
    white = torch.randn(6, 6000, generator=torch.Generator().manual_seed(1))
    usual, odd = energies(model, hums(6, seed=1)), energies(model, white)
    assert torch.cat([usual, odd]).isfinite().all()
    assert odd.min() > usual.max()
    assert model.labels == ()
    assert not model.training
    assert bool((model.density.network.head.weight != 0).any()), "the network has learnt"


def test_the_same_seed_gives_the_same_model_and_nothing_is_left_behind(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = torch.get_rng_state()
    first, again, other = (
        train_on_normals(hums(3), RATE, preset="smoke", seed=seed).state_dict()
        for seed in (0, 0, 1)
    )
    head = "density.network.head.weight"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[head], other[head])
    assert torch.equal(torch.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("length", [1, 2, 10])
def test_clips_of_a_few_samples(length):
    clips = list(torch.randn(5, length, generator=torch.Generator().manual_seed(0)))
    model = train_on_normals(clips, 16000, preset="smoke")
    x = model.log_mels(torch.cat([model.windows(clip) for clip in clips]))
    assert model.energy_of(x).isfinite().all()
    modelled, residual = model.reference.given(model.component_of(x)).parts(x + model.jitter)
    assert torch.cat([modelled, residual]).log().isfinite().all()


def test_a_window_is_a_second_or_the_median_clip():
    for length, frames in ((600, 16), (1900, 32), (40000, 64)):
        clips = hums(3, length=length)
        model = train_on_normals(clips, RATE, preset="smoke")
        assert model.frames == frames, length
        assert (model.features.n_fft, model.features.hop_length) == (256, 64)
    for rate in (500, 1000, 8000, 11025):
        assert normals._features(rate, hums(2))[0].n_mels >= 16, rate


def test_silent_windows_and_clips_are_passed_over():
    half = torch.cat([hums(1)[0], torch.zeros(20000)])
    features, frames = normals._features(RATE, [half])
    heard = normals._log_mels([half, torch.zeros(9000)], features, frames)
    assert len(heard) == 3  # of half windows at 0, .5 and 1 s


def test_the_reference_knows_the_variance_of_rows_it_has_not_seen():
    """(x - mu)^T C^-1 (x - mu) of new rows is D on average, though n < D."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(256, 20, generator=g))[0]

    def draw(n: int) -> torch.Tensor:
        return 3 * torch.randn(n, 20, generator=g) @ basis.T + 0.3 * torch.randn(
            n, 256, generator=g
        )

    x, new = draw(48), draw(400)
    ours = normals._reference(x, 32)
    fitted = GaussianReference.fit(x, rank=6, sigma=normals.SIGMA)[0]
    c = torch.zeros(len(new), dtype=torch.long)
    new = new + normals.SIGMA * torch.randn(new.shape, generator=g)
    assert ours.basis.shape[2] == 6
    assert sum(ours.given(c).parts(new)).mean() == pytest.approx(256, rel=0.12)
    assert sum(fitted.given(c).parts(new)).mean() > 1.3 * 256
    assert ours.log_prob(new, c).mean() > fitted.log_prob(new, c).mean()
    for n in (2, 3, 5):
        basis = normals._reference(x[:n], 32).basis[0]
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5), n


def test_what_cannot_be_trained_on_is_refused():
    hum = hums(2)
    refused = {
        "preset": (hum, RATE, "large"),
        "sample_rate": (hum, 44100, "smoke"),
        "0 clips hold 0 windows": ([], RATE, "smoke"),
        "clip 1: expected a waveform": ([hum[0], hum[1].reshape(2, -1)], RATE, "smoke"),
        "clip 0: .* 6000 samples NaN": ([hum[0] * torch.nan, hum[1]], RATE, "smoke"),
        "hold 0 windows that are not silent": ([torch.zeros(100)] * 3, RATE, "smoke"),
        "hold 1 windows": ([hum[0][:2000]], RATE, "smoke"),
        "2 normal clips are all the same": ([hum[0], hum[0]], RATE, "smoke"),
    }
    for words, (clips, rate, preset) in refused.items():
        with pytest.raises(ValueError, match=words):
            train_on_normals(clips, rate, preset=preset)
