"""What every training loop shares: how it begins, what it keeps of a step, how it goes back.

The loops themselves are `training.train` and `conditional_training.train_conditional`.
"""

from __future__ import annotations

__all__ = ["Callbacks", "Journal", "GOOD_EVERY", "start_together", "rows_on", "move_average"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sance_audio import processes
from sance_audio.checkpoint import RunFolder
from sance_audio.config import TrainConfig
from sance_audio.energy import EnergyModel
from sance_audio.health import LATEST, alarms
from sance_audio.state import Clips, RunState

Callbacks = tuple[Callable[[int, dict[str, Any], Any], None], ...]
"""Called after every step with (step from 1, its row of metrics, the model with its averaged
weights), in the main process.
"""

GOOD_EVERY = 25
"""Steps between captures that a rollback returns to."""


class Journal:
    """What a run keeps of its steps: rows of metrics, checkpoints, the state to fall back to.

    Arguments:
        folder: The run's files.
        state: Its parts, brought here to where the run stands.
        config: Settings.
        model: Shown to the callbacks.
        callbacks: See `Callbacks`.
        progress: Show a progress bar.

    Raises:
        ValueError: as `RunFolder.resume`.
    """

    def __init__(
        self,
        folder: RunFolder,
        state: RunState,
        config: TrainConfig,
        model: EnergyModel,
        callbacks: Callbacks = (),
        progress: bool = True,
    ):
        from tqdm import tqdm

        self.folder, self.state, self.config, self.model = folder, state, config, model
        self.rows, self.good = folder.resume(state)
        self.callbacks = callbacks if processes.is_main() else ()
        self.bar = tqdm(
            total=config.steps,
            initial=len(self.rows),
            desc="train",
            unit="step",
            disable=not (progress and processes.is_main()),
        )

    def take_back(self, wrong: str) -> None:
        """Return to the last good state at half the rate, and say why."""
        self.state.roll_back(self.good, wrong)
        self.rows = self.folder.roll_back(self.state, self.good)
        if processes.is_main():
            self.bar.write(self.state.progress.note)
        self.bar.n = len(self.rows)

    def enter(self, row: dict[str, Any]) -> None:
        """A step is done: its row of metrics, with alarms; callbacks; a checkpoint when due."""
        p, config = self.state.progress, self.config
        if p.note:
            row["rollback"], p.note = p.note, ""
        found = alarms([*self.rows[1 - LATEST :], row], config)
        new = [words for name, words in found.items() if name not in p.alarms]
        last = p.alarms | dict.fromkeys(found, p.step)
        p.alarms = {name: step for name, step in last.items() if step > p.step - LATEST}
        row |= {"alarm": "; ".join(new)} if new else {}
        for words in new if processes.is_main() else ():
            self.bar.write(f"step {p.step}: {words}")
        self.folder.log(row)
        self.rows.append(row)
        if p.step % GOOD_EVERY == 0 and abs(sum(p.gaps)) <= config.gap_limit / 4 * len(p.gaps):
            self.good = self.state.capture()
        for callback in self.callbacks:
            callback(p.step, row, self.model)  # before the checkpoint: a kill in between repeats
        if p.step % config.checkpoint_every == 0 or p.step == config.steps:
            self.folder.save(self.state, self.good)
        gap = sum(p.gaps) / max(1, len(p.gaps))
        self.bar.set_postfix_str(f"gap {gap:+.2f} nats", refresh=False)
        self.bar.update()


def start_together(model: EnergyModel, components: Tensor) -> Tensor:
    """Take over the main process's weights, reference and features into `model`, and return its
    components: fitted apart, they could differ in their last bits.
    """
    own = dict([*model.named_parameters(), *model.named_buffers()])
    shared = processes.share(
        ({name: tensor.detach().cpu() for name, tensor in own.items()}, components.cpu())
    )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(shared[0][name])
    return shared[1]


def rows_on(clips: Clips, index: Tensor, device: torch.device) -> Tensor:
    """Rows of the clips, on the device; read there or brought there."""
    return clips[index if isinstance(clips, Tensor) else index.cpu()].to(device)


def move_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """`average <- decay average + (1 - decay) network`, parameter by parameter."""
    with torch.no_grad():
        for a, b in zip(average.parameters(), network.parameters(), strict=True):
            a.lerp_(b, 1 - decay)
