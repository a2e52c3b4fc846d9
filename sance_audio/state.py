"""Where a training run stands: all that decides its future, captured, restored, rolled back."""

from __future__ import annotations

__all__ = ["Clips", "Progress", "RunState", "Diverged", "fingerprint", "without"]

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sance_audio import labels
from sance_audio.chunks import slices
from sance_audio.energy import EnergyModel
from sance_audio.ledger import Ledger

SAMPLING = ("compute", "steps", "sampling_temperature", *labels.SETTINGS)
"""Settings of a model that say how it is sampled, not what it is trained to be."""
MAX_ROLLBACKS = 8


class Clips(Protocol):
    """Log-mels `(N, 1, M, T)`: a tensor, or anything that reads rows of them when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Tensor:
        """Rows `(n, 1, M, T)`, on the CPU; `rows` is a slice or a tensor of indices `(n,)`."""
        ...


class Stateful(Protocol):
    """What a run's noise must be for it to be captured and restored."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass
class Progress:
    """Where a run stands: all that is neither a tensor nor a random state."""

    step: int = 0
    since: int = 0
    """Steps since the last refresh."""
    cause: str = "start"
    """Why the noise is refreshed before the next step; empty when it is not."""
    scale: float = 1.0
    """Factor of the learning rate: halved by each rollback."""
    rollbacks: int = 0
    note: str = ""
    """What the next row of metrics says of a rollback."""
    gaps: list[float] = field(default_factory=list)
    """Network gaps of the last steps."""
    right: list[float] = field(default_factory=list)
    """Balanced accuracies of h > 0 since the last refresh."""
    ledger: Ledger = field(default_factory=Ledger)
    alarms: dict[str, int] = field(default_factory=dict)
    """What was out of its healthy range lately, by name, and at which step last."""


class Diverged(RuntimeError):
    """Training went wrong again and again, at ever lower rates."""


class RunState:
    """The parts of a run that change, captured and restored together."""

    def __init__(
        self,
        network: nn.Module,
        average: nn.Module,
        optimiser: torch.optim.Optimizer,
        noise: Stateful,
        generator: torch.Generator,
    ):
        self.stateful: dict[str, Any] = {
            "network": network,
            "average": average,
            "optimiser": optimiser,
            "noise": noise,
        }
        self.generator, self.progress = generator, Progress()

    def capture(self) -> dict[str, Any]:
        """This process's state, as `restore` takes it."""
        parts = {name: part.state_dict() for name, part in self.stateful.items()}
        parts |= {"generator": self.generator.get_state(), "progress": asdict(self.progress)}
        return copy.deepcopy(parts)

    def restore(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        progress = state["progress"]
        self.progress = Progress(**progress | {"ledger": Ledger(**progress["ledger"])})

    def roll_back(self, good: dict[str, Any], trouble: str) -> None:
        """Return to a captured state at half the rate, with the random state of now, so that the
        draws differ.
        """
        now, at = self.generator.get_state(), self.progress.step + 1
        count, scale = self.progress.rollbacks + 1, self.progress.scale / 2
        self.restore(good)
        self.generator.set_state(now)
        self.progress.rollbacks, self.progress.scale = count, scale
        self.progress.note = (
            f"step {at}: {trouble}; back to step {self.progress.step} at rate x {scale:g}"
        )
        if count > MAX_ROLLBACKS:
            raise Diverged(
                f"training diverged {count} times, last at {self.progress.note}. Lower "
                f"train.rate or raise "
                f"train.langevin_steps; the last checkpoint is intact"
            )


def fingerprint(model: EnergyModel, x: Clips, components: Tensor) -> tuple[str, ...]:
    """A hash of the data, the features, the reference and the shape of the network, and the hash
    that checkpoints from before truncation have of the same.

    Raises:
        ValueError: data that is not finite.
    """
    before = without(model.settings, labels.SETTINGS) | {"compute": None}
    digests = [
        hashlib.sha256(repr(s).encode()) for s in (without(model.settings, SAMPLING), before)
    ]
    learnt = ("density.network.", "density.log_z", *labels.TENSORS)
    fixed = [t for name, t in model.state_dict().items() if not name.startswith(learnt)]
    for tensor in chain(_finite(x), [components, *fixed]):
        data = tensor.detach().cpu().contiguous().numpy().tobytes()
        for digest in digests:
            digest.update(data)
    return tuple(digest.hexdigest()[:16] for digest in digests)


def without(settings: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Settings, those of the model among them, but for some."""
    inner = {k: v for k, v in settings.get("model", {}).items() if k not in names}
    kept = {k: v for k, v in settings.items() if k not in names}
    return kept | ({"model": inner} if "model" in settings else {})


def _finite(x: Clips) -> Iterator[Tensor]:
    """The clips, 1,024 at a time; ValueError where one is not finite."""
    for part in slices(len(x), 1024):
        rows = x[part]
        bad = (~rows.isfinite().flatten(1).all(1)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"training clip {part.start + int(bad[0])} holds NaN or infinite features (so do "
                f"{len(bad) - 1} of the 1,023 after it): leave it out, or mend its recording"
            )
        yield rows
