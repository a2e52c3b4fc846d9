"""Restoration: the posterior against Gaussians that are known, and what must not change."""

import math

import numpy as np
import pytest
import torch
from checks import holds_on_a_fresh_seed, student_limit
from conftest import small_model
from torch import nn

from sance_audio import AudioEBM, holes, restoration
from sance_audio.energy import ReferencedEnergy
from sance_audio.features import LogMel
from sance_audio.holes import FADE, Hole, hidden_frames, splice
from sance_audio.inversion import GriffinLim
from sance_audio.reference import GaussianReference

RATE = 4000
START, END = 0.10, 0.14
HIDDEN = torch.zeros(16, dtype=torch.bool)
HIDDEN[5:9] = True


def clip(channels: int = 1, length: int = 900, seed: int = 0) -> torch.Tensor:
    wave = 0.05 * torch.randn(channels, length, generator=torch.Generator().manual_seed(seed))
    return wave if channels > 1 else wave[0]


def fitted_model(trained: bool = True) -> AudioEBM:
    """The small model, its features fitted to noise, so that it expects such levels."""
    model = small_model(trained)
    model.features.fit(model.features.log_mel(clip(8, model.window)))
    return model


def outside(length: int, rate: int, start: float = START, end: float = END) -> torch.Tensor:
    """Where nothing may change."""
    t = torch.arange(length) / rate
    return (t < start - FADE - 0.5 / rate) | (t >= end + FADE + 0.5 / rate)


class Quadratic(nn.Module):
    """`F(x | c) = b . x + x^T diag(a) x / 2`: with a Gaussian reference, a Gaussian."""

    def __init__(self, a: float, cells: int = 256):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.b = nn.Parameter(0.5 * torch.randn(cells, generator=g))
        self.a = nn.Parameter(a * torch.rand(cells, generator=g))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return x @ self.b + (x.square() @ self.a) / 2


def known_posterior(model: AudioEBM, x: torch.Tensor) -> torch.Tensor:
    """The exact mean of the hidden cells of a model of one component and a quadratic F."""
    known = ~HIDDEN.expand(16, 16).flatten()
    given = model.reference.each().conditional(x, known)
    mean = restoration.centres(model, x, HIDDEN)[1][0].double()
    low = given.basis[0] * (given.eigenvalues - given.remainder[:, None])
    cov = (low @ given.basis[0].T + given.remainder * torch.eye(len(low))).double()
    network = model.density.network
    precision = cov.inverse() + torch.diag(network.a[~known]).double()
    pull = torch.linalg.solve(cov, mean) - network.b[~known].double()
    return torch.linalg.solve(precision, pull).float().detach()


def quadratic_model(a: float, components: int = 1) -> AudioEBM:
    model = small_model()
    parts = model.reference.state_dict()
    reference = GaussianReference(
        *(parts[k][:components] for k in ("mean", "basis", "eigenvalues", "remainder"))
    )
    density = ReferencedEnergy(reference, Quadratic(a))
    return AudioEBM(model.features, density, frames=16, step_size=0.5).eval()


def standardised(model: AudioEBM) -> torch.Tensor:
    return model.log_mels(clip(length=960).unsqueeze(0)) / 3


@pytest.mark.parametrize("a", [0.0, 1.0])
def test_with_a_quadratic_network_the_mean_is_the_known_gaussian_s(a):
    """Of 24 independent runs the mean lies within 4 standard errors in every hidden cell."""
    model = quadratic_model(a)
    x = standardised(model)
    exact = known_posterior(model, x)

    def zscores(seed: int, scale: float = 1.0) -> torch.Tensor:
        runs = [
            restoration.infer(model, x, HIDDEN, 16, seed=1000 * seed + i, steps=40)
            for i in range(24)
        ]
        found = torch.stack([r[..., HIDDEN].flatten() for r in runs])
        # a linear F leaves no variance at all: only round-off is left
        error = (found.std(0) / math.sqrt(24)).clamp_min(1e-5)
        return (found.mean(0) - scale * exact) / error

    holds_on_a_fresh_seed(zscores, df=23)
    with pytest.raises(AssertionError):  # a planted error of 5 %
        holds_on_a_fresh_seed(lambda seed: zscores(seed, 1.05), df=23)


