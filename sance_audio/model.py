r"""`AudioEBM`: features, energy and inverter as one object.

    E(x | c) = -log N(x; mu_c, C_c) + F(x | c)
    p(x | c) = exp(-E(x | c) / tau) / Z_c,    p(x | y) = sum_{c in y} p(c | y) p(x | c)

x is a standardised log-mel of the model's window `(M, T)`, dequantised with Gaussian noise of
standard deviation sigma; c a component of the reference, y a class. Energies that are given to
users are `-log p(x | y)`, or `-log p(x)` without a label, with log Z_c as estimated after
training.
"""

from __future__ import annotations

__all__ = ["AudioEBM"]

import functools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sance_audio import audio, generation, pretrained, restoration
from sance_audio.chunks import chunk_size, chunked
from sance_audio.energy import EnergyModel, LogProb, ReferencedEnergy
from sance_audio.features import LogMel
from sance_audio.inversion import GriffinLim
from sance_audio.labels import LabelNetwork, truncated
from sance_audio.networks import spread
from sance_audio.samplers import Compute, clip_seeds


class AudioEBM(EnergyModel):
    """An energy-based model of clips.

    Arguments:
        features: `LogMel`, fitted.
        energy: Reference plus network.
        labels: Names of the classes, in order; `()` for an unlabelled model.
        frames: Frames T of the window.
        sigma: Standard deviation of the dequantisation noise.
        peak: Peak that every clip is scaled to before its features are taken, so that level is no
            evidence; None leaves levels as they are.
        step_size: eps of the sampler.
        cap: Its cap.
        steps: Langevin steps of a generated clip, from the reference.
        sampling_temperature: Of generated clips: below 1, likelier and less varied ones.
        truncation: Share of recordings less surely recognised than generated clips are (`labels`);
            0 keeps every clip.
        silence: Cells this close to the log floor, in nats, are inverted as silence.
        n_iter: Iterations of the inversion.
    """

    jitter: Tensor
    sureness: Tensor
    """log q(y | x) of held-out recordings, ascending; empty without a label network."""
    compute: Compute
    """How Langevin steps are computed, as measured (`tuning`); saved and loaded."""

    def __init__(
        self,
        features: LogMel,
        energy: ReferencedEnergy,
        labels: Sequence[str] = (),
        *,
        frames: int,
        sigma: float = 0.2,
        peak: float | None = 0.5,
        step_size: float = 0.1,
        cap: float = 1.0,
        steps: int = 200,
        silence: float = 0.3,
        n_iter: int = 32,
        sampling_temperature: float = 1.0,
        truncation: float = 0.0,
    ):
        super().__init__(energy, sigma)
        self.features, self.labels = features, tuple(labels)
        self.frames, self.peak = frames, peak
        self.step_size, self.cap, self.steps, self.silence = step_size, cap, steps, silence
        self.sampling_temperature, self.truncation = sampling_temperature, truncation
        self.label_network: LabelNetwork | None = None
        self.register_buffer("sureness", torch.empty(0))
        self.inverter = GriffinLim(features, n_iter)
        self.compute = Compute()
        if labels and len(labels) != self.reference.n_classes:
            raise ValueError(f"{len(labels)} labels for {self.reference.n_classes} classes")
        noise = torch.randn(1, 1, *self.shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("jitter", sigma * noise, persistent=False)

    @property
    def shape(self) -> tuple[int, int]:
        """`(M, T)` of the window."""
        return self.features.n_mels, self.frames

    @property
    def sample_rate(self) -> int:
        return self.features.sample_rate

    @property
    def truncates(self) -> bool:
        """Whether clips that are not recognised surely enough are drawn anew."""
        return self.label_network is not None and self.truncation > 0

    @property
    def window(self) -> int:
        """Samples in the model's window; the length of a generated clip."""
        return self.features.length(self.frames)

    # From waveforms to energies

    def windows(self, waveform: Tensor) -> Tensor:
        """One clip `(N,)` as windows `(W, window)`, scaled to `peak` (`audio.windows`)."""
        return audio.windows(waveform, self.window, self.peak)

    def log_mels(self, waveforms: Tensor) -> Tensor:
        """Standardised log-mels `(B, 1, M, T)` of windows `(B, window)`, in chunks."""
        return chunked(self.features, waveforms.to(self.device), size=chunk_size(self.device))

    @torch.no_grad()
    def energy_of(
        self, x: Tensor, label: int | None = None, reference_only: bool = False
    ) -> Tensor:
        """Energies `(B,)`, in nats, of log-mels `(B, 1, M, T)`: -log p(x | label), or -log p(x).

        x is dequantised with the same noise for every row, so that energies compare.
        """
        log_weight = self.reference.log_weight(label)
        marginal = self.density.reference_marginal if reference_only else self.density.marginal
        x = x.to(self.device)
        return chunked(
            lambda rows: marginal(rows + self.jitter, log_weight), x, size=chunk_size(self.device)
        )

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """log p(y | x) `(B, classes)` of log-mels `(B, 1, M, T)`."""
        x = x.to(self.device)
        posterior = self.density.posterior
        return chunked(lambda rows: posterior(rows + self.jitter), x, size=chunk_size(self.device))

    def energy(self, waveform: Tensor, sample_rate: int, label: int | None = None) -> Tensor:
        """Energy of each clip, in nats: low is likely.

        Arguments:
            waveform: `(B, N)` or `(N,)`.
            sample_rate: In Hz; other rates than the model's are resampled.
            label: Class index, for -log p(x | y); None for -log p(x).

        Returns:
            `(B,)`: the mean over windows, for clips longer than one.
        """
        windows = [self.windows(clip) for clip in self._clips(waveform, sample_rate)]
        energies = self.energy_of(self.log_mels(torch.cat(windows)), label)
        return torch.stack([part.mean() for part in energies.split([len(w) for w in windows])])

    @torch.no_grad()
    def log_prob(self, waveform: Tensor, sample_rate: int, label: int | None = None) -> LogProb:
        """Log density of each clip's log-mel, with its error. Arguments as of `energy`.

        It is the density of the standardised, dequantised log-mel, `M T` numbers a window; its
        error is that of log Z (NaN where a model was saved without one). Of a clip of several
        windows, the mean over them.
        """
        windows = [self.windows(clip) for clip in self._clips(waveform, sample_rate)]
        log_weight = self.reference.log_weight(label)

        def one(rows: Tensor) -> Tensor:
            return torch.stack(self.density.log_prob(rows + self.jitter, log_weight), 1)

        x = self.log_mels(torch.cat(windows))
        found = chunked(one, x, size=chunk_size(self.device)).split([len(w) for w in windows])
        nats, error = torch.stack([part.mean(0) for part in found]).unbind(1)
        return LogProb(nats, error, -nats / (math.prod(self.shape) * math.log(2)))

    @torch.no_grad()
    def energy_map(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Where the network's energy sits: `(B, M, T)`, summing to F of the first window."""
        clips = self._clips(waveform, sample_rate)
        x = self.log_mels(torch.cat([self.windows(clip)[:1] for clip in clips]))
        network: Any = self.density.network
        coarse = network.map(x + self.jitter, self.component_of(x)) / self.density.temperature
        covered: Any = getattr(network, "covered", tuple)(self.shape)
        return spread(coarse, covered)[:, : self.shape[0], : self.shape[1]]

    def component_of(self, x: Tensor) -> Tensor:
        """The likeliest component `(B,)` of log-mels under the reference."""
        log_weight = self.reference.weight.log()

        def one(rows: Tensor) -> Tensor:
            return (self.density.base.log_prob_all(rows + self.jitter) + log_weight).argmax(1)

        return chunked(one, x.to(self.device), size=chunk_size(self.device))

    def _clips(self, waveform: Tensor, sample_rate: int) -> list[Tensor]:
        """The clips `(N,)` of a batch, at the model's rate, on its device."""
        clips = audio.batch(waveform)
        return [audio.resample(c, sample_rate, self.sample_rate).to(self.device) for c in clips]

    # From noise to waveforms

    def draw(
        self, classes: Sequence[int], seeds: Sequence[int], steps: int | None = None, **how: Any
    ) -> tuple[Tensor, Tensor]:
        """Cleaned log-mels `(B, 1, M, T)` of the given classes and their components `(B,)`: exact
        samples of the reference, moved by Langevin dynamics, and drawn anew where they are not
        recognised surely enough. Arguments as of `generation.draw`, and `truncation`; what is None
        is the model's own, for the reference alone temperature 1 and no truncation.

        Raises:
            ValueError: a truncation outside [0, 1), or of a model that cannot recognise labels.
        """
        alone = how.get("reference_only", False)
        least = self._least(how.pop("truncation", None), alone)
        own = 1.0 if alone else self.sampling_temperature
        how["temperature"] = own if how.get("temperature") is None else how["temperature"]
        how |= {"steps": self.steps if steps is None else steps, "compute": self.compute}
        how |= {"step_size": self.step_size, "cap": self.cap}
        draw: Any = functools.partial(generation.draw, self, **how)
        if least is None or self.label_network is None:
            return draw(classes, seeds)
        return truncated(draw, self.label_network, classes, seeds, least, chunk_size(self.device))

    def _least(self, share: float | None, alone: bool) -> float | None:
        """The least log q(y | x) of a clip that is kept; None where all are."""
        own = self.truncation if self.truncates and not alone else 0.0
        share = own if share is None else share
        if not 0 <= share < 1:
            raise ValueError(f"the truncation is a share from 0 to less than 1, found {share}")
        if share == 0:
            return None
        if self.label_network is None:
            raise ValueError("no label network to truncate by: train with --truncation")
        return float(self.sureness.quantile(share))

    def invert(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Log-mels `(B, 1, M, T)` to waveforms `(B, window)`; first phases seeded per clip."""
        numbers = torch.tensor([0] * len(x) if seeds is None else seeds, dtype=torch.long)

        def one(rows: Tensor, own: Tensor) -> Tensor:
            generators = [torch.Generator(rows.device).manual_seed(s) for s in own.tolist()]
            return self.inverter(self.features.to_mel(rows, self.silence), generator=generators)

        size = 1 if x.device.type == "cpu" else chunk_size(x.device)
        return chunked(one, x, numbers, size=size)

    def classes(self, n: int, label: int | None = None) -> list[int]:
        """Classes of n clips: one, or all in balanced turn."""
        if label is not None:
            self.reference.log_weight(label)  # an unknown class is an error
            return [label] * n
        return [i % self.reference.n_classes for i in range(n)]

    def generate(
        self,
        n: int,
        generator: torch.Generator | None = None,
        label: int | None = None,
        *,
        steps: int | None = None,
        temperature: float | None = None,
        truncation: float | None = None,
        reference_only: bool = False,
    ) -> Tensor:
        """New clips `(n, window)` at the model's sample rate, classes in balanced turn unless
        `label` is given.

        Clip i of a generator's seed is the same whatever n. Seed 0 when there is no generator.
        Other arguments as of `draw`.
        """
        if n < 1:
            raise ValueError(f"the number of clips must be at least 1, found {n}")
        seeds = clip_seeds(generator, n)
        how: Any = {"temperature": temperature, "truncation": truncation}
        how["reference_only"] = reference_only
        x, _ = self.draw(self.classes(n, label), seeds, steps, **how)
        return self.invert(x, seeds)

    # What is missing, from what is there

    def restore(
        self,
        waveform: Tensor,
        sample_rate: int,
        start: float,
        end: float,
        n_samples: int = 16,
        *,
        draw: bool = False,
        label: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A recording with its hole `[start, end)` filled: with the mean of the model's posterior
        given the rest of the window around it, or one draw, inverted so that phases join.

        All samples beyond 10 ms of the hole are those given, to the bit; in these 10 ms the
        recording gives way to the filling (`holes`). What stands in the hole does not matter. A
        filling that would pass a peak of .999, or the recording's own if higher, is scaled down,
        alone, with a warning. It has nothing above half the model's rate.

        Arguments:
            waveform: `(N,)`, or channels `(C, N)`, each on its own, silent ones with silence.
            sample_rate: In Hz.
            start: Where the hole begins, in seconds.
            end: Where it ends; at most what leaves some of the model's window around it.
            n_samples: Posterior samples that the mean is taken over.
            draw: One of them instead: livelier, and further off on average.
            label: Class index, where it is known.
            generator: Seed 0 when None; channel i is the same however many there are.

        Raises:
            ValueError: a hole that is none, outside of the clip, all of it, or too long for the
                window; silence in all channels or non-finite samples around it; an unknown class.
        """
        place = waveform, sample_rate, start, end, n_samples
        done = restoration.restore(self, *place, draw=draw, label=label, generator=generator)
        if min(done.gains) < 1:
            warnings.warn(
                f"the filling was scaled by {min(done.gains):.3g}: {restoration.SCALED}",
                stacklevel=2,
            )
        return done.waveform

    # To disk and back

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but tensors."""
        return pretrained.settings_of(self)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `model.safetensors`, weights and every setting, into `folder`, atomically."""
        return pretrained.save(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device = "cpu", network: Any = None
    ) -> AudioEBM:
        """Load a model from a run folder, a `model.safetensors`, or the hub (`hf:owner/name`);
        `network`, its network's class where it is not one of this package, is made from the
        `settings` it had.

        Raises:
            WeightsError: nothing there, another kind of file, another version, or weights that are
                not finite.
        """
        return pretrained.load(cls, path, network).eval().to(device)
