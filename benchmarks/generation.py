"""Spoken digits, generated: what does the same time of training buy, ours and others?

    python -m benchmarks.generation DIR --minutes 10 --num 1000 [--only ours,ddpm,specgan,pcd]
        [--split test|valid] [--device cpu|cuda] [--seed 0] [--jobs 1] [--run DIR] [--out FILE]

DIR is the Free Spoken Digit Dataset. Everything is shared but the generator: the log-mels, the
inversion, the analysis of what is heard, the classifier that judges, the machine, and the minutes
of training, wall-clock, on one thread or on the GPU. All that a generator fits is on its clock; of
ours the reference too, and the few steps by whose time its steps are planned.

    ours       the digits recipe: its reference, its network, its training
    ddpm       a class-conditional DDPM by diffusers, drawn by DDIM in 50 steps
    specgan    a class-conditional SpecGAN: DCGAN, WGAN-GP
    pcd        persistent contrastive divergence by ebmkit, our network without a reference

`reference only` is what ours starts from. Real clips are the split's; all rows are compared with
training clips. IS, FID, KID, precision and recall are at equal numbers; differences, ours less
each, are over all generated clips, with 95 % bootstrap intervals over clips. `trained` counts the
numbers that gradients train, `stored` those that are kept to draw from. `nearest` is the 5 %
quantile of distances to the nearest training log-mel, over that of real clips through inversion:
well below 1 are copies. `held out` is KID x1000 to the split's real clips, over all. Drawing is
timed without the inversion, which all share; a factor below 1 is faster than real time.

Each generator is trained, and then drawn from, in a process of its own, --jobs of them side by
side. The run folder keeps what is done: delete a generator's folder to train it again.

Needs the extra [bench].
"""

from __future__ import annotations

__all__ = ["MAKERS", "main"]

import argparse
import hashlib
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import generation_ours
from benchmarks.generation_gan import SpecGAN
from benchmarks.generation_ours import Prepared, prepared, untrained
from benchmarks.generation_pcd import Persistent
from benchmarks.generation_peers import Clock, Diffusion, Peer
from benchmarks.generation_table import judged, show
from sance_audio.assessment import analyse, classify
from sance_audio.experiments.jobs import Job, finish, read_job, run_jobs
from sance_audio.files import write_json
from sance_audio.model import AudioEBM
from sance_audio.samplers import clip_seeds
from sance_audio.weights import load_weights, save_weights

RIVALS: dict[str, Callable[..., Peer]] = {
    "ddpm": Diffusion,
    "specgan": SpecGAN,
    "pcd": Persistent,
}
MAKERS = ("ours", *RIVALS)
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {},
    "cuda": {
        "ddpm": {"patch": 2, "channels": [96, 192, 192], "layers": 2, "batch": 64, "rate": 5e-4},
        "specgan": {"width": 64, "batch": 64},
        "pcd": {"channels": [64, 128, 256], "depth": [2, 2], "per_class": 8, "slots": 200},
    },
}
"""What is not as each rival has it by default. Defaults are for one core, chosen on validation
clips; the sizes for a GPU are the larger ones of the papers, and were not tuned.
"""
SILENT = -20.0
"""A standardised log-mel below the floor."""
REAL = 2000
"""Real clips that are judged, at most."""
WORD = {"test": "test", "valid": "validation"}
Results = dict[str, Any]


def train_job(folder: Path, s: Results) -> Results:
    """Train one generator for its time and save it; what that took, and its file's digest."""
    given = prepared(Path(s["data"]), folder.parent, s["device"], s["seed"])
    torch.zeros(1, device=s["device"])  # a GPU wakes up before the clock starts
    clock = Clock(60 * s["minutes"], s["steps"])
    if s["maker"] == "ours":
        steps, trained, stored = generation_ours.ours(given, clock, folder)
    else:
        torch.manual_seed(s["seed"])
        x, y = given.material.x["train"][:], given.material.y["train"]
        peer = RIVALS[s["maker"]](x.shape[-2:], len(given.corpus.labels), **s["size"])
        steps = peer.to(s["device"]).fit(x, y, clock, s["seed"])
        about = {"shape": list(x.shape[-2:]), "n_classes": len(given.corpus.labels)}
        save_weights(folder / "model.safetensors", s["maker"], about, peer.state_dict())
        trained, stored = peer.trained, peer.stored
    seconds = clock.elapsed()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    done = {"steps": steps, "seconds": seconds, "trained": trained, "stored": stored}
    return done | {"sha256": digest}


def draw_job(folder: Path, s: Results) -> Results:
    """Draw clips from a trained generator and save their log-mels: the seconds that it took, and
    how many had values that are not finite and were made silent.
    """
    trained, device = folder.parent / s["maker"], torch.device(s["device"])
    if s["maker"] == "ours":
        model = generation_ours.load(trained, device)
        drawn = _timed(lambda y: generation_ours.draw(model, y, s["seed"]), s)
    else:
        about, tensors = load_weights(trained / "model.safetensors", s["maker"])
        shape, n_classes = tuple(about["shape"]), about["n_classes"]
        peer = RIVALS[s["maker"]](shape, n_classes, **s["size"]).to(device).eval()
        peer.load_state_dict(tensors)
        drawn = _timed(lambda y: peer.draw(y, s["seed"]), s)
    clips, seconds = drawn
    broken = ~clips.flatten(1).isfinite().all(1)
    clips[broken] = SILENT
    save_weights(folder / "clips.safetensors", "clips", {}, {"x": clips})
    return {"seconds": seconds, "broken": int(broken.sum())}