def test_the_limit_of_few_runs_has_the_tails_of_student_s_distribution():
    for df, quantile in ((1, 12.7062047), (5, 2.5705818), (23, 2.0686576), (199, 1.9719565)):
        assert student_limit(1.9599640, df) == pytest.approx(quantile, abs=1e-5)
    for df, quantile in ((2, 125.64113), (7, 8.466925), (23, 4.876701), (199, 4.087070)):
        assert student_limit(4.0, df) == pytest.approx(quantile, rel=1e-5)
    scores = torch.tensor([4.5, -4.5])
    holds_on_a_fresh_seed(lambda seed: scores, df=23)
    for options in ({}, {"df": 199}):
        with pytest.raises(AssertionError, match="z-scores"):
            holds_on_a_fresh_seed(lambda seed: scores, **options)


@pytest.mark.parametrize("fault", ["sign", "mask", "covariance"])
def test_planted_faults_of_the_posterior_are_caught(fault, monkeypatch):
    """The network's pull the wrong way round, a mask a frame off, another covariance."""
    model = quadratic_model(1.0)
    x = standardised(model)
    exact = known_posterior(model, x)
    if fault == "sign":
        moved = restoration._moved
        monkeypatch.setattr(restoration, "_moved", lambda *a: -moved(*a))
    if fault == "covariance":
        monkeypatch.setattr(
            restoration, "_moved", lambda chains, given: chains.mean_grad.mean(0) * 0.1
        )
    hidden = HIDDEN.roll(1) if fault == "mask" else HIDDEN

    def zscores(seed: int) -> torch.Tensor:
        runs = [restoration.infer(model, x, hidden, 8, seed=seed + i, steps=20) for i in range(8)]
        found = torch.stack([r[..., hidden].flatten() for r in runs])
        return (found.mean(0) - exact) / (found.std(0) / math.sqrt(8)).clamp_min(1e-5)

    with pytest.raises(AssertionError):
        holds_on_a_fresh_seed(zscores, df=7)


def test_draws_have_the_posterior_s_mean_and_are_cleaned():
    model = quadratic_model(1.0)
    x = standardised(model)
    exact = known_posterior(model, x)

    def zscores(seed: int) -> torch.Tensor:
        draws = [
            restoration.infer(model, x, HIDDEN, 1, draw=True, seed=1000 * seed + i, steps=20)
            for i in range(200)
        ]
        found = torch.stack([r[..., HIDDEN].flatten() for r in draws])
        return (found.mean(0) - exact) / (found.std(0) / math.sqrt(200))

    holds_on_a_fresh_seed(zscores, df=199)


def test_without_a_network_the_mean_is_the_reference_s_exactly():
    """Over all components, whatever the chains; of a class, its component's."""
    model = small_model(trained=False)
    x = standardised(model)
    weight, m = restoration.centres(model, x, HIDDEN)
    for options in ({"reference_only": True}, {"seed": 1}, {"seed": 2}):
        found = restoration.infer(model, x, HIDDEN, 4, steps=2, **options)
        assert torch.equal(found[..., HIDDEN].flatten(), weight @ m)
        assert torch.equal(found[..., ~HIDDEN], x[..., ~HIDDEN])
    for y in range(3):
        found = restoration.infer(model, x, HIDDEN, 4, label=y, steps=2)
        torch.testing.assert_close(found[..., HIDDEN].flatten(), m[y])


