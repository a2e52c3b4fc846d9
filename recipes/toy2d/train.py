"""Densities in the plane, learnt by self-adapting noise-contrastive estimation, beside the truth.

    python recipes/toy2d/train.py --run runs/toy2d --preset cpu

Nothing is downloaded: the densities are known exactly, and so are the log Z of a model and its
distance to the truth, on a grid. RUN/densities.png draws truth, model, reference alone and
samples, a density to a row.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sance_audio import TrainConfig, processes
from sance_audio.datasets.densities import DENSITIES, Density
from sance_audio.energy import ReferencedEnergy
from sance_audio.files import atomic, read_json, write_json
from sance_audio.networks import DenseEnergy
from sance_audio.options import RunOptions
from sance_audio.recipe import launch
from sance_audio.reference import GaussianReference
from sance_audio.toys import PointModel, log_density_on_grid, picture, total_variation
from sance_audio.training import train
from sance_audio.workflow import connect, start

POINTS = 50_000
"""Exact samples that are trained on."""
CELLS = 512
"""Cells along a side of the grid."""


@dataclass(frozen=True)
class ToyOptions(RunOptions):
    """Options of the recipe of densities in the plane."""

    run: Path = Path("runs/toy2d")
    """Run folder. The same command again resumes."""
    density: Literal["all", "eight_gaussians", "rings", "checkerboard", "banana"] = "all"
    """The density, or all of them."""


TOY: dict[str, Any] = {
    "interval": 10,
    "adaptive": False,
    "groups": 16,
    "per_component": 512,
    "weighted": True,
    "langevin_steps": 4,
    "step_size": 0.02,
    "rate": 5e-4,
    "beta2": 0.999,
    "ema": 0.998,
    "penalty": 3e-4,
    "gap_limit": 2.0,
    "sample_every": 0,
}
"""K = 10, logistic loss; noise is refreshed every K steps and no earlier."""

LENGTHEN = {"eight_gaussians": 3.0}
"""Factor of the sampler's step size: modes far apart, and wide, are travelled between by long
steps, where sharp edges turn them down."""

PRESETS = {
    "smoke": ToyOptions(
        preset="smoke", train=TrainConfig(**TOY | {"steps": 20, "per_component": 64})
    ),
    "cpu": ToyOptions(preset="cpu", train=TrainConfig(**TOY, steps=3200)),
    "gpu": ToyOptions(
        preset="gpu", train=TrainConfig(**TOY | {"steps": 4000, "per_component": 2048})
    ),
}


def main(options: ToyOptions) -> None:
    device = connect(options)
    start(options, "toy2d", device)
    names = list(DENSITIES) if options.density == "all" else [options.density]
    results, rows = earlier(options.run), {}
    for name in names:
        figures, rows[name] = learn(name, DENSITIES[name], options, device)
        if name in results:  # it was finished before: what it took is known from then
            figures |= {key: results[name][key] for key in ("seconds", "cpu_seconds")}
        results[name] = figures
        if processes.is_main():
            write_json(options.run / "results.json", {"recipe": "toy2d", "densities": results})
    if not processes.is_main():
        return
    with atomic(options.run / "densities.png") as temporary:
        temporary.write_bytes(picture(rows))
    print("\n" + "\n".join(table({name: results[name] for name in names})))
    print(f"look: {(options.run / 'densities.png').resolve()}")


def learn(
    name: str, density: Density, options: ToyOptions, device: torch.device
) -> tuple[dict[str, float], tuple[float, Tensor, Tensor, Tensor, Tensor]]:
    """Train on one density; its figures, and what its row of the picture shows."""
    generator = torch.Generator().manual_seed(options.seed)
    x = density.sample(POINTS, generator).view(-1, 1, 1, 2)
    reference, components = GaussianReference.fit(x, rank=1, sigma=0.0, floor=1e-6)
    torch.manual_seed(options.seed)
    model = PointModel(ReferencedEnergy(reference, DenseEnergy(width=64, frequencies=32))).to(
        device
    )

    config = replace(options.train, step_size=LENGTHEN.get(name, 1.0) * options.train.step_size)

    began = time.monotonic(), time.process_time()
    train(model, x, components, config, options.run / name, seed=options.seed)
    cost = time.monotonic() - began[0], time.process_time() - began[1]

    extent = density.extent
    truth, _ = log_density_on_grid(density.log_prob, extent, CELLS)
    learnt, log_z = log_density_on_grid(model, extent, CELLS)
    alone, _ = log_density_on_grid(lambda x: reference.log_prob_all(x)[:, 0], extent, CELLS)
    points = model.draw(2000, torch.Generator(device).manual_seed(options.seed))
    figures = {
        "total_variation": total_variation(truth, learnt, extent),
        "reference_total_variation": total_variation(truth, alone, extent),
        "log_z": log_z,
        "ledger": float(model.density.log_z),
        "ledger_error": float(model.density.log_z_error),
        "seconds": cost[0],
        "cpu_seconds": cost[1],
    }
    return figures, (extent, truth, learnt, alone, points.cpu())


def earlier(run: Path) -> dict[str, dict[str, float]]:
    """Figures by density that stand in the run folder."""
    path = run / "results.json"
    return read_json(path)["densities"] if path.exists() else {}


def table(results: dict[str, dict[str, float]]) -> list[str]:
    """The figures, one density to a line."""
    lines = [
        "| density | total variation | reference alone | log Z | ledger | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        lines.append(
            f"| {name} | {r['total_variation']:.3f} | {r['reference_total_variation']:.3f} "
            f"| {r['log_z']:.3f} | {r['ledger']:.3f} +- {r['ledger_error']:.3f} "
            f"| {r['cpu_seconds']:.0f} |"
        )
    return lines


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
