"""Mel magnitude to waveform: quality and time against torchaudio and librosa, one thread.

    python -m benchmarks.inversion [DATA] [--corpus NAME] [--n-mels M] [--split report|tuning]
    python -m benchmarks.inversion DATA --run RUN

DATA holds `fsdd/` and `esc10/`; without it there are the drums only. Each row is 12 clips of 3 s:
medians over clips, and of the times of alternating runs in one process. "noisy" is with 3 dB of
Gaussian noise on the log-mels, as generated ones have. Clips for tuning and clips reported have no
recording in common. With RUN, a finished run of the digits recipe, its classifier tells how far
each inverter moves all test clips: FID to training clips, less that of the recordings themselves.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.inverters import CORPORA, MELS, Corpus, inverters
from benchmarks.quality import MEASURES, noisy, quality
from benchmarks.timing import alternate
from sance_audio import AudioEBM, LogMel, metrics
from sance_audio.assessment import analyse
from sance_audio.audio import windows
from sance_audio.datasets import fsdd
from sance_audio.evaluation import Classifier
from sance_audio.weights import load_weights

ROUNDS = 5
PEER = "torchaudio, power 1"
SHOWN = ("log-mel", "ESTOI", "PESQ")


def measure(corpus: Corpus, clips: Tensor, n_mels: int) -> dict[str, dict[str, float]]:
    """Of each inverter: the medians of all measures, of those from noisy mels, and the time."""
    f = corpus.features(n_mels)
    clips = clips[:, : f.length(f.frames(clips.shape[1]))]
    mels = {p: corpus.features(n_mels, p).mel(clips) for p in (1.0, 2.0)}
    found: dict[str, dict[str, float]] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name, (power, invert) in inverters(f, clips.shape[1]).items():
        try:
            waves = [invert(m) for m in (mels[power], noisy(mels[power], power))]
        except torch.linalg.LinAlgError as error:
            print(f"{name}: {str(error)[:90]}")
            continue
        runs[name] = functools.partial(invert, mels[power])
        clean, noise = (_medians(quality(f, clips, wave)) for wave in waves)
        found[name] = clean | {f"noisy {key}": noise[key] for key in SHOWN}
    seconds = alternate(runs, ROUNDS)
    for name, row in found.items():
        row["ms a clip"] = 1e3 * statistics.median(seconds[name]) / len(clips)
        row["RTF"] = statistics.median(seconds[name]) * corpus.sample_rate / clips.numel()
        if PEER in seconds:
            pairs = zip(seconds[name], seconds[PEER], strict=True)
            row["time"] = statistics.median(a / b for a, b in pairs)
    return found


def _medians(measures: dict[str, np.ndarray]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a corpus in which PESQ finds no utterance at all
        return {key: float(np.nanmedian(value)) for key, value in measures.items()}


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    """A Markdown table; "time" is the median ratio to torchaudio at power 1, run by run."""
    keys = list(next(iter(found.values())))
    print(f"\n{title}\n\n| inverter | " + " | ".join(keys) + " |\n|---" + len(keys) * "|---" + "|")
    for name, row in found.items():
        print(f"| {name} | " + " | ".join(f"{row[k]:.4g}" for k in keys if k in row) + " |")
    if PEER in found:
        for name, row in found.items():
            if name.startswith("ours") and name != "ours, 100 iterations":
                print(f"- {name}: {_verdict(row, found[PEER])}")


def _verdict(ours: dict[str, float], theirs: dict[str, float]) -> str:
    worse = [
        key
        for key, better in (
            ("log-mel", ours["log-mel"] < theirs["log-mel"]),
            ("ESTOI", ours["ESTOI"] > theirs["ESTOI"]),
            ("time", ours["time"] <= 1),
        )
        if not better
    ]
    return f"not better than {PEER} in {', '.join(worse)}" if worse else f"better than {PEER}"


def distances(run: Path, data: Path) -> None:
    """FID of test clips after each inverter, in the features of the run's classifier: of what came
    back as it is, and scaled to the peak of the recordings again, as the recipes' tables do.
    """
    model, judge = AudioEBM.from_pretrained(run), _classifier(run)
    corpus = fsdd.prepare(data / "fsdd")

    @torch.no_grad()
    def features(x: Tensor) -> np.ndarray:
        return judge.features(x).double().numpy()

    def clips(split: str) -> Tensor:
        sounds = [clip.source.load().waveform for clip in corpus.split(split)]
        return torch.stack([windows(wave, model.window, model.peak)[0] for wave in sounds])

    real, test = features(model.log_mels(clips("train"))), clips("test")
    alone = metrics.frechet_distance(features(model.log_mels(test)), real)
    print(f"\n{len(test)} test clips: FID {alone:.3f} to {len(real)} training clips; growth:\n")
    print(f"| inverter | as it came back | of {PEER} | scaled to the peak | of {PEER} |")
    print("|---|---|---|---|---|")
    settings = model.features.settings
    mels = {p: LogMel(**settings | {"power": p}).mel(test) for p in (1.0, 2.0)}
    table = inverters(model.features, test.shape[1])
    peer: list[float] = []
    for name in sorted(table, key=lambda name: name != PEER):
        power, invert = table[name]
        wave = invert(mels[power])
        both = [features(x) for x in (model.log_mels(wave), analyse(model, wave))]
        growth = [metrics.frechet_distance(phi, real) - alone for phi in both]
        peer = peer or growth
        cells = [f"{g:.3f} | {g / g_peer:.2f}" for g, g_peer in zip(growth, peer, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _classifier(run: Path) -> Classifier:
    about, tensors = load_weights(run / "classifier.safetensors", "classifier")
    judge = Classifier(**about["classifier"])
    judge.load_state_dict(tensors)
    return judge.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", type=Path, nargs="?", help="folder with fsdd/ and esc10/")
    parser.add_argument("--corpus", choices=list(CORPORA), action="append")
    parser.add_argument("--n-mels", type=int, choices=MELS, action="append")
    parser.add_argument("--split", choices=("report", "tuning"), default="report")
    parser.add_argument("--run", type=Path, help="of the digits recipe: FID instead of tables")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.run is not None:
        if args.data is None:
            parser.error("--run needs DATA, the folder with fsdd/")
        return distances(args.run, args.data)
    for key, meaning in MEASURES.items():
        print(f"- {key}: {meaning}")
    for name, corpus in CORPORA.items():
        if name in (args.corpus or CORPORA) and (args.data is not None or "drums" in name):
            clips = corpus.clips(args.data or Path(), args.split == "tuning")
            for n_mels in args.n_mels or MELS:
                size = f"n_fft {corpus.n_fft}, hop {corpus.n_fft // 4}"
                show(f"{name}, {size}, {n_mels} mels", measure(corpus, clips, n_mels))


if __name__ == "__main__":
    main()
