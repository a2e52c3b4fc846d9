"""A page of scored recordings: ranking, histogram, the oddest and most ordinary to hear and see.

Of each shown recording, its oddest window (ten seconds at most): a player, and a spectrogram with
the odd regions outlined. `Scored` says what was found of a recording, `section` makes what the
page shows of one detector's, `write` the page. Contents go where a `Store` puts them: into the
page itself (`embedded`), or beside it (`Beside`).
"""

from __future__ import annotations

__all__ = ["Beside", "Scored", "Store", "embedded", "regions_of", "section", "shelves", "write"]

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from sance_audio.audio import AudioError, window_starts
from sance_audio.decoding import shown
from sance_audio.detection import EnergyDetector
from sance_audio.features import LogMel
from sance_audio.files import atomic, write_whole

TEMPLATE = Path(__file__).with_name("scored_page.html.j2")
LISTED = 200
"""Rows of the ranking, at most."""
CELLS, OUTLINED = 0.01, 8
"""Share of the cells of normals that are called odd, and regions of a recording that are shown."""
REFUSED = 20
"""Files that could not be read and are named, at most."""

Array = np.ndarray
Facts = dict[str, Any]
Store = Callable[[str, bytes], str]
"""Takes the name of a file and its content; gives the address that a page finds it under."""
Regions = Callable[[EnergyDetector, Tensor], Sequence[Any]]
"""Of a detector and a window `(N,)` at its rate, the odd regions: `start`, `end` in seconds,
`low`, `high` in Hz, `score`."""


@dataclass(frozen=True)
class Scored:
    """A recording, and what a detector said of it."""

    name: str
    score: float
    p_value: float | None
    """None without calibration."""
    clip: Any = None
    """As the detector takes them: a path, or a pair (array, sample rate in Hz)."""
    note: str = ""


def embedded(name: str, content: bytes) -> str:
    """A file as a `data:` address, to stand inside a page."""
    kind = {"wav": "audio/wav", "png": "image/png"}[name.rpartition(".")[2]]
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Beside:
    """Writes files into a folder below the page's."""

    home: Path
    """Where the page stands."""
    folder: str

    def __call__(self, name: str, content: bytes) -> str:
        write_whole(self.home / self.folder / name, content)
        return f"{self.folder}/{name}"


def regions_of(detector: EnergyDetector, window: Tensor) -> Sequence[Any]:
    """The oddest regions of a window: `OUTLINED` at most, of cells whose p-value is `CELLS`."""
    clip = (window.numpy(), detector.sample_rate_)
    return detector.score_map(clip).regions(CELLS)[:OUTLINED]


def section(
    detector: EnergyDetector,
    scored: Sequence[Scored],
    store: Store,
    *,
    show: int = 6,
    regions: Regions = regions_of,
    title: str = "",
) -> Facts:
    """What a page shows of the recordings that one detector scored.

    Arguments:
        detector: Fitted.
        scored: What it said; odd or not, in any order.
        store: Where sounds and pictures go.
        show: Oddest, and most ordinary, recordings to hear.
        regions: What is outlined.
        title: Above all of it, where a page has several.
    """
    ranking = sorted(scored, key=lambda s: (-s.score, s.name))
    threshold, words = _threshold(detector)
    rows = [
        _row(detector, s, rank) | {"odd": s.score > threshold}
        for rank, s in enumerate(ranking[:LISTED], 1)
    ]
    scores = np.array([s.score for s in scored])
    drawn = histogram(scores, _normal_scores(detector), threshold)
    return {
        "title": title,
        "rows": rows,
        "count": len(ranking),
        "found": int((scores > threshold).sum()),
        "threshold": threshold,
        "rule": words,
        "histogram": store("histogram.png", drawn),
        **shelves(detector, ranking, store, show=show, regions=regions),
    }


