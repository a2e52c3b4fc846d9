"""Langevin steps of 32 chains: chunks in one-threaded workers against PyTorch's own threads."""

from __future__ import annotations

import os

import torch

from benchmarks.timing import alternate, table
from sance_audio.energy import ReferencedEnergy
from sance_audio.networks import SIZES, ResidualEnergy
from sance_audio.reference import GaussianReference
from sance_audio.samplers import ReferenceLangevin, sample


def main(chains: int = 32, steps: int = 10) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    g = torch.Generator().manual_seed(0)
    reference, _ = GaussianReference.fit(torch.randn(64, 4096, generator=g), rank=24)
    network = ResidualEnergy(1, **SIZES["cpu"]).requires_grad_(False)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    c = torch.zeros(chains, dtype=torch.long)
    x = reference.sample(c, g).view(-1, 1, 64, 64)
    energy = ReferencedEnergy(reference, network).given(c)
    sampler = ReferenceLangevin(reference.given(c), 0.1)

    def run(threads: int, chunk: int | None) -> torch.Tensor:
        torch.set_num_threads(threads)
        return sample(energy, sampler, x, steps, generator=g, chunk=chunk)

    seconds = alternate(
        {
            f"{cores} workers of one thread, chunks of 16": lambda: run(1, 16),
            "one thread": lambda: run(1, None),
            f"{cores} threads of PyTorch's own": lambda: run(cores, None),
        }
    )
    table(f"Langevin, {chains} chains of 64 x 64", seconds, steps * chains / 1000, "ms a chain")


if __name__ == "__main__":
    main()
