"""Langevin steps, side by side: torchebm, ebmkit, a bare loop, and ours.

    python -m benchmarks.sampling                  # the CPU, one thread; some 12 minutes
    python -m benchmarks.sampling --device cuda    # a GPU

Same energies, chains, starts and step size, one process, in turn; medians, and ratios round by
round. "ours, chosen" takes the path that `choose` measured to be the fastest; where it is the
eager one, the compiled one is shown beside it. Effective samples a second are those of the slowest
direction of the small network's target, from long runs of each sampler.

Needs the extra [bench].
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from sance_audio.diagnostics import mean_ess
from sance_audio.model import AudioEBM
from sance_audio.networks import SIZES, ResidualEnergy
from sance_audio.samplers import (
    HMC,
    MALA,
    Compute,
    Langevin,
    ReferenceLangevin,
    choose,
    sample,
    timed,
    warm_up,
)

EPS = 0.01
CHAINS = (1, 64, 1024)
BLOCK = 8
"""Steps of a compiled block."""


class SmallMLP(nn.Module):
    """2 - 64 - 64 - 1 with SiLU, and a unit Gaussian that keeps chains together."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.net(x).squeeze(-1) + 0.5 * x.square().sum(1)


class Spectrogram(nn.Module):
    """The energy network of a preset on log-mels of 64 x 64, and a unit Gaussian."""

    def __init__(self, size: str):
        super().__init__()
        self.net = ResidualEnergy(1, **SIZES[size])
        nn.init.normal_(self.net.head.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 0.5 * x.flatten(1).square().sum(1)


def energies(device: torch.device) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Energy, and the shape of one x."""
    torch.manual_seed(0)
    built: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "small MLP": (SmallMLP(), (2,)),
        "CPU network": (Spectrogram("cpu"), (1, 64, 64)),
        "GPU network": (Spectrogram("gpu"), (1, 64, 64)),
    }
    return {k: (e.to(device).requires_grad_(False), shape) for k, (e, shape) in built.items()}


def micro(runs: dict[str, peers.Run], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Microseconds a step of each, in turn; about `seconds` a measurement."""
    timed({name: functools.partial(_done, run, BLOCK) for name, run in runs.items()}, 1)
    began = time.perf_counter()  # first calls, and what they do once, were before
    for run in runs.values():
        _done(run, BLOCK)
    each = (time.perf_counter() - began) / (BLOCK * len(runs))
    steps = min(60, max(2, int(seconds / each / BLOCK))) * BLOCK
    calls = {name: functools.partial(_done, run, steps) for name, run in runs.items()}
    found = timed(calls, rounds)
    return {name: [1e6 * took / steps for took in own] for name, own in found.items()}


def _done(run: peers.Run, steps: int) -> None:
    """So many steps, done when this returns."""
    run(steps)
    _wait()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def contestants(
    energy: Any, x0: Tensor, compiled: bool, bfloat16: bool, large: bool
) -> tuple[dict[str, peers.Run], str]:
    """The runs to compare, and in words what was chosen."""
    paths = ("compiled", "cuda_graph") if compiled else ()
    chosen = choose(energy, Langevin(EPS), x0, paths=paths, rounds=3 if large else 5, steps=BLOCK)
    runs = {"bare loop": peers.bare(energy, x0, EPS), **peers.others(energy, x0, EPS)}
    runs["ours, eager"] = peers.ours(energy, x0, EPS)
    if chosen.path != "eager":
        runs[f"ours, chosen ({chosen.path})"] = peers.ours(energy, x0, EPS, chosen)
    elif compiled:
        runs["ours, compiled (not chosen)"] = peers.ours(energy, x0, EPS, Compute("compiled"))
    if bfloat16:
        runs["ours, bfloat16"] = peers.ours(energy, x0, EPS, Compute(precision="bfloat16"))
    return runs, chosen.why


def speed(device: torch.device, rounds: int, seconds: float, largest: int) -> None:
    """Time a step of every contestant, by network and number of chains."""
    for name, (energy, shape) in energies(device).items():
        for chains in CHAINS:
            if chains * torch.Size(shape).numel() > largest:
                print(f"\n{name}, {chains} chains: not run (--largest {largest})")
                continue
            x0 = torch.randn(chains, *shape, generator=torch.Generator().manual_seed(0))
            compiled = name != "GPU network" or device.type == "cuda"
            bfloat16 = name != "small MLP" and chains > 1
            large = x0.numel() > 2**20 and device.type == "cpu"
            runs, why = contestants(energy, x0.to(device), compiled, bfloat16, large)
            found = micro(runs, seconds, 3 if large else rounds)
            print(f"\n{name}, {chains} chains (choose: {why})")
            table(found)


def table(found: dict[str, list[float]]) -> None:
    """Medians, and medians of ratios round by round: to the bare loop, of the peers to each."""
    there = [name for name in ("torchebm", "ebmkit") if name in found]
    heads = "".join(f"{name + ' /':>12}" for name in there)
    print(f"{'':34}{'us a step':>12}{'steps/s':>10}{'/ bare':>8}{heads}")
    for contestant, own in found.items():
        pairs = [(own, found["bare loop"]), *((found[name], own) for name in there)]
        ratios = [statistics.median(a / b for a, b in zip(x, y, strict=True)) for x, y in pairs]
        median = statistics.median(own)
        tail = "".join(f"{r:12.2f}" for r in ratios[1:])
        print(f"{contestant:34}{median:12.1f}{1e6 / median:10.1f}{ratios[0]:8.2f}{tail}")


def effective(device: torch.device, rounds: int, chains: int = 64, steps: int = 2000) -> None:
    """Effective samples a second on the small network's target: the smaller of its two directions,
    every sampler of ours at its own step size (ULA at that of the peers).
    """
    energy, shape = energies(device)["small MLP"]
    generator = torch.Generator(device).manual_seed(0)
    x0 = torch.randn(chains, *shape, device=device)
    samplers: dict[str, Any] = {"ULA, eps 0.01": Langevin(EPS)}
    for name, start in (("MALA", MALA(0.1)), ("HMC, 5 steps", HMC(0.1, 5))):
        samplers[f"{name}, warmed up"], _ = warm_up(energy, start, x0, 300, generator=generator)
    print(f"\nsmall MLP, {chains} chains: effective samples a second, {steps} steps")
    print(f"{'':44}{'ESS / step':>12}{'ESS / s':>12}")
    for name, sampler in samplers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draws = sample(energy, sampler, x0, steps, generator=generator, thin=1)
        ess = float(mean_ess(draws[steps // 4 :].transpose(0, 1)).min()) / (0.75 * steps)
        chosen = choose(energy, sampler, x0)
        runs = {"ours": _runner(energy, sampler, x0, chosen)}
        if isinstance(sampler, Langevin):
            runs |= peers.others(energy, x0, EPS)
        for who, times in micro(runs, 0.1, rounds).items():
            rate = 1e6 / statistics.median(times)
            print(f"{who + ', ' + name:44}{ess:12.3f}{ess * rate:12.0f}")


def _runner(energy: Any, sampler: Any, x0: Tensor, compute: Compute) -> peers.Run:
    generator = torch.Generator(x0.device).manual_seed(0)
    return lambda steps: sample(energy, sampler, x0, steps, generator=generator, compute=compute)


def bias(device: torch.device, run: str | None, chains: int = 64, steps: int = 200) -> None:
    """What bfloat16 does to where chains end, same noise: of a trained model where a run is given,
    else of the CPU network as it is drawn.
    """
    generator = torch.Generator(device).manual_seed(0)
    energy: Any
    if run is None:
        energy, shape = energies(device)["CPU network"]
        sampler: Any = Langevin(EPS)
        x0, learnt = torch.randn(chains, *shape, device=device), energy.net
    else:
        model = AudioEBM.from_pretrained(run, device)
        c = torch.arange(chains, device=device) % model.reference.n_components
        base = model.density.base
        energy = model.density.given(c)
        sampler = ReferenceLangevin(base.given(c), model.step_size, model.cap)
        x0 = base.sample(c, generator).view(chains, 1, *model.shape)
        learnt = energy.learnt
    found = {}
    for precision in ("float32", "bfloat16"):
        generator.manual_seed(1)
        how = Compute(precision=precision)
        x = sample(energy, sampler, x0, steps, generator=generator, compute=how)
        with torch.no_grad():
            found[precision] = {"network's energy": learnt(x), "whole energy": energy(x)}
    print()
    for what, exact in found["float32"].items():
        gap = found["bfloat16"][what] - exact
        print(
            f"bfloat16 less float32, {chains} chains, {run or 'CPU network'}, {steps} steps, "
            f"{what}: {float(gap.mean()):+.4f} nats, standard error "
            f"{float(gap.std()) / chains**0.5:.4f}; spread between chains {float(exact.std()):.2f}"
        )


def synchronisations(device: torch.device) -> None:
    """Steps with every wait of the host for the device forbidden."""
    energy, shape = energies(device)["GPU network"]
    sampler, x0 = Langevin(EPS), torch.randn(64, *shape, device=device)
    generator = torch.Generator(device).manual_seed(0)
    state = sampler.init(energy, x0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            state, _ = sampler.step(energy, state, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    print("\n20 steps of 64 chains without a synchronisation")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parts = ("speed", "effective", "bias")
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--run", default=None, help="a finished run, for the bias of bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.25, help="of one measurement")
    parser.add_argument("--largest", type=int, default=2**23, help="cells of all chains together")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    torch.set_num_threads(1)
    if "speed" in args.parts:
        speed(device, args.rounds, args.seconds, args.largest)
    if "effective" in args.parts:
        effective(device, args.rounds)
    if "bias" in args.parts:
        bias(device, args.run)
    if device.type == "cuda":
        synchronisations(device)


if __name__ == "__main__":
    main()