def shelves(
    detector: EnergyDetector,
    scored: Iterable[Scored],
    store: Store,
    *,
    show: int = 6,
    regions: Regions = regions_of,
) -> dict[str, list[Facts]]:
    """`oddest` and `ordinary`, at most `show` cards each, no recording on both; sounds and
    pictures are stored. A file that is gone by now is left out.
    """
    ranking = sorted(scored, key=lambda s: (-s.score, s.name))
    show = min(show, (len(ranking) + 1) // 2)
    chosen = {"oddest": ranking[:show], "ordinary": ranking[show:][-show:][::-1]}
    out: dict[str, list[Facts]] = {}
    for kind, some in chosen.items():
        out[kind] = []
        for rank, one in enumerate(some, 1):
            try:
                card = _card(detector, one, store, f"{kind}_{rank}", regions)
            except AudioError:
                continue
            out[kind].append(_row(detector, one, rank) | card)
    return out


def write(
    path: Path, title: str, sections: Sequence[Facts], *, words: Sequence[str] = (), **more: Any
) -> Path:
    """Write a page.

    Arguments:
        path: The HTML file; folders are made.
        title: Its heading.
        sections: As `section` makes them.
        words: Sentences below the heading.
        more: `tables`: (caption, header, rows) each, rows of texts; `refused`: recordings that
            could not be read, in words.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    refused = list(more.get("refused", ()))
    page = environment.get_template(TEMPLATE.name).render(
        title=shown(title),
        sections=sections,
        words=[shown(line) for line in words],
        tables=list(more.get("tables", ())),
        refused=[shown(line) for line in refused[:REFUSED]],
        unread=len(refused),
    )
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def histogram(scores: Array, normal: Array, threshold: float) -> bytes:
    """Scores `(B,)`, those of normals `(n,)` and the threshold between them, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = np.concatenate([scores, normal, [threshold]])
    edges = np.linspace(every.min(), every.max() + 1e-9, 41).tolist()
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.hist(scores, edges, color="tab:blue", label=f"{len(scores)} scored here")
    about: Facts = {"histtype": "step", "color": "0.3", "lw": 1.2}
    axis.hist(normal, edges, **about, label=f"{len(normal)} normals of the detector")
    axis.axvline(threshold, color="tab:red", lw=1.2, label="threshold")
    axis.set_xlabel("anomaly score", fontsize=9)
    axis.set_ylabel("recordings", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    return _png(figure)


def spectrogram(window: Tensor, sample_rate: int, regions: Sequence[Any]) -> bytes:
    """Level over time (s) and frequency (Hz, mel scale) of `(N,)`, regions outlined, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    n_fft = 1024 if sample_rate > 11025 else 512
    mel = LogMel(sample_rate, n_fft=n_fft, hop_length=n_fft // 4, n_mels=80).mel(window[None])[0]
    level = 20 * mel.clamp_min(1e-8).log10().numpy()
    seconds = len(window) / sample_rate
    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    extent = (0, seconds, 0, float(_mels(sample_rate / 2)))
    top = float(level.max())
    about: Facts = {"origin": "lower", "aspect": "auto", "extent": extent, "cmap": "magma"}
    axis.imshow(level, vmin=max(float(level.min()), top - 70), vmax=top + 1e-6, **about)
    for r in regions:
        low, high = _mels(max(0.0, r.low)), _mels(min(r.high, sample_rate / 2))
        box = Rectangle((r.start, low), r.end - r.start, high - low, fill=False, ec="cyan", lw=1.3)
        axis.add_patch(box)
    ticks = [hz for hz in (100, 250, 500, 1000, 2000, 4000, 8000, 16000) if hz <= sample_rate / 2]
    axis.set_yticks(_mels(np.array(ticks)), [str(hz) for hz in ticks])
    axis.set(xlim=(0, seconds), ylim=extent[2:])
    axis.set_xlabel("s", fontsize=8)
    axis.set_ylabel("Hz", fontsize=8)
    axis.tick_params(labelsize=7)
    return _png(figure)


def _mels(hertz: Any) -> Any:
    """Slaney's mel scale, which the bands lie evenly on."""
    import librosa

    return librosa.hz_to_mel(hertz)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _card(
    detector: EnergyDetector, one: Scored, store: Store, name: str, regions: Regions
) -> Facts:
    """The oddest window of a recording: player, picture and regions."""
    window, start, whole = oddest_window(detector, one.clip)
    odd = list(regions(detector, window))
    rate = detector.sample_rate_
    encoded = io.BytesIO()
    soundfile.write(encoded, window.clamp(-1, 1).numpy(), rate, subtype="PCM_16", format="WAV")
    return {
        "file": store(f"{name}.wav", encoded.getvalue()),
        "picture": store(f"{name}.png", spectrogram(window, rate, odd)),
        "since": None if whole else start,
        "regions": [
            {k: float(getattr(r, k)) for k in ("start", "end", "low", "high", "score")}
            for r in odd
        ],
    }


def oddest_window(detector: EnergyDetector, clip: Any) -> tuple[Tensor, float, bool]:
    """Of a recording's windows `(N,)`, the one of the largest score; where it begins, in seconds;
    and whether it is the only one.

    Raises:
        AudioError: a file that cannot be decoded.
    """
    rate = detector.sample_rate_
    if isinstance(clip, (str, Path)):
        sound = detector.listen(clip)
        parts, n = sound.parts(), sound.samples
    else:
        (found,) = detector.windows([clip])
        parts, n = iter(found), round(len(clip[0]) * rate / clip[1])
    best, chosen, at, count = -np.inf, torch.zeros(0), 0, 0
    for part in parts:
        scores = detector.assess_windows([window[None]] for window in part)["anomaly_score"]
        i = int(scores.argmax())
        if scores[i] > best:
            best, chosen, at = float(scores[i]), part[i].clone(), count + i
        count += len(part)
    start = list(window_starts(n, len(chosen)))[at] / rate if count > 1 else 0.0
    return chosen, start, count == 1


def _threshold(detector: EnergyDetector) -> tuple[float, str]:
    known = detector.calibration_
    if known is None:
        return (
            -detector.offset_,
            "the 90 % quantile of a gamma distribution of the normals' scores",
        )
    return -detector.offset_, (
        f"false-alarm rate {detector.alpha:g}, calibrated on {known.recordings} recordings that "
        f"touched no fit"
    )


def _normal_scores(detector: EnergyDetector) -> Array:
    known = detector.calibration_
    return detector.normal_scores_ if known is None else known.scores


def _row(detector: EnergyDetector, one: Scored, rank: int) -> Facts:
    name, note = shown(one.name), shown(one.note)
    return {"rank": rank, "label": name, "score": one.score, "p_value": one.p_value, "note": note}