def test_centres_are_the_dense_formulas_with_what_goes_on():
    """A component's mean given noisy cells, by solving; and of what that leaves, band by band."""
    model = small_model(trained=False)
    x, known = standardised(model), ~HIDDEN.expand(16, 16).flatten()
    alone = restoration.centres(model, x, HIDDEN, spread=0.0, memory=0.0)
    every = model.reference.each()
    torch.testing.assert_close(alone[1], every.conditional(x, known).mean, rtol=1e-4, atol=1e-5)
    evidence = every.log_marginal(x, known) + model.reference.weight.log()
    torch.testing.assert_close(alone[0], evidence.softmax(0))

    _, m = restoration.centres(model, x, HIDDEN)
    lag = (torch.arange(16)[:, None] - torch.arange(16)).abs() * 64 / RATE
    memory = torch.exp(-lag / restoration.MEMORY)
    seen = memory[~HIDDEN][:, ~HIDDEN] + restoration.ROUGH * torch.eye(12)
    for c in range(3):
        u, lam, s = (
            model.reference.state_dict()[k][c] for k in ("basis", "eigenvalues", "remainder")
        )
        cov = u @ torch.diag(lam - s) @ u.T
        noisy = cov[known][:, known] + (s + restoration.SPREAD) * torch.eye(int(known.sum()))
        mean = model.reference.mean[c]
        fitted = mean + cov[:, known] @ torch.linalg.solve(noisy, x.flatten()[known] - mean[known])
        left = (x.flatten() - fitted).view(16, 16)[:, ~HIDDEN]
        onward = left @ torch.linalg.solve(seen, memory[~HIDDEN][:, HIDDEN])
        expected = (fitted.view(16, 16)[:, HIDDEN] + onward).flatten()
        torch.testing.assert_close(m[c], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_changes_outside_to_the_bit(dtype):
    model = fitted_model()
    for channels, rate in ((1, RATE), (2, RATE), (2, 11025), (1, 3000)):
        wave = clip(channels, 3 * rate).to(dtype)
        done = model.restore(wave, rate, START, END, 2)
        far = outside(3 * rate, rate)
        assert done.shape == wave.shape
        assert done.dtype == dtype
        assert torch.equal(done[..., far], wave[..., far])
        assert not torch.equal(done, wave)
        assert torch.isfinite(done).all()
        assert (3 * rate - int(far.sum())) / rate == pytest.approx(
            END - START + 2 * FADE, abs=0.001
        )


@pytest.mark.parametrize("fault", ["scaled", "wide", "early", "rounded"])
def test_planted_faults_outside_are_caught(fault, monkeypatch):
    """The whole clip scaled with its filling, too wide a fade, a hole a little early, another
    type in between.
    """
    find, restore = restoration.find_hole, restoration.restore

    def faulty(*arguments, **options):
        done = restore(*arguments, **options)
        out = done.waveform
        changed = {"scaled": (1 - 1e-6) * out, "rounded": out.half().to(out.dtype)}
        return done._replace(waveform=changed.get(fault, out))

    monkeypatch.setattr(restoration, "restore", faulty)
    if fault == "wide":
        monkeypatch.setattr(holes, "FADE", 1.1 * FADE)
    if fault == "early":
        monkeypatch.setattr(restoration, "find_hole", lambda *a: Hole(*(i - 2 for i in find(*a))))
    wave = clip()
    done = fitted_model().restore(wave, RATE, START, END, 2)
    assert not torch.equal(done[outside(900, RATE)], wave[outside(900, RATE)])


def test_what_stands_in_the_hole_does_not_matter():
    model, wave = fitted_model(), clip()
    spoilt = wave.clone()
    spoilt[round(START * RATE) : round(END * RATE)] = torch.nan
    assert torch.equal(
        model.restore(wave, RATE, START, END, 2), model.restore(spoilt, RATE, START, END, 2)
    )


def test_a_channel_is_the_same_alone_and_a_seed_is_a_seed():
    model, wave = fitted_model(), clip(3)
    together = model.restore(wave, RATE, START, END, 3, generator=torch.Generator().manual_seed(5))
    alone = model.restore(wave[0], RATE, START, END, 3, generator=torch.Generator().manual_seed(5))
    two = model.restore(wave[:2], RATE, START, END, 3, generator=torch.Generator().manual_seed(5))
    other = model.restore(wave[0], RATE, START, END, 3, generator=torch.Generator().manual_seed(6))
    assert torch.equal(together[0], alone)
    assert torch.equal(together[:2], two)
    assert not torch.equal(other, alone)


def test_one_draw_differs_from_the_mean_and_between_seeds():
    model, wave = fitted_model(), clip()
    results = [model.restore(wave, RATE, START, END, 3)]
    for seed in (1, 2):
        g = torch.Generator().manual_seed(seed)
        results.append(model.restore(wave, RATE, START, END, 3, draw=True, generator=g))
    assert torch.pdist(torch.stack(results)).min() > 1e-3


def test_level_is_no_evidence_in_the_hole_either():
    model, wave = fitted_model(), clip()
    loud, quiet = (model.restore(g * wave, RATE, START, END, 2) / g for g in (1.0, 0.125))
    torch.testing.assert_close(loud, quiet, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "level"),
    [
        (torch.float32, 2.0**15),
        (torch.float32, 2.0**125),
        (torch.float64, 2.0**997),
        (torch.float64, 2.0**1023),
        (torch.float32, 2.0**-20),
    ],
)
def test_a_recording_of_any_level_keeps_it_in_its_filling(dtype, level):
    model, wave = fitted_model(), clip().to(dtype)
    wave = wave / wave.abs().max()
    loud = model.restore(level * wave, RATE, START, END, 2)
    assert loud.isfinite().all()
    assert torch.equal(loud[outside(900, RATE)], level * wave[outside(900, RATE)])
    normal = model.restore(wave, RATE, START, END, 2)
    torch.testing.assert_close(loud / level, normal, rtol=1e-4, atol=1e-5)


