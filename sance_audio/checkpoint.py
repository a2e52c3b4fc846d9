"""What decides the future of a training run: captured, restored, rolled back, written and read.

A checkpoint is one file, written atomically, and is read with `weights_only`: it cannot run code.
"""

from __future__ import annotations

__all__ = ["Progress", "RunState", "Diverged", "fingerprint", "rewind", "save_state", "load_state"]

import copy
import hashlib
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sance_audio.config import TrainConfig
from sance_audio.diagnostics import Ledger
from sance_audio.files import append_jsonl, atomic, read_jsonl
from sance_audio.model import AudioEBM
from sance_audio.noise import SelfNoise

MAX_ROLLBACKS = 8


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


class Diverged(RuntimeError):
    """Training went wrong again and again, at ever lower rates."""


class RunState:
    """The parts of a run that change, captured and restored together."""

    def __init__(
        self,
        network: nn.Module,
        average: nn.Module,
        optimiser: torch.optim.Optimizer,
        noise: SelfNoise,
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


def rewind(log_file: Path, step: int) -> list[dict[str, Any]]:
    """Rows of the metrics up to `step`; what lies beyond is dropped from the file."""
    rows = [row for row in read_jsonl(log_file) if row["step"] <= step]
    if [row["step"] for row in rows] != list(range(1, step + 1)):
        raise ValueError(
            f"{log_file}: does not hold steps 1 to {step} once each; use another --run"
        )
    with atomic(log_file) as temporary:
        temporary.write_text("")
        for row in rows:
            append_jsonl(temporary, row)
    return rows


def fingerprint(model: AudioEBM, x: Tensor, components: Tensor) -> str:
    """A hash of the data, the features, the reference and the shape of the network."""
    digest = hashlib.sha256(repr(model.settings | {"compute": None}).encode())
    tensors = [x, components, *model.reference.state_dict().values()]
    for tensor in [*tensors, model.features.mean, model.features.std]:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_state(path: Path, state: RunState, config: TrainConfig, identity: dict[str, Any]) -> None:
    """Write the state, with the settings and the identity that a resume must share."""
    settings = asdict(config) | identity
    with atomic(path) as temporary:
        torch.save({"settings": settings, "state": state.capture()}, temporary)


def load_state(path: Path, config: TrainConfig, identity: dict[str, Any]) -> dict[str, Any]:
    """The captured state in `path`, checked against the settings of this call.

    Raises:
        ValueError: an unreadable file; other settings, data or model, each named.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        before, state = saved["settings"], saved["state"]
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path}: not a readable training state ({error}); use another --run"
        ) from error
    now = asdict(config) | identity
    changed = [f"{k}: {before.get(k)} -> {now[k]}" for k in now if before.get(k) != now[k]]
    if changed:
        raise ValueError(
            f"{path.parent.parent} was started with other settings ({'; '.join(changed)}): "
            f"give those again, or another --run"
        )
    return state
