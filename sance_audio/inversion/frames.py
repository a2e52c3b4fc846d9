r"""Signals in hops, spectrograms in frames, and one iteration between them that can be fed in
parts.

A signal is held as hops `(B, J, H)`, H the hop length. Frame t is the N samples that begin with
hop t, so T frames span J = T + o - 1 hops, o = ceil(N / H), of which the first N // 2 samples and
what follows the signal are padding. Frames stand first, `(B, T, F)`: they are a view of the hops,
and their transforms run over contiguous memory. Overlap-add is o shifted additions, whatever the
hop.

    X_t = FFT(w x_t)                                analysis
    x = sum_t w IFFT(X_t) / sum_t w^2               synthesis: the least-squares signal

Both are linear, so an extrapolation of spectrograms is one of signals, which are smaller; and an
iteration reads o - 1 hops beyond what it has written, no more. So iterations are chained: each is
fed with what the one before it has finished (`Iteration`), and a recording of any length goes
through all of them in blocks, with nothing held but a few hops per iteration, and to the same end.

References:
    Signal estimation from modified short-time Fourier transform (Griffin & Lim, 1984)
"""

from __future__ import annotations

__all__ = ["Frames", "Gain", "Iteration", "check_overlap"]

from collections.abc import Callable

import torch
from torch import Tensor

Gain = Callable[[Tensor, int], Tensor]
"""Of spectra `(B, n, F)` and the number of their first frame: real factors `(B, n, F)`."""


FAINTEST = 1e-6
"""Share of the largest sum of squared windows that can be divided by."""