def test_a_filling_that_is_no_number_is_an_error():
    model = fitted_model()
    model.inverter.fill = lambda mel, known, *_: torch.full_like(known, math.nan)
    with pytest.raises(ValueError, match="filling is NaN or infinite"):
        model.restore(clip(), RATE, START, END, 2)
    model = fitted_model()
    model.peak = None  # levels as they are: float32 must hold their squares
    model.restore(2.0**15 * clip(), RATE, START, END, 2)
    with pytest.raises(ValueError, match=r"has a peak of .*: scale it to a peak of 1"):
        model.restore(1e300 * clip().double(), RATE, START, END, 2)


def test_a_silent_channel_is_filled_with_silence_and_the_others_as_ever():
    model, wave = fitted_model(), clip(3)
    wave[1] = 0
    wave[1, :20] = 0.1  # beyond the window all may be loud
    spoilt = wave.clone()
    spoilt[:, round(START * RATE) : round(END * RATE)] = 0.5
    for rate_of in (1, 2):
        sound = spoilt.repeat_interleave(rate_of, 1) if rate_of > 1 else spoilt
        sound[1, : 20 * rate_of] = 0.0
        done = model.restore(sound, rate_of * RATE, START, END, 2)
        assert torch.equal(done[1], torch.zeros(len(done[1])))
        alone = model.restore(sound[0], rate_of * RATE, START, END, 2)
        assert torch.equal(done[0], alone)
        assert done[2, round(START * RATE) * rate_of : round(END * RATE) * rate_of].std() > 0
    quiet = torch.zeros(2, 40_000)
    quiet[0], quiet[1, :20] = clip(length=40_000), 0.1
    done = model.restore(quiet, RATE, 5.0, 5.04, 2)
    assert torch.equal(done[1], quiet[1])


@pytest.mark.parametrize("rate", [8000.0, np.int64(8000), np.float32(8000)])
def test_a_rate_may_be_any_whole_number(rate):
    model, wave = fitted_model(), clip(length=1800)
    found = model.restore(wave, rate, START, END, 2)
    assert torch.equal(found, model.restore(wave, 8000, START, END, 2))


