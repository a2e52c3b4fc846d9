"""Faults planted into the samplers, and which law of `sampler_laws` catches each.

    python tests/planted_faults.py

prints a table, and exits with status 1 if a law fails without a fault, or a fault passes all of
its laws. A law fails where it exceeds 4 standard errors on one seed and again on a fresh one.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from checks import holds_on_a_fresh_seed
from sampler_laws import LAWS, Bent

from sance_audio.samplers import engine, interface, langevin, metropolis, tempering
from sance_audio.samplers.interface import State
from sance_audio.samplers.langevin import Langevin, ReferenceLangevin, ReferencePreconditioner
from sance_audio.samplers.metropolis import HMC, MALA

Fault = tuple[Callable[[], AbstractContextManager[Any]], tuple[str, ...]]


def replaced(module: Any, name: str, change: Callable[[Any], Any]) -> Callable[[], Any]:
    """`module.name` becomes `change` of what it was."""
    return lambda: patch.object(module, name, change(getattr(module, name)))


def noise_times(module: Any, factor: float) -> Callable[[], Any]:
    return replaced(module, "randn", lambda f: lambda like, g: factor * f(like, g))


def drift_turned() -> Callable[[Any], Any]:
    """The gradient's sign, in the move alone."""
    return lambda move: (
        lambda self, energy, state, noise: move(
            self, energy, state._replace(grad=-state.grad), noise
        )
    )


def always(metropolis_: Any) -> Any:
    return lambda state, proposal, ratio, u: metropolis_(
        state, proposal, torch.zeros_like(ratio), u - 1
    )


def kept(**swapped: str) -> Callable[[Any], Any]:
    """After a step, parts of the state are those of the state before, or of the proposal."""

    def change(metropolis_: Any) -> Any:
        def faulty(state: State, proposal: State, ratio: Any, u: Any) -> Any:
            after, info = metropolis_(state, proposal, ratio, u)
            source = {"before": state, "proposal": proposal}
            parts = {k: getattr(source[v], k) for k, v in swapped.items()}
            return after._replace(**parts), info

        return faulty

    return change


@contextlib.contextmanager
def in_metropolis(change: Callable[[Any], Any]) -> Iterator[None]:
    """A fault of the acceptance, wherever it is used."""
    faulty = change(interface.metropolis)
    with (
        patch.object(langevin, "metropolis", faulty),
        patch.object(metropolis, "metropolis", faulty),
    ):
        yield


