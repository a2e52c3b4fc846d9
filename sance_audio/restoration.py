r"""Restoration: the missing part of a recording, given the rest of it, by a model of log-mels.

x, the standardised log-mel of the window, is split into the cells of frames that see the hole, u,
and the others, o. Given o and a component c, the reference is again a Gaussian of low rank plus
isotropic, `N(x_u; m_c, K_c)` (`ComponentGaussian.conditional`), and the model

    p(x_u | x_o, c) prop. to N(x_u; m_c, K_c) exp(-F(x_u, x_o | c) / tau)

so that chains run over the hidden cells alone, exact in their Gaussian part, from exact draws of
it. Because the gradient of a density integrates to zero,

    E[x_u | x_o] = sum_c p(c | x_o) m_c - E[K_c grad_u F / tau]

is the mean of x_u with its fluctuations left out. It has no variance where F = 0, and is then the
reference's mean, exactly. p(c | x_o) is the reference's: log Z of a component is not known well
enough for F to have a say in it.

A recording is not of the model: it lies further from the few directions of a component than the
clips that these were fitted to, and does so steadily. So the Gaussians see the known cells under
a further variance `SPREAD`, in m_c and p(c | x_o), and what they leave of the known cells goes on
into the hole, band by band, with a correlation of `exp(-|t - t'| / MEMORY)`, which adds to m_c.
These settings were chosen on validation clips of spoken digits; `benchmarks/restoration.py` shows
what each part is worth.

References:
    Zero variance Markov chain Monte Carlo for Bayesian estimators (Mira, Solgi & Imparato, 2013)
    Bayesian calibration of computer models (Kennedy & O'Hagan, 2001), for the discrepancy
"""

from __future__ import annotations

__all__ = ["Restored", "Filled", "restore", "fill", "infer", "invert", "centres"]

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sance_audio.audio import PEAK
from sance_audio.chunks import chunk_size, run_chunks, slices
from sance_audio.energy import FixedRegion
from sance_audio.gaussian import ComponentGaussian
from sance_audio.holes import (
    Hole,
    Known,
    View,
    find_hole,
    hidden_frames,
    known_samples,
    view,
    whole_rate,
)
from sance_audio.samplers import ReferenceLangevin, clip_seeds
from sance_audio.tracks import channels_of

SPREAD = 1.0
"""Variance of a known cell, beyond the reference's, where the Gaussians are conditioned."""
MEMORY = 0.064
"""Seconds over which what they leave of a band is remembered."""
ROUGH = 0.03
"""Share of it that is not."""
SCALED = f"so as not to pass {PEAK}, or the recording's own peak where that is higher"
"""Why a filling is."""


class Filled(NamedTuple):
    """The part of a recording that changes, as it is to be."""

    samples: Tensor
    """`(channels, n)`, float64, full scale 1."""
    changed: Hole
    """Where in the recording they belong: the hole and its cross-fades."""
    gains: list[float]
    """What each channel's filling was scaled with so as not to pass `audio.PEAK`, or the peak of
    the channel where that is higher; mostly 1.
    """


class Restored(NamedTuple):
    """A recording with its hole filled."""

    waveform: Tensor
    """`(N,)` or `(channels, N)`, of the type of what was given."""
    changed: Hole
    """The samples that may differ from the recording."""
    gains: list[float]
    """As of `Filled`."""


def restore(model: Any, waveform: Tensor, *place: Any, **options: Any) -> Restored:
    """A recording `(N,)` or `(channels, N)` with its hole filled. Arguments as of `fill`;
    `AudioEBM.restore` says how.
    """
    clip = torch.as_tensor(waveform).detach()
    done = fill(model, channels_of(clip), *place, **options)
    out = clip.clone()
    out[..., done.changed.first : done.changed.stop] = done.samples.view(*clip.shape[:-1], -1)
    return Restored(out, done.changed, done.gains)