def test_a_hole_at_either_edge_and_in_a_long_clip():
    model = fitted_model()
    for length, start, end in ((900, 0.0, 0.05), (900, 0.175, 0.225), (40_000, 5.0, 5.04)):
        wave = clip(length=length)
        done = model.restore(wave, RATE, start, end, 2)
        far = outside(length, RATE, start, end)
        assert torch.equal(done[far], wave[far])
        hole = slice(round(start * RATE), round(end * RATE))
        assert done[hole].abs().max() > 0
        far_away = wave.clone()
        if length > 10_000:  # beyond the window only the peak counts
            far_away[:8000] *= 0.5
            assert torch.equal(model.restore(far_away, RATE, start, end, 2)[hole], done[hole])


@pytest.mark.parametrize("rate", [RATE, 8000, 11025, 3000])
def test_what_is_taken_to_the_model_s_rate_comes_back_in_its_place(rate):
    """A mistake of a sample would show: a tone moves by 0.2 within one."""
    tone = 0.3 * torch.sin(2 * math.pi * 400 * torch.arange(rate) / rate)
    hole = Hole(round(0.4 * rate), round(0.45 * rate))
    place = holes.view(hole, rate, rate, RATE, 960)
    assert 0 < place.hole.first < place.hole.stop < 960
    assert (place.hole.stop - place.hole.first) / RATE == pytest.approx(0.05, abs=3 / RATE)
    part = Hole(place.first + rate // 50, hole.first - rate // 100)
    back = place.give(place.take(tone, hole), part)
    torch.testing.assert_close(back, tone[part.first : part.stop], rtol=0, atol=0.01)
    shifted = place.give(place.take(tone.roll(1), hole), part)
    assert (shifted - tone[part.first : part.stop]).abs().max() > 0.05


def test_the_filling_alone_is_scaled_and_says_so():
    wave, hole = clip(), Hole(400, 560)
    part = hole.faded(900, RATE)
    loud = torch.full((part.stop - part.first,), 4.0)
    out, gain = splice(wave, loud, hole, RATE)
    assert gain == pytest.approx(0.999 / 4)
    assert out[400:560].abs().max() <= 0.999
    assert torch.equal(out[: part.first], wave[: part.first])
    assert torch.equal(out[part.stop :], wave[part.stop :])
    assert splice(wave, 0.1 * loud, hole, RATE)[1] == 1

    model = fitted_model()
    model.inverter.fill = lambda mel, known, *_: torch.full_like(known, 9.0)
    with pytest.warns(UserWarning, match="scaled by"):
        done = model.restore(clip(), RATE, START, END, 2)
    assert done.abs().max() <= 0.999
    assert torch.equal(done[outside(900, RATE)], clip()[outside(900, RATE)])


def test_the_cross_fade_is_smooth_and_lies_outside_the_hole():
    hole, n = Hole(400, 560), 900
    part = hole.faded(n, RATE)
    assert part == (400 - 40, 560 + 40)
    out, _ = splice(torch.full((n,), 0.5), torch.zeros(part.stop - part.first), hole, RATE)
    assert (out[400:560] == 0).all()
    assert (out.diff().abs() < 0.5 * math.pi / 2 / 40 * 1.01).all()
    same, _ = splice(torch.full((n,), 0.5), torch.full((part.stop - part.first,), 0.5), hole, RATE)
    torch.testing.assert_close(same, torch.full((n,), 0.5))


def test_hidden_frames_are_those_that_see_the_hole():
    f = LogMel(RATE, n_fft=256, hop_length=64, n_mels=16)
    wave, hole = clip(length=960), Hole(400, 500)
    hidden = hidden_frames(f.window, 64, hole, 16)
    spoilt = wave.clone()
    spoilt[400:500] = 0
    change = (f(wave.unsqueeze(0)) - f(spoilt.unsqueeze(0))).abs()[0, 0].amax(0)
    assert change[~hidden].max() < 0.1
    assert (change[hidden] > 0.01).all()
    assert hidden.tolist() == [5 <= t <= 9 for t in range(16)]


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.2, 0.1, "must come before its end"),
        (0.1, 0.1, "must come before its end"),
        (math.nan, 0.1, "must be finite"),
        (0.0, math.inf, "must be finite"),
        (-0.1, 0.1, "lies outside of the clip, which lasts from 0 to 0.225 s"),
        (0.1, 0.3, "lies outside of the clip"),
        (5.0, 6.0, "lies outside of the clip"),
        (0.0, 0.225, "is the whole clip"),
        (0.1, 0.1 + 1e-6, "holds no sample"),
    ],
)
def test_holes_that_are_none(start, end, message):
    with pytest.raises(ValueError, match=message) as caught:
        fitted_model().restore(clip(), RATE, start, end)
    assert "\n" not in str(caught.value)


