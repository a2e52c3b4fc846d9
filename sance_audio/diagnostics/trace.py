"""What the chains of `sample` did: energies, acceptance, and the states if they are kept.

    trace = Trace()
    sample(energy, sampler, x0, steps, generator=generator, callback=trace)
    print(trace.summary(skip=steps // 2))

References: see `convergence.py`.
"""

from __future__ import annotations

__all__ = ["Trace", "TraceSummary", "Convergence"]

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sance_audio.diagnostics.convergence import bulk_ess, r_hat, tail_ess


@dataclass(frozen=True)
class Convergence:
    """The worst cell of what was traced."""

    r_hat: float
    """The largest; NaN for a single chain, or where some cell never changes."""
    bulk_ess: float
    """The smallest."""
    tail_ess: float
    """The smallest."""

    @classmethod
    def of(cls, draws: Tensor) -> Convergence:
        """Of draws `(chains, draws, ...)`."""
        return cls(
            float(r_hat(draws).max()), float(bulk_ess(draws).min()), float(tail_ess(draws).min())
        )

    def __str__(self) -> str:
        return (
            f"R-hat {self.r_hat:.3f}, bulk ESS {self.bulk_ess:.0f}, tail ESS {self.tail_ess:.0f}"
        )


@dataclass(frozen=True)
class TraceSummary:
    """A trace in a few numbers."""

    chains: int
    steps: int
    """Those that were summarised."""
    accepted: float
    """Mean probability of acceptance."""
    energy: Convergence
    x: Convergence | None
    """The worst cell of x; None where the states were not kept."""

    def __str__(self) -> str:
        lines = [
            f"{self.chains} chains, {self.steps} steps, acceptance {self.accepted:.3f}",
            f"energy: {self.energy}",
        ]
        return "\n".join([*lines, f"x, worst cell: {self.x}"] if self.x else lines)


class Trace:
    """A callback of `sample` that records what each step left behind, on the device of the chains.

    Nothing waits for the device until a record is read. Energies are those of the state: a sampler
    that differentiates a part of the energy only (`ReferenceLangevin`) leaves that part. Another
    call of `sample` with the same trace goes on where the last one ended.

    Arguments:
        keep: Keep the states as well.
        thin: Of these, every `thin`-th.
    """

    def __init__(self, keep: bool = False, thin: int = 1):
        if thin < 1:
            raise ValueError(f"thin must be at least 1, found {thin}: it counts steps")
        self.keep, self.thin = keep, thin
        self._energies: list[Tensor] = []
        self._accepted: list[Tensor] = []
        self._states: list[Tensor] = []

    def __call__(self, step: int, state: Any, info: Any) -> None:
        """Record a step: its number (not used), `state` with `x` `(B, ...)` and `value` `(B,)`,
        and `info` with `accepted` `(B,)`.
        """
        if self._energies and state.value.shape != self._energies[0].shape:
            raise ValueError(
                f"the trace holds {len(self._energies[0])} chains, found {len(state.value)}: one "
                f"trace for each set of chains"
            )
        self._energies.append(state.value.detach().clone())
        self._accepted.append(info.accepted.detach().clone())
        if self.keep and len(self._energies) % self.thin == 0:
            self._states.append(state.x.detach().clone())

    def __len__(self) -> int:
        """Steps recorded."""
        return len(self._energies)

    @property
    def energies(self) -> Tensor:
        """`(B, steps)`, in nats."""
        return self._joined(self._energies, "energies", "run `sample` with callback=trace first")

    @property
    def accepted(self) -> Tensor:
        """`(B, steps)`: probabilities of acceptance."""
        return self._joined(self._accepted, "acceptance", "run `sample` with callback=trace first")

    @property
    def x(self) -> Tensor:
        """`(B, steps // thin, ...)`: the states that were kept."""
        return self._joined(self._states, "states", "ask for Trace(keep=True), and run for longer")

    def summary(self, skip: int = 0) -> TraceSummary:
        """Acceptance and convergence, the first `skip` steps left out as warm-up.

        Raises:
            ValueError: fewer than 4 steps (or states, where they are kept) are left, or some
                energies are not finite.
        """
        if not 0 <= skip <= len(self) - 4:
            raise ValueError(
                f"skip must leave at least 4 of {len(self)} steps, found {skip}: run for longer"
            )
        first = skip // self.thin
        energies = self.energies[:, skip:]
        return TraceSummary(
            chains=energies.shape[0],
            steps=energies.shape[1],
            accepted=float(self.accepted[:, skip:].double().mean()),
            energy=Convergence.of(energies),
            x=Convergence.of(self.x[:, first:]) if self.keep else None,
        )

    @staticmethod
    def _joined(records: list[Tensor], name: str, remedy: str) -> Tensor:
        if not records:
            raise ValueError(f"the trace holds no {name}: {remedy}")
        return torch.stack(records, 1)
