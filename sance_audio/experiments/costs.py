"""What a run costs: seconds without the watching, memory, parameters."""

from __future__ import annotations

__all__ = ["Watch", "added_by_noise", "peak_mib"]

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sance_audio.files import append_jsonl, read_jsonl

Results = dict[str, Any]


class Watch:
    """A callback of `training.train`: figures along training, and the seconds that training took
    without them. A resumed run goes on in the same file.

    Arguments:
        path: JSON lines, one a point: `step`, `seconds` and the figures.
        every: Steps between points; the last step is one too.
        last: The last step.
        measure: Figures of a model with its averaged weights.
    """

    def __init__(self, path: Path, every: int, last: int, measure: Callable[[Any], Results]):
        self.path, self.every, self.last, self.measure = path, every, last, measure
        self.before: float | None = None
        self.since = time.perf_counter()

    def __call__(self, step: int, row: Results, model: Any) -> None:
        if self.before is None:  # what an interrupted call took, up to its last point
            self.before = max((p["seconds"] for p in self.points if p["step"] < step), default=0.0)
        if step % self.every and step != self.last:
            return
        self.before += time.perf_counter() - self.since
        append_jsonl(self.path, {"step": step, "seconds": self.before, **self.measure(model)})
        self.since = time.perf_counter()

    @property
    def points(self) -> list[Results]:
        """In order of steps; where a step was run again, the last time counts."""
        found = {row["step"]: row for row in read_jsonl(self.path)}
        return [found[step] for step in sorted(found)]


def added_by_noise(run: Path) -> dict[str, int]:
    """What a finished training run held besides its network, as its last checkpoint has it.

    Returns:
        `parameters`: trainable ones, all that Adam has a moment of. `network_parameters`: those of
        the energy. `extra_bytes`: what the noise holds beside network, average and optimiser: a
        frozen copy, chains and pool, or a flow with Adam's moments. `rollbacks`.
    """
    saved = torch.load(run / "state" / "latest.pt", map_location="cpu", weights_only=True)
    now = saved["now"]
    shared = ("network", "average", "optimiser", "generator")
    own = {name: part for name, part in now.items() if name not in shared}
    moments = [tensor for key, tensor in _tensors(now) if key == "exp_avg"]
    energy = [tensor for _, tensor in _tensors(now["network"])]
    return {
        "parameters": sum(tensor.numel() for tensor in moments),
        "network_parameters": sum(tensor.numel() for tensor in energy),
        "extra_bytes": sum(tensor.nbytes for _, tensor in _tensors(own)),
        "rollbacks": int(now["progress"]["rollbacks"]),
    }


def _tensors(tree: Any, key: Any = None) -> Iterator[tuple[Any, Tensor]]:
    """Tensors of a tree of dictionaries and lists, each with the key that it stands under."""
    if isinstance(tree, Tensor):
        yield key, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _tensors(value, name)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value, key)


def peak_mib() -> float:
    """Peak resident memory of this process in MiB; 0 where the system does not tell.

    Linux counts a new process's `ru_maxrss` from what its parent held; `VmHWM` is its own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # there is no such module on Windows
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
