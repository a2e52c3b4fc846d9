r"""Log-mel spectrograms: waveform to standardised log-mel, and back to mel magnitude.

    mel = (W |STFT(waveform)|^p)          (M, T), W the mel filterbank (M, n_fft / 2 + 1)
    x = (log max(mel, floor) - mean) / std

Everything that decides x is an argument or a buffer of `LogMel`, so a checkpoint that holds the
module holds the features. Frames are centred: a waveform of N samples has
`T = 1 + N // hop_length` frames.
"""

from __future__ import annotations

__all__ = ["LogMel"]

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class LogMel(nn.Module):
    """Standardised log-mel spectrogram, equal to librosa's and torchaudio's mel spectrograms
    before the logarithm.

    Arguments:
        sample_rate: In Hz.
        n_fft: Window and transform length, in samples (a periodic Hann window).
        hop_length: Samples from one frame to the next.
        n_mels: Number of mel bands M.
        f_min: Lower edge of the first band, in Hz.
        f_max: Upper edge of the last band, in Hz; half the sample rate when None.
        mel_scale: "slaney" or "htk".
        norm: "slaney" (each band's area is constant) or None (peaks of 1).
        power: 1 for magnitudes, 2 for power.
        floor: Smallest mel value before the logarithm.
        pad_mode: What stands before and after the waveform: "constant" (silence, as librosa) or
            "reflect" (as torchaudio).

    Raises:
        ValueError: an impossible setting; a mel band without a single frequency bin (it would be
            constant).
    """

    mean: Tensor
    std: Tensor
    window: Tensor
    filterbank: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        hop_length: int = 256,
        n_mels: int = 80,
        f_min: float = 0.0,
        f_max: float | None = None,
        mel_scale: str = "slaney",
        norm: str | None = "slaney",
        power: float = 1.0,
        *,
        floor: float = 1e-4,
        pad_mode: str = "constant",
    ):
        super().__init__()
        f_max = sample_rate / 2 if f_max is None else f_max
        for name, value, good in (
            ("sample_rate", sample_rate, sample_rate >= 1),
            ("n_fft", n_fft, n_fft >= 2),
            ("hop_length", hop_length, 1 <= hop_length <= n_fft),
            ("n_mels", n_mels, n_mels >= 1),
            ("f_min", f_min, 0 <= f_min < f_max),
            ("f_max", f_max, f_min < f_max <= sample_rate / 2),
            ("mel_scale", mel_scale, mel_scale in ("slaney", "htk")),
            ("norm", norm, norm in ("slaney", None)),
            ("power", power, power > 0),
            ("floor", floor, floor > 0),
            ("pad_mode", pad_mode, pad_mode in ("constant", "reflect")),
        ):
            if not good:
                raise ValueError(
                    f"LogMel: {name}={value!r} is impossible with {sample_rate=} {n_fft=}"
                )
        self.sample_rate, self.n_fft, self.hop_length, self.n_mels = (
            sample_rate,
            n_fft,
            hop_length,
            n_mels,
        )
        self.f_min, self.f_max, self.mel_scale, self.norm = f_min, f_max, mel_scale, norm
        self.power, self.floor, self.pad_mode = power, floor, pad_mode
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("filterbank", self._filterbank(), persistent=False)

    def _filterbank(self) -> Tensor:
        import warnings

        from librosa.filters import mel

        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # librosa warns of empty filters; below they are an error
            weights = torch.from_numpy(
                mel(
                    sr=self.sample_rate,
                    n_fft=self.n_fft,
                    n_mels=self.n_mels,
                    fmin=self.f_min,
                    fmax=self.f_max,
                    htk=self.mel_scale == "htk",
                    norm="slaney" if self.norm else None,
                )
            ).float()
        empty = (weights.amax(1) <= 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"LogMel: {len(empty)} of {self.n_mels} mel bands (first: band {empty[0]}) "
                f"contain no frequency bin at "
                f"{self.sample_rate} Hz with n_fft={self.n_fft}; use fewer n_mels, a larger "
                f"n_fft or a higher f_min"
            )
        return weights

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments; with the buffers `mean` and `std`, all there is to know."""
        names = (
            "sample_rate n_fft hop_length n_mels f_min f_max mel_scale norm power floor pad_mode"
        )
        return {name: getattr(self, name) for name in names.split()}

    def frames(self, length: int) -> int:
        """Number of frames T of a waveform of `length` samples."""
        return 1 + length // self.hop_length

    def length(self, frames: int) -> int:
        """Shortest waveform, in samples, with that many frames; what inversion returns."""
        return self.hop_length * (frames - 1)

    def stft(self, waveform: Tensor) -> Tensor:
        """Complex spectrogram `(B, n_fft / 2 + 1, T)` of `(B, N)`."""
        if waveform.ndim != 2:
            raise ValueError(f"expected waveforms of shape (B, N), found {tuple(waveform.shape)}")
        pad = self.n_fft // 2
        if self.pad_mode == "reflect" and waveform.shape[1] <= pad:
            raise ValueError(
                f"pad_mode='reflect' needs more than {pad} samples, found {waveform.shape[1]}"
            )
        return torch.stft(
            waveform,
            self.n_fft,
            self.hop_length,
            window=self.window,
            center=True,
            pad_mode=self.pad_mode,
            return_complex=True,
        )

    def mel(self, waveform: Tensor) -> Tensor:
        """Mel magnitude (to the power `power`) `(B, M, T)` of `(B, N)`; before the logarithm and
        the floor.
        """
        with torch.autocast(
            waveform.device.type, enabled=False
        ):  # a floor of -85 dB needs float32
            return self.filterbank @ self.stft(waveform.float()).abs().pow(self.power)

    def parts(self, waveform: Tensor, block: int = 1024) -> Iterator[tuple[Tensor, slice, slice]]:
        """Parts of long waveforms `(B, N)`, the frames of each that are whole, at most `block`,
        and which frames of the waveform they are; one part where the padding reflects.
        """
        frames = self.frames(waveform.shape[1])
        if self.pad_mode == "reflect" or frames <= block:
            yield waveform, slice(None), slice(0, frames)
            return
        margin = -(-(self.n_fft // 2) // self.hop_length)  # frames that see a part's padding
        for start in range(0, frames, block):
            stop = min(start + block, frames)
            first = max(start - margin, 0)
            part = waveform[:, first * self.hop_length : (stop + margin) * self.hop_length]
            yield part, slice(start - first, stop - first), slice(start, stop)

    def mel_blocks(self, waveform: Tensor, block: int = 1024) -> Iterator[tuple[slice, Tensor]]:
        """`mel` of long waveforms `(B, N)` in parts `(B, M, <= block)`, each with the frames that
        they are, in memory that does not grow with N.
        """
        for part, whole, frames in self.parts(waveform, block):
            yield frames, self.mel(part)[:, :, whole]

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Natural logarithm of the floored mel, `(B, M, T)`, not standardised."""
        return self.mel(waveform).clamp_min(self.floor).log()

    def fit(self, log_mel: Tensor | Iterable[Tensor]) -> LogMel:
        """Take one mean and one standard deviation from `(B, M, T)` log-mels of the training
        clips, given at once or in several batches.
        """
        n, total, squares = 0, 0.0, 0.0
        for batch in [log_mel] if isinstance(log_mel, Tensor) else log_mel:
            values = batch.double()
            n, total = n + values.numel(), total + float(values.sum())
            squares += float(values.square().sum())
        mean = total / max(n, 1)
        std = math.sqrt(max(squares - n * mean**2, 0.0) / max(n - 1, 1))
        if not (std > 1e-6 and math.isfinite(std)):
            raise ValueError(
                f"the training log-mels have standard deviation {std:.3g}: are all clips silent?"
            )
        self.mean.fill_(mean)
        self.std.fill_(std)
        return self

    def forward(self, waveform: Tensor) -> Tensor:
        """`(B, N)` to standardised log-mels `(B, 1, M, T)`."""
        return self.standardise(self.log_mel(waveform))

    def standardise(self, log_mel: Tensor) -> Tensor:
        """`(B, M, T)` to `(B, 1, M, T)`."""
        return ((log_mel - self.mean) / self.std).unsqueeze(1)

    def to_mel(self, x: Tensor, silence: float = 0.0) -> Tensor:
        """Standardised log-mels `(B, 1, M, T)` to mel magnitudes `(B, M, T)`.

        Cells within `silence` nats of the log floor, or below it, become exact silence: noise
            around the floor is not
        a signal, and would be heard as hiss.
        """
        log_mel = x.squeeze(1) * self.std + self.mean
        return log_mel.exp() * (log_mel > math.log(self.floor) + silence)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