def _timed(draw: Callable[[Tensor], Tensor], s: Results) -> tuple[Tensor, float]:
    """Clips in balanced classes, and the seconds they took, after a few that do not count."""
    y = torch.arange(s["num"]) % s["n_classes"]
    draw(y[:10])
    began = time.perf_counter()
    return draw(y), time.perf_counter() - began


def made(o: argparse.Namespace, given: Prepared) -> tuple[dict[str, Results], dict[str, Results]]:
    """Train and draw, each generator in a process of its own; what training took, and drawing."""
    own = {
        k: {"maker": k, "size": SIZES[o.device].get(k, {}), "device": o.device, "seed": o.seed}
        for k in o.only
    }
    about = {"do": "train", "data": str(o.data.resolve()), "minutes": o.minutes, "steps": o.steps}
    training = [Job(k, {**about, **s}) for k, s in own.items()]
    trained = _run(o, training)
    about = {"do": "draw", "num": o.num, "n_classes": len(given.corpus.labels)}
    drawing = [
        Job(f"{k}-{o.num}", {**about, **s, "sha256": trained[k]["sha256"]}) for k, s in own.items()
    ]
    drawn = _run(o, drawing)
    return trained, {k: drawn[f"{k}-{o.num}"] for k in o.only}


def _run(o: argparse.Namespace, jobs: list[Job]) -> dict[str, Results]:
    start = [sys.executable, "-m", "benchmarks.generation", str(o.data), "--job"]
    return run_jobs(
        jobs, o.run, lambda job: [*start, str(o.run / job.name)], at_once=o.jobs, say=_say
    )


def compare(o: argparse.Namespace) -> Results:
    """Train, draw, invert, judge: the table's rows, ours less each, and how they were made."""
    given = prepared(o.data, o.run, o.device, o.seed)
    trained, drawn = made(o, given)
    material, model = given.material, untrained(given)[0]
    judge = classify(model, material, given.options)
    x, rows = material.some(o.split, REAL)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    x, y = x[order], material.y[o.split][rows[order]]
    again = analyse(model, model.invert(x.to(model.device)))
    real = {f"real {WORD[o.split]} clips": (x, y), "real through inversion": (again, y)}
    y = torch.arange(o.num) % len(given.corpus.labels)
    clips = {"reference only": generation_ours.draw(model, y, o.seed, reference_only=True)}
    for name in o.only:
        path = o.run / f"{name}-{o.num}" / "clips.safetensors"
        clips[name] = load_weights(path, "clips")[1]["x"]
    out = judged(
        real, {k: (_heard(model, z, o.seed), y) for k, z in clips.items()}, judge, material
    )
    for name in o.only:
        row, seconds = out["table"][name], drawn[name]["seconds"]
        row |= {k: trained[name][k] for k in ("steps", "trained", "stored")}
        row["broken"] = drawn[name]["broken"]
        row["minutes"] = trained[name]["seconds"] / 60
        row["seconds_per_1000"] = 1000 * seconds / o.num
        row["real_time_factor"] = seconds / (o.num * model.window / model.sample_rate)
    about = {k: getattr(o, k) for k in ("device", "seed", "minutes", "split", "jobs")}
    return {**about, "machine": _machine(o.device), "sizes": SIZES[o.device], **out}


def _heard(model: AudioEBM, x: Tensor, seed: int) -> Tensor:
    """Log-mels of the sound of log-mels."""
    seeds = clip_seeds(torch.Generator().manual_seed(seed), len(x))
    return analyse(model, model.invert(x.to(model.device), seeds))


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def _say(job: Job, result: Results, left: int) -> None:
    print(f"{job.name}: done in {result['seconds'] / 60:.1f} minutes", file=sys.stderr)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in MAKERS]:
        raise argparse.ArgumentTypeError(
            f"no generator named {unknown[0]!r}; there are: {', '.join(MAKERS)}"
        )
    return [name for name in MAKERS if name in names]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the corpus, with recordings/")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each")
    parser.add_argument("--num", type=int, default=1000, help="generated clips of each")
    parser.add_argument("--only", type=_names, default=list(MAKERS), help="names, by commas")
    parser.add_argument("--split", choices=("test", "valid"), default="test")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="generators side by side")
    parser.add_argument("--run", type=Path, default=Path("runs/generation"))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--steps", type=int, help="of training at most, for a trial")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    torch.set_num_threads(1)
    if options.job is not None:
        job = read_job(options.job)
        do = {"train": train_job, "draw": draw_job}[job.settings["do"]]
        finish(options.job, do(options.job, job.settings))
        return
    results = compare(options)
    if options.out is not None:
        write_json(options.out, results)
    show(results)


if __name__ == "__main__":
    main()