class Frames:
    """Geometry of T centred frames.

    Arguments:
        window: `(N,)`.
        hop_length: H.
        count: T.
        pad_mode: What stands before and after the signal: "constant" (silence) or "reflect".
        length: Samples of the signal, `H (T - 1)` when None; less than H more make no frame of
            their own.

    Raises:
        ValueError: windows and hop from which no signal can be rebuilt; reflection of a signal
            that is too short for it.
    """

    def __init__(
        self,
        window: Tensor,
        hop_length: int,
        count: int,
        pad_mode: str = "constant",
        length: int | None = None,
    ):
        self.window, self.hop, self.count = window.float(), hop_length, count
        self.n_fft = len(window)
        self.overlap = -(-self.n_fft // hop_length)
        self.hops = count + self.overlap - 1
        shortest = hop_length * (count - 1)
        self.rest = min(max((length or 0) - shortest, 0), hop_length - 1)
        self.length = shortest + self.rest
        self.reflect = pad_mode == "reflect"
        check_overlap(self.window, hop_length)
        if self.reflect and self.length <= self.n_fft // 2:
            raise ValueError(
                f"pad_mode='reflect' needs more than {self.n_fft // 2} samples, found "
                f"{self.length} ({count} frames): pass more frames"
            )
        self.envelope = self._envelope()
        self._rows: tuple[tuple[int, int], Tensor] | None = None

    def _envelope(self) -> Tensor:
        """1 / sum_t w^2 of the first and last hops and of one between, 0 in the padding:
        `(<= 2 o, H)`, which `weights` finds its rows in.
        """
        few = min(self.count, self.overlap + 1)
        total = self.add(self.window.square().expand(1, few, -1))[0]
        place = torch.arange(total.numel(), device=total.device).view_as(total)
        first = self.n_fft // 2
        inside = (place >= first) & (place < first + (few - 1) * self.hop + self.rest)
        inside &= total > FAINTEST * total.max()  # a last hop may reach beyond its window
        return torch.where(inside, 1 / total, 0.0)

    def weights(self, start: int, stop: int) -> Tensor:
        """`(stop - start, H)`: what overlap-added hops are multiplied with."""
        if self._rows is None or self._rows[0] != (start, stop):
            few = min(self.count, self.overlap + 1)
            j = torch.arange(start, stop, device=self.window.device)
            rows = torch.where(
                j < self.count - 1, j.clamp(max=self.overlap - 1), j - self.count + few
            )
            self._rows = (start, stop), self.envelope[rows]
        return self._rows[1]

    def audible(self, silent: Tensor) -> Tensor:
        """Hops `(B, J, 1)` that are not wholly within a silent frame, of frames `(B, T)`: 1, the
        others 0.
        """
        within = self.n_fft // self.hop
        rest = self.overlap - within
        padded = torch.nn.functional.pad(silent.float(), (within - 1, within - 1 + rest))
        return 1 - torch.nn.functional.max_pool1d(padded, within, 1).unsqueeze(2)

    def analyse(self, hops: Tensor) -> Tensor:
        """Hops `(B, n + o - 1, H)` to spectra `(B, n, F)`."""
        framed = hops.reshape(len(hops), -1).unfold(1, self.n_fft, self.hop)
        return torch.fft.rfft(framed * self.window)

    def overlapped(self, spectra: Tensor) -> Tensor:
        """Spectra `(B, n, F)` to windowed sums, hops `(B, n + o - 1, H)`."""
        return self.add(torch.fft.irfft(spectra, n=self.n_fft).mul_(self.window))

    def add(self, frames: Tensor) -> Tensor:
        """Overlap-add `(B, n, N)` to hops `(B, n + o - 1, H)`."""
        batch, n, _ = frames.shape
        whole = self.overlap * self.hop
        if whole > self.n_fft:
            frames = torch.nn.functional.pad(frames, (0, whole - self.n_fft))
        pieces = frames.reshape(batch, n, self.overlap, self.hop)
        out = torch.nn.functional.pad(pieces[:, :, 0], (0, 0, 0, self.overlap - 1))
        for shift in range(1, self.overlap):
            out[:, shift : shift + n] += pieces[:, :, shift]
        return out

    def hops_of(self, waveform: Tensor) -> Tensor:
        """A signal `(B, N)`, N = `length`, with its padding: `(B, J, H)`."""
        first = self.n_fft // 2
        rest = self.hops * self.hop - self.length - first
        if self.reflect:
            padded = torch.nn.functional.pad(waveform.unsqueeze(1), (first, first), mode="reflect")
            waveform, first, rest = padded.squeeze(1), 0, rest - first
        return torch.nn.functional.pad(waveform, (first, rest)).view(len(waveform), -1, self.hop)

    def signal_of(self, hops: Tensor) -> Tensor:
        """The signal `(B, length)` within hops `(B, J, H)`."""
        return hops.reshape(len(hops), -1)[:, self.n_fft // 2 :][:, : self.length]


def check_overlap(window: Tensor, hop_length: int) -> None:
    """Raise ValueError where shifted squared windows leave samples without weight."""
    n = len(window)
    overlap = -(-n // hop_length)
    padded = torch.nn.functional.pad(window.double().square(), (0, overlap * hop_length - n))
    total = padded.view(overlap, hop_length).sum(0)
    if hop_length > n or not float(total.min()) > FAINTEST * float(total.max()):
        raise ValueError(
            f"hop_length={hop_length} leaves samples without weight between windows of "
            f"n_fft={n}: overlap-add needs a window whose shifted squares sum to more than 0 "
            f"everywhere; hop_length <= n_fft / 2 does for a Hann window"
        )


class Iteration:
    """One iteration `x' = synthesis(g(Z) Z)`, Z the analysis of `z = x + beta (x - x_before)`, fed
    with hops of x and of the iterate before it.

    Arguments:
        frames: The geometry.
        gain: g, of Z and its first frame's number.
        beta: Extrapolation (momentum).
        mask: Factors `(B, J, 1)` of the hops of x'.
    """

    def __init__(self, frames: Frames, gain: Gain, beta: float = 0.0, mask: Tensor | None = None):
        self.frames, self.gain, self.beta, self.mask = frames, gain, beta, mask
        self.done = 0  # frames
        self.z: Tensor | None = None  # the last o - 1 hops of z
        self.x: Tensor | None = None  # hops of x that x' has not come to
        self.sum: Tensor | None = None  # what later hops of x' have gathered

    def push(self, x: Tensor, before: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
        """The next hops of x and of the iterate before, `(B, n, H)`, to the next of x' and x, as
        many as are finished; with `last` all that remain.
        """
        f = self.frames
        z = x if before is None else torch.lerp(before, x, 1 + self.beta)
        if self.z is not None:
            z = torch.cat([self.z, z], 1)
        if self.x is not None:
            x = torch.cat([self.x, x], 1)
        n = z.shape[1] - f.overlap + 1
        if n < 1:
            self.z, self.x = z, x
            return x[:, :0], x[:, :0]
        spectra = f.analyse(z)
        spectra *= self.gain(spectra, self.done)
        total = f.overlapped(spectra)
        if self.sum is not None:
            total[:, : f.overlap - 1] += self.sum
        if not last:  # copies: what is kept shall not hold the whole block
            self.z, self.x = z[:, n:].clone(), x[:, n:].clone()
            self.sum = total[:, n:].clone()
            total, x = total[:, :n], x[:, :n]
        stop = self.done + total.shape[1]
        total *= f.weights(self.done, stop)
        if self.mask is not None:
            total *= self.mask[:, self.done : stop]
        self.done += n
        if f.reflect:
            total = f.hops_of(f.signal_of(total))
        return total, x
