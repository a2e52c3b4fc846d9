"""One run of an experiment, in its own process: trained, judged in log-mels, its cost counted.

Clips are judged as the log-mels that the model draws, which are not turned into sound first: what
inversion adds would be the same for all.
"""

from __future__ import annotations

__all__ = ["perform", "distances", "real_clips"]

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sance_audio.assessment import Judge
from sance_audio.evaluation import describe
from sance_audio.experiments.costs import Watch, added_by_noise, peak_mib
from sance_audio.files import read_jsonl
from sance_audio.metrics import Array, frechet_distance, kernel_distances
from sance_audio.model import AudioEBM
from sance_audio.options import Options
from sance_audio.preparation import Material
from sance_audio.samplers import clip_seeds
from sance_audio.training import Diverged, train
from sance_audio.workflow import estimate_log_z

Results = dict[str, Any]
ALONG = 2
"""Sets of clips, at most, that a model is judged on while it trains."""


def perform(
    model: AudioEBM,
    components: Tensor,
    material: Material,
    judge: Judge,
    options: Options,
    *,
    split: str,
    sets: int = 1,
    points: int = 0,
) -> Results:
    """Train a model and judge it; the same call goes on with an interrupted run.

    Arguments:
        model: At its start.
        components: `(N,)`, of the training rows.
        material: The corpus.
        judge: The classifier in whose features clips are compared.
        options: Run folder, seed, `train`, and how the model is judged: `evaluate` clips of
            `generation_steps`, log Z by `annealing` temperatures.
        split: That clips are compared with: as many of it as are drawn.
        sets: Sets of so many clips that figures are means over: KID of one alone varies a good
            deal between sets.
        points: Times that KID, over `ALONG` sets, is taken along training; 0 for a run that is
            only to be chosen from, which has no `gain` either.

    Returns:
        `kid`, `fid`, `accuracy`, `gain` (of the test clips), each None for a run that `diverged`,
        which is then the reason; `reference`: the same three of the reference alone, drawn from
        the same seeds (in `reference_along`, its KID on the sets that points are judged on); what
        it cost; `points`.
    """
    figures = _judged(model, judge, material, options, split, sets)
    result: Results = {"reference": figures(model, reference_only=True)}
    result["reference_along"] = figures(model, ALONG, reference_only=True)["kid"]
    last = options.train.steps
    every = max(1, last // points) if points else last
    import_module("accelerate")  # so that its import is no part of the training's seconds
    watch = Watch(options.run / "points.jsonl", every, last, lambda m: figures(m, ALONG))
    try:
        rows = train(
            model,
            material.x["train"],
            components,
            options.train,
            options.run,
            seed=options.seed,
            callbacks=(watch,),
            progress=False,
        )
    except Diverged as error:
        rows = read_jsonl(options.run / "metrics.jsonl")
        result |= {"diverged": str(error)}
        result |= dict.fromkeys(("kid", "fid", "accuracy", "gain"))
    else:
        result |= {"diverged": None, **figures(model)}
        if result["kid"] is None:
            result["diverged"] = "the clips drawn are not finite"
        wanted = points and not result["diverged"]
        result["gain"] = _held_out_gain(model, material, options) if wanted else None
    return result | _cost(options, rows, watch, model.reference.n_components)


def _judged(
    model: AudioEBM, judge: Judge, material: Material, options: Options, split: str, sets: int
) -> Callable[..., Results]:
    """A function of a model: KID and FID of its log-mels against as many of the split, and how
    many are recognised, means over sets of clips (over `most` of them, when it is given). Each
    call draws the same classes from the same seeds.
    """
    x, _ = material.some(split, options.evaluate)
    real = describe(judge.classifier, x).phi
    n, classes = len(x), model.classes(len(x))
    seeds = clip_seeds(torch.Generator().manual_seed(options.seed), n * sets)

    def one(model: AudioEBM, own: list[int], how: Results) -> Results:
        drawn, _ = model.draw(classes, own, **how)
        ours = describe(judge.classifier, drawn)
        if not np.isfinite(ours.phi).all():
            return dict.fromkeys(("kid", "fid", "accuracy"))
        right = ours.probabilities.argmax(1) == np.array(classes)
        return distances(ours.phi, real) | {"accuracy": float(right.mean())}

    def figures(model: AudioEBM, most: int = sets, **how: Any) -> Results:
        found = [one(model, seeds[k * n : (k + 1) * n], how) for k in range(min(most, sets))]
        if any(f["kid"] is None for f in found):
            return found[0] | dict.fromkeys(("kid", "fid", "accuracy"))
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}

    return figures


def distances(a: Array, b: Array) -> Results:
    """KID and FID of two sets of features `(N, d)`."""
    kid = kernel_distances(a, b, resamples=0)[0]
    return {"kid": float(kid), "fid": frechet_distance(a, b)}


def real_clips(judge: Judge, material: Material, options: Options) -> Results:
    """KID and FID of validation clips against as many test clips: what a perfect model would come
    to.
    """
    n = min(options.evaluate, len(material.y["valid"]), len(material.y["test"]))
    phi = {s: describe(judge.classifier, material.some(s, n)[0]).phi for s in ("valid", "test")}
    return {"clips": n} | distances(phi["valid"], phi["test"])


def _held_out_gain(model: AudioEBM, material: Material, options: Options) -> Results | None:
    """log p_theta - log p_0 of the test clips, in nats a clip, as `workflow.fit` has it; and how
    far apart log Z is from both ends.
    """
    log_z = estimate_log_z(model, options)
    x: Tensor = material.some("test", options.evaluate)[0].to(model.device)
    gain = (model.energy_of(x, reference_only=True) - model.energy_of(x)).double().cpu()
    share = model.component_of(x).bincount(minlength=len(log_z.forward)) / len(x)
    of_log_z = float((share * model.density.log_z_error).square().sum().sqrt())
    if not bool(gain.isfinite().all()):
        return None
    error = math.hypot(float(gain.std()) / math.sqrt(len(x)), of_log_z)
    apart = float((log_z.reverse - log_z.forward).abs().mean())
    return {"mean": float(gain.mean()), "standard_error": error, "log_z_apart": apart}


def _cost(options: Options, rows: list[Results], watch: Watch, n_components: int) -> Results:
    """Steps, refreshes, work of the sampler, time and memory of a run; and its points."""
    config = options.train
    chains = config.pool_groups * config.per_component * n_components
    work = chains * config.langevin_steps if config.noise in ("self", "pcd") else 0
    spent = work * np.cumsum([0, *("refresh" in row for row in rows)])
    causes: dict[str, int] = {}
    for row in rows:
        if "refresh" in row:
            cause = row["refresh"].split(" ")[0]
            causes[cause] = causes.get(cause, 0) + 1
    kept = [p for p in watch.points if p["step"] < len(spent)]
    points = [p | {"evaluations": int(spent[p["step"]])} for p in kept]
    return {
        "steps": len(rows),
        "refreshes": sum(causes.values()),
        "causes": causes,
        "evaluations": int(spent[-1]),
        "seconds": watch.points[-1]["seconds"] if watch.points else None,
        "peak_mib": peak_mib(),
        **added_by_noise(options.run),
        "points": points,
    }