def fill(
    model: Any,
    rows: Tensor,
    sample_rate: int,
    start: float,
    end: float,
    n_samples: int = 16,
    *,
    full_scale: float = 1.0,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Filled:
    """What is to change of a recording whose hole lies from `start` to `end`.

    Arguments:
        model: An `AudioEBM`.
        rows: `(channels, N)`, floats or integers.
        sample_rate: In Hz.
        start, end: In seconds.
        n_samples: Posterior samples that the mean is taken over.
        full_scale: What stands for 1 in the rows, a power of two.
        generator: Seed 0 when None.
        options: Of `infer`.
    """
    if min(n_samples, steps := options.get("steps", 10)) < 1:
        raise ValueError(f"n_samples and steps must be at least 1, found {n_samples} and {steps}")
    model.reference.log_weight(options.get("label"))  # an unknown class is an error
    n, rate = rows.shape[1], whole_rate(sample_rate)
    hole = find_hole(start, end, n, rate)
    place = view(hole, n, rate, model.sample_rate, model.window)
    known = [known_samples(row, hole, place, model.peak, full_scale) for row in rows]
    _refuse_silence(model, known)
    seeds = clip_seeds(generator, len(rows))

    def one(which: slice) -> tuple[Tensor, float]:
        own, seed = known[which.start], seeds[which.start]
        if own.silent:
            return own.filled(None)
        return own.filled(_sound(model, own.wave, place, n_samples, seed=seed, **options))

    done = run_chunks(one, slices(len(rows), 1), parallel=model.device.type == "cpu")
    samples, gains = zip(*done, strict=True)
    return Filled(torch.stack(samples), hole.faded(n, rate), list(gains))


def _refuse_silence(model: Any, known: list[Known]) -> None:
    if all(own.silent for own in known):
        raise ValueError(
            f"all is silent around the hole, in the {model.window / model.sample_rate:g} s that "
            f"the model sees: there is nothing to go on"
        )


def _sound(
    model: Any, wave: Tensor, place: View, n_samples: int, *, seed: int, **options: Any
) -> Tensor:
    """A window `(window,)` with its hole filled, from the known samples `(window,)`."""
    f = model.features
    hidden = hidden_frames(f.window, f.hop_length, place.hole, model.frames)
    if bool(hidden.all()):
        raise ValueError(
            f"the hole leaves no frame of the model's window of {model.window / f.sample_rate:g} "
            f"s in sight: choose one shorter by {f.n_fft / f.sample_rate:g} s at least"
        )
    x = model.log_mels(wave.unsqueeze(0))
    if not bool(x.isfinite().all()):
        raise ValueError(
            f"around the hole the recording has a peak of {float(wave.abs().max()):g}, of which "
            f"the model's features cannot be taken: scale it to a peak of 1"
        )
    x = infer(model, x, hidden, n_samples, seed=seed, **options)
    return invert(model, x, hidden, wave, place.hole, seed)


def invert(
    model: Any, x: Tensor, hidden: Tensor, wave: Tensor, hole: Hole, seed: int = 0
) -> Tensor:
    """A window `(window,)` with the log-mels x `(1, 1, M, T)` in its hidden frames, and close to
    the samples of `wave` `(window,)` outside of the hole.
    """
    phases = [torch.Generator(x.device).manual_seed(seed)]
    mel = model.features.to_mel(x, model.silence)
    known = wave.unsqueeze(0).to(x.device)
    return model.inverter.fill(mel, known, hole, hidden, phases)[0]


@torch.no_grad()
def infer(
    model: Any,
    x: Tensor,
    hidden: Tensor,
    n_samples: int = 16,
    *,
    draw: bool = False,
    label: int | None = None,
    seed: int = 0,
    steps: int = 10,
    reference_only: bool = False,
) -> Tensor:
    """x with its hidden frames as the model expects them: their mean, or one draw.

    Arguments:
        model: An `AudioEBM`.
        x: `(1, 1, M, T)`, a clean log-mel.
        hidden: `(T,)`, boolean: the frames to infer; what stands there does not matter.
        n_samples: Chains; one, for a draw.
        draw: One draw of the posterior, cleaned, instead of its mean.
        label: Class that the recording is of, where it is known.
        seed: Of all that is random.
        steps: Metropolis steps of each chain before any is counted, and again as many that are.
        reference_only: F = 0: the mean takes no chains.
    """
    weight, m = centres(model, x, hidden, label)
    free = hidden.expand(model.shape)
    z = weight @ m
    if draw or not reference_only:
        g = torch.Generator(x.device).manual_seed(seed)
        c = _divide(weight, 1 if draw else n_samples, g)
        given = model.density.base.given(c).conditional(x, ~free.flatten())
        given.mean = m[c]
        steps = 0 if reference_only else steps
        chains = _run(model, x, free, c, given, steps, g)
        z = _cleaned(model, chains, given) if draw else z - _moved(chains, given)
    return x.masked_scatter(free, z.to(x.dtype))


def centres(
    model: Any,
    x: Tensor,
    hidden: Tensor,
    label: int | None = None,
    *,
    spread: float = SPREAD,
    memory: float = MEMORY,
) -> tuple[Tensor, Tensor]:
    """p(c | x_o) `(C,)`, and m_c of the hidden cells `(C, U)`, with what goes on into the hole.

    Arguments as of `infer`; with a spread and memory of 0, they are the reference's alone.
    """
    known = ~hidden.expand(model.shape).flatten()
    every = model.density.base.each()
    log_weight = model.reference.log_weight(label)
    weight = (every.log_marginal(x, known, spread) + log_weight).softmax(0)
    m = every.fitted(x, known, spread)
    left = (x.flatten(1) - m).unflatten(1, model.shape)[..., ~hidden]
    frame = model.features.hop_length / model.features.sample_rate
    onward = left @ _onward(hidden, memory / frame).to(left.dtype)
    return weight, m[:, ~known] + onward.flatten(1)


def _onward(hidden: Tensor, memory: float) -> Tensor:
    """What the known frames say of the hidden ones, `(T_o, T_u)`, under a correlation of
    `exp(-|t - t'| / memory)`, in frames, and a share `ROUGH` that is not correlated.
    """
    t = torch.arange(len(hidden), dtype=torch.float64, device=hidden.device)
    correlation = torch.exp(-(t[:, None] - t).abs() / max(memory, 1e-9))
    known = correlation[~hidden][:, ~hidden]
    known = known + ROUGH * torch.eye(len(known), dtype=known.dtype, device=known.device)
    return torch.linalg.solve(known, correlation[~hidden][:, hidden])


class _Chains(NamedTuple):
    """Where n chains over U hidden cells ended."""

    x: Tensor
    """`(n, U)`."""
    grad: Tensor
    """`(n, U)`: of F there."""
    mean_grad: Tensor
    """`(n, U)`: over the steps that count."""


class _Learnt:
    """`z -> F(z, x_o | c) / tau` as the part of an energy that a sampler differentiates."""

    def __init__(self, density: Any, c: Tensor, x: Tensor, free: Tensor):
        self.density, self.c = density, c
        self.region = FixedRegion(lambda v: density.learnt(v, c), x, free.unsqueeze(0))

    def learnt(self, z: Tensor) -> Tensor:
        return self.region(z)

    __call__ = learnt


def _divide(weight: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Components `(n,)` by weights `(C,)`: each as often as n times its weight, to within one."""
    u = torch.rand((), generator=generator, device=weight.device)
    places = (torch.arange(n, device=weight.device) + u) / n
    return torch.searchsorted(weight.cumsum(0), places).clamp_max(len(weight) - 1)


def _run(
    model: Any,
    x: Tensor,
    free: Tensor,
    c: Tensor,
    given: ComponentGaussian,
    steps: int,
    generator: torch.Generator,
) -> _Chains:
    """Chains of the components c `(n,)`, in chunks, from exact draws of the Gaussians `given`."""
    chunk, device = chunk_size(x.device), x.device
    parts = slices(len(c), chunk)
    seeds = torch.randint(2**62, (len(parts),), generator=generator, device=device).tolist()

    def one(part: slice) -> _Chains:
        g = torch.Generator(device).manual_seed(seeds[part.start // chunk])
        own, n = given.rows(part), len(c[part])
        noise = torch.randn(n, *x.shape[1:], generator=g, device=device)
        noisy = torch.where(free, x, x + model.sigma * noise)  # as the network has learnt them
        return _walk(model, _Learnt(model.density, c[part], noisy, free), own, steps, g)

    done = run_chunks(one, parts, parallel=device.type == "cpu")
    return _Chains(*map(torch.cat, zip(*done, strict=True)))


def _walk(
    model: Any, energy: _Learnt, given: ComponentGaussian, steps: int, g: torch.Generator
) -> _Chains:
    """Twice `steps` Metropolis steps, the gradient of F averaged over the second half."""
    sampler = ReferenceLangevin(given, model.step_size, model.cap, adjusted=True)
    noise = torch.randn(given.mean.shape, generator=g, device=given.mean.device)
    start = given.colour(noise)
    if steps == 0:
        return _Chains(start, torch.zeros_like(start), torch.zeros_like(start))
    state, total = sampler.init(energy, start), torch.zeros_like(start)
    for k in range(2 * steps):
        state, _ = sampler.step(energy, state, g)
        if k >= steps:
            total = total + state.grad / steps
    return _Chains(state.x, state.grad, total)


def _moved(chains: _Chains, given: ComponentGaussian) -> Tensor:
    """`E[K_c grad F]`, `(U,)`."""
    along, elsewhere = given.eigenvalues.unsqueeze(1), given.remainder.unsqueeze(1)
    return given.spectral(chains.mean_grad.unsqueeze(1), along, elsewhere).mean(0)


def _cleaned(model: Any, chains: _Chains, given: ComponentGaussian) -> Tensor:
    """The first chain, cleaned by Tweedie's formula: `(U,)`."""
    along, elsewhere = 1 / given.eigenvalues.unsqueeze(1), 1 / given.remainder.unsqueeze(1)
    pull = given.spectral((chains.x - given.mean).unsqueeze(1), along, elsewhere)
    return (chains.x - model.sigma**2 * (pull + chains.grad))[0]