def accepting(change: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: in_metropolis(change)


def ratio(change: Callable[[Any, State, State], Any]) -> Callable[[Any], Any]:
    """The log ratio, changed."""
    return lambda f: (
        lambda state, proposal, r, u: f(state, proposal, change(r, state, proposal), u)
    )


def one_for_all(f: Any) -> Any:
    def same(like: torch.Tensor, generator: Any) -> torch.Tensor:
        return f(like[:1], generator).expand(like.shape if like.ndim > 1 else (len(like),))

    return same


def one_number_for_all(f: Any) -> Any:
    return lambda x, generator: f(x[:1], generator).expand(len(x))


def the_same_each_step(f: Any) -> Any:
    first: list[torch.Tensor] = []

    def same(like: torch.Tensor, generator: Any) -> torch.Tensor:
        first.append(f(like, generator))
        return first[0] if first[0].shape == like.shape else first[-1]

    return same


def state_dependent(f: Any) -> Any:
    """A step size that depends on x: a preconditioner that does, without its correction term."""

    def move(self: Any, energy: Any, state: Any, noise: Any) -> Any:
        other = self.with_step_size(self.step_size / (1 + state.x.square().mean(1)))
        return f(other, energy, state, noise)

    return move


def exchange_fault(change: Callable[[Any, Any, Any], Any]) -> Callable[[], Any]:
    return replaced(
        tempering.ReplicaExchange,
        "_exchange",
        lambda f: lambda self, state, count, u, parity: change(f, self, (state, count, u, parity)),
    )


def turned(f: Any, self: Any, given: Any) -> Any:
    """Energies of the wrong sign in the exchange."""
    state, count, u, parity = given
    after, chance = f(self, state._replace(value=-state.value), count, u, parity)
    return after._replace(value=-after.value), chance


def unconditional(f: Any, self: Any, given: Any) -> Any:
    state, count, u, parity = given
    return f(self, state, count, torch.full_like(u, -torch.inf), parity)


def places_only(f: Any, self: Any, given: Any) -> Any:
    """x changes places, value and gradient stay."""
    after, chance = f(self, *given)
    return after._replace(value=given[0].value, grad=given[0].grad), chance


def both_decide(f: Any, self: Any, given: Any) -> Any:
    """The numbers that decide favour the exchange by a factor of 1.5."""
    state, count, u, parity = given
    return f(self, state, count, u - 0.4, parity)


def one_for_all_pairs(f: Any, self: Any, given: Any) -> Any:
    state, count, u, parity = given
    return f(self, state, count, u[:1].expand_as(u), parity)


def told_nothing(f: Any, self: Any, given: Any) -> Any:
    after, chance = f(self, *given)
    return after, torch.zeros_like(chance)


def told(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What is said of the acceptance, changed."""

    def faulty(metropolis_: Any) -> Any:
        def call(*args: Any) -> Any:
            after, info = metropolis_(*args)
            return after, info._replace(accepted=change(info.accepted))

        return call

    return faulty


def second_half_repeats(f: Any) -> Any:
    def repeated(like: torch.Tensor, generator: Any) -> torch.Tensor:
        half = len(like) // 2
        return torch.cat([f(like[:half], generator)] * 2) if half else f(like, generator)

    return repeated


def opposite(f: Any) -> Any:
    def call(like: torch.Tensor, generator: Any) -> torch.Tensor:
        xi = f(like, generator).clone()
        xi[2::4], xi[3::4] = -xi[::4], -xi[1::4]
        return xi

    return call


def one_seed(generator: Any, parts: Any) -> Any:
    return [torch.Generator().manual_seed(generator.initial_seed()) for _ in parts]


def scaled_wrongly(f: Any) -> Any:
    """The temperature forgotten in the gradient."""
    return lambda state, beta: f(state, beta)._replace(grad=state.grad)


MOVES = ("MALA invariant", "MALA moments")
HAMILTONIAN = ("HMC invariant", "HMC moments")
REFERENCE = ("adjusted ReferenceLangevin invariant", "adjusted ReferenceLangevin moments")
REPLICAS = ("replicas invariant", "replica exchange moments")

FAULTS: dict[str, Fault] = {
    "Langevin: noise x 1.05": (noise_times(interface, 1.05), ("ULA transient",)),
    "Langevin: noise x 0.95": (noise_times(interface, 0.95), ("ULA transient",)),
    "Langevin: drift of the wrong sign": (
        replaced(Langevin, "move", drift_turned()),
        ("ULA transient",),
    ),
    "Langevin: sqrt(eps) for sqrt(2 eps)": (noise_times(interface, 2**-0.5), ("ULA transient",)),
    "Langevin: preconditioner depends on x": (
        replaced(Langevin, "move", state_dependent),
        ("ULA transient",),
    ),
    "Langevin: noise without the preconditioner": (
        replaced(ReferencePreconditioner, "root", lambda f: lambda self, v: v),
        ("ULA transient",),
    ),
    "Langevin: drift without the preconditioner": (
        replaced(ReferencePreconditioner, "apply", lambda f: lambda self, v: v),
        ("ULA transient",),
    ),
    "Langevin: one noise for all chains": (
        replaced(interface, "randn", one_for_all),
        ("ULA transient",),
    ),
    "Langevin: the same noise at every step": (
        replaced(interface, "randn", the_same_each_step),
        ("ULA transient",),
    ),
    "ReferenceLangevin: noise x 1.05": (
        noise_times(langevin, 1.05),
        ("OU transient", "reference invariant, eps 1.0"),
    ),
    "ReferenceLangevin: cap forgotten in rho": (
        replaced(
            ReferenceLangevin,
            "_rho",
            lambda f: lambda self, noise: torch.exp(-self.step_size * torch.ones_like(self._rate)),
        ),
        ("OU transient",),
    ),
    "ReferenceLangevin: Euler step for exp": (
        replaced(
            ReferenceLangevin,
            "_rho",
            lambda f: lambda self, noise: 1 - self.step_size * self._rate,
        ),
        ("OU transient",),
    ),
    "ReferenceLangevin: drift of F of the wrong sign, accepted": (
        lambda: _both(accepting(always), replaced(ReferenceLangevin, "move", drift_turned())),
        REFERENCE,
    ),
    "ReferenceLangevin: log ratio of the wrong sign": (
        replaced(ReferenceLangevin, "_log_ratio", lambda f: lambda *a: -f(*a)),
        REFERENCE,
    ),
    "ReferenceLangevin: energies alone in the log ratio": (
        replaced(
            ReferenceLangevin, "_log_ratio", lambda f: lambda self, s, p, rho: s.value - p.value
        ),
        REFERENCE,
    ),
    "ReferenceLangevin: dropped accept step": (accepting(always), REFERENCE),
    "MALA: noise x 1.05": (noise_times(metropolis, 1.05), MOVES),
    "MALA: dropped accept step": (accepting(always), MOVES),
    "MALA: log ratio of the wrong sign": (accepting(ratio(lambda r, s, p: -r)), MOVES),
    "MALA: energies alone in the log ratio": (
        accepting(ratio(lambda r, s, p: s.value - p.value)),
        MOVES,
    ),
    "MALA: log ratio without energies": (
        accepting(ratio(lambda r, s, p: r - s.value + p.value)),
        MOVES,
    ),
    "MALA: stale gradient after acceptance": (accepting(kept(grad="before")), MOVES),
    "MALA: gradient of the proposal after rejection": (accepting(kept(grad="proposal")), MOVES),
    "MALA: stale energy after acceptance": (accepting(kept(value="before")), MOVES),
    "MALA: preconditioner depends on x": (replaced(MALA, "move", state_dependent), MOVES),
    "MALA: one noise for all chains": (replaced(metropolis, "randn", one_for_all), MOVES),
    "MALA: one uniform number for all chains": (
        replaced(metropolis, "log_uniform", one_number_for_all),
        MOVES,
    ),
    "MALA: uniform numbers for their logarithms": (
        replaced(metropolis, "log_uniform", lambda f: lambda x, g: f(x, g).exp()),
        MOVES,
    ),
    "MALA: noise without the preconditioner": (
        replaced(metropolis, "randn", lambda f: lambda like, g: f(like, g) / Bent.p.sqrt()),
        ("MALA, preconditioned invariant",),
    ),
    "HMC: momentum x 1.05": (noise_times(metropolis, 1.05), HAMILTONIAN),
    "HMC: dropped accept step": (accepting(always), HAMILTONIAN),
    "HMC: kinetic energy left out": (
        accepting(ratio(lambda r, s, p: s.value - p.value)),
        HAMILTONIAN,
    ),
    "HMC: gradient not renewed": (
        replaced(metropolis, "value_and_grad", lambda f: _stale(f)),
        HAMILTONIAN,
    ),
    "HMC: preconditioner depends on x": (replaced(HMC, "move", state_dependent), HAMILTONIAN),
    "replicas: exchange of the wrong sign": (exchange_fault(turned), REPLICAS),
    "replicas: exchange always": (exchange_fault(unconditional), REPLICAS),
    "replicas: exchange too often": (exchange_fault(both_decide), REPLICAS),
    "replicas: energies stay when places change": (exchange_fault(places_only), REPLICAS),
    "replicas: temperature forgotten in the gradient, accepted": (
        lambda: _both(accepting(always), replaced(tempering, "_scale", scaled_wrongly)),
        REPLICAS,
    ),
    "replicas: one uniform number for all pairs": (
        exchange_fault(one_for_all_pairs),
        ("replicas invariant",),
    ),
    "replicas: exchanges told wrongly": (exchange_fault(told_nothing), ("replicas invariant",)),
    "replicas: temperature forgotten in F": (
        replaced(tempering.Scaled, "learnt", lambda f: lambda self, x: self.part(x)),
        ("tempered network",),
    ),
    "acceptance told is the root of what it is": (
        accepting(told(lambda a: a.sqrt())),
        ("MALA acceptance",),
    ),
    "acceptance told is what came of it": (
        accepting(told(lambda a: (a + 0.05).clamp_max(1))),
        ("HMC acceptance",),
    ),
    "ReferenceLangevin: rho of all chains in the log ratio": (
        replaced(
            ReferenceLangevin,
            "_log_ratio",
            lambda f: (
                lambda self, s, p, rho: f(self, s, p, rho.mean(0, keepdim=True).expand_as(rho))
            ),
        ),
        ("adjusted ReferenceLangevin, a step size and a reference a chain",),
    ),
    "MALA: the second half of chains has the first half's noise": (
        replaced(metropolis, "randn", second_half_repeats),
        MOVES,
    ),
    "Langevin: the second half of chains has the first half's noise": (
        replaced(interface, "randn", second_half_repeats),
        ("ULA transient",),
    ),
    "Langevin: chains two apart have opposite noise": (
        replaced(interface, "randn", opposite),
        ("ULA transient",),
    ),
    "MALA: chunks share one seed": (
        replaced(engine, "_spread", lambda f: one_seed),
        ("MALA in chunks",),
    ),
    "MALA: unlikely proposals never accepted": (
        replaced(metropolis, "log_uniform", lambda f: lambda x, g: f(x, g).clamp_min(-1.0)),
        ("MALA, long steps invariant",),
    ),
    "annealed: temperature forgotten": (
        lambda: _both(
            replaced(tempering, "_scale", lambda f: lambda state, beta: state),
            replaced(tempering.Scaled, "__call__", lambda f: lambda self, x: self.part(x)),
        ),
        ("annealed MALA at one half",),
    ),
}
"""Name: how it is planted, and the laws that are to catch it."""


@contextlib.contextmanager
def _both(*faults: Callable[[], Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for fault in faults:
            stack.enter_context(fault())
        yield


def _stale(f: Any) -> Any:
    """Every second gradient is the one before."""
    last: list[Any] = []

    def faulty(energy: Any, x: torch.Tensor) -> Any:
        value, grad = f(energy, x)
        last.append(grad)
        stale = len(last) % 2 == 0 and last[-2].shape == grad.shape
        return value, last[-2] if stale else grad

    return faulty


def holds(law: str) -> bool:
    """Whether a law holds as it stands."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            holds_on_a_fresh_seed(LAWS[law])
    except (AssertionError, ValueError):
        return False
    return True


def caught(name: str) -> str | None:
    """The first of its laws that a fault breaks; None where it passes all."""
    plant, laws = FAULTS[name]
    with plant():
        return next((law for law in laws if not holds(law)), None)


def main() -> int:
    torch.set_num_threads(1)
    broken = [law for law in LAWS if not holds(law)]
    print(f"{len(LAWS) - len(broken)} of {len(LAWS)} laws hold without a fault {broken or ''}")
    found = {name: caught(name) for name in FAULTS}
    for name, law in found.items():
        print(f"{name:60} {'caught by ' + law if law else 'NOT CAUGHT'}")
    missed = [name for name, law in found.items() if law is None]
    print(f"{len(found) - len(missed)} of {len(found)} planted faults caught")
    return 1 if broken or missed else 0


if __name__ == "__main__":
    sys.exit(main())