def test_other_mistakes():
    model, wave = fitted_model(), clip()
    spoilt = wave.clone()
    spoilt[10] = torch.inf
    silent = torch.zeros(900)
    silent[410:500] = 1.0
    long = clip(length=8000)
    at = (RATE, START, END)
    for arguments, options, message in (
        ((wave, *at, 0), {}, "n_samples and steps must be at least 1, found 0"),
        ((wave, *at), {"label": 3}, "label 3 is none of the 3 classes"),
        ((spoilt, *at), {}, "1 samples outside of the hole are NaN or infinite"),
        ((silent, *at), {}, "silent around the hole"),
        ((torch.zeros(900), *at), {}, "silent around the hole"),
        ((long, RATE, 0.1, 0.4), {}, r"the model's window is 0\.24 s long"),
        ((long, RATE, 1.0, 1.23), {}, r"no frame of the model's window of 0\.24 s"),
        ((torch.ones(900, dtype=torch.int16), *at), {}, "floating-point samples"),
        ((torch.zeros(0), *at), {}, "expected a waveform"),
        ((torch.zeros(1, 2, 900), *at), {}, "expected a waveform"),
        ((wave, 0, START, END), {}, "sample_rate"),
        ((wave, 8000.5, START, END), {}, "sample_rate must be a whole number .* found 8000.5"),
        ((wave, math.nan, START, END), {}, "sample_rate must be a whole number"),
        ((wave, "8000", START, END), {}, "sample_rate must be a whole number"),
        ((wave.to("meta"), *at), {}, "meta device, which holds no samples"),
        ((wave.unsqueeze(1), *at), {}, r"\(N,\) or \(channels, N\), found \(900, 1\)"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            model.restore(*arguments, **options)
        assert "\n" not in str(caught.value)


def test_inversion_with_known_samples_joins_at_the_edges():
    """Given the true mels of a hidden tone, the filling meets the recording on either side and has
    these mels; without the known samples its phase would be any.
    """
    f = LogMel(RATE, n_fft=256, hop_length=64, n_mels=16)
    tone = 0.3 * torch.sin(2 * math.pi * 500 * torch.arange(960) / RATE).unsqueeze(0)
    hole = Hole(400, 560)
    hidden = hidden_frames(f.window, 64, hole, 16)
    inverter, mel = GriffinLim(f, 64), f.mel(tone)
    spoilt = tone.clone()
    spoilt[:, 400:560] = torch.nan
    filled = inverter.fill(mel, spoilt, hole, hidden)
    part = hole.faded(960, RATE)
    edges = [slice(part.first, 400), slice(560, part.stop)]
    joined = max(float((filled - tone)[:, edge].abs().max()) for edge in edges)
    alone = max(float((inverter(mel) - tone)[:, edge].abs().max()) for edge in edges)
    assert joined < 0.06 < 0.2 < alone
    out, _ = splice(tone[0], filled[0, part.first : part.stop], hole, RATE)
    heard, true = f.log_mel(out.unsqueeze(0)), f.log_mel(tone)
    loud = true > true.max() - 3
    assert (heard - true)[loud].abs().mean() < 0.15
