"""Several processes that train one model, as `torchrun` or `accelerate launch` starts them.

Rank 0 is the main process: it alone writes. In a single process everything here does nothing,
and imports nothing. Whatever several processes do together they must all call, in one order.
"""

from __future__ import annotations

__all__ = [
    "count",
    "rank",
    "is_main",
    "join",
    "wait",
    "share",
    "gather",
    "mean",
    "on_main",
    "own_seed",
]

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

T = TypeVar("T")


def count() -> int:
    """Number of processes, from the environment that the launcher has set; 1 without one."""
    return _from_environment("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", default=1)


def rank() -> int:
    """Number of this process, from 0."""
    if count() == 1:
        return 0
    return _from_environment("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", default=0)


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def _from_environment(*names: str, default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), default)


def join(device: Any = None) -> None:
    """Connect the processes, once: gloo between CPUs, the device's own way between GPUs.

    Arguments:
        device: What training will run on. Left out: as connected before, else the CPU; so a run on
            GPUs names its device here before it calls any other of these functions.

    Raises:
        ValueError: the launcher's processes cannot be connected, or are on another device.
    """
    if count() == 1:
        return
    import torch
    from accelerate import PartialState

    threads = torch.get_num_threads()
    kind = torch.device("cpu" if device is None else device).type
    joined = PartialState(cpu=kind == "cpu")
    torch.set_num_threads(threads)  # accelerate has its own idea, which would change last bits
    if joined.num_processes != count():
        raise ValueError(
            f"the environment speaks of {count()} processes (WORLD_SIZE), {joined.num_processes} "
            f"connected: start with torchrun, or unset WORLD_SIZE for a single process"
        )
    if device is not None and joined.device.type != kind:
        raise ValueError(
            f"the processes are connected on {joined.device.type}, training wants {kind}: call "
            f"processes.join({kind!r}) first of all"
        )


def wait(device: Any = None) -> None:
    """Return when every process has come here; `device` as in `join`."""
    join(device)
    gather(None)


def share(value: T) -> T:
    """The main process's `value`, in every process; tensors in it should lie on the CPU."""
    if count() == 1:
        return value
    from torch import distributed

    join()
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def gather(value: T) -> list[T]:
    """The `value` of every process by rank, in every process."""
    if count() == 1:
        return [value]
    from torch import distributed

    join()
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def mean(values: Sequence[float]) -> list[float]:
    """The mean of each number over the processes, with the same bits in all of them.

    >>> mean([0.1, 2.0])
    [0.1, 2.0]
    """
    if count() == 1:
        return list(values)
    return [sum(column) / count() for column in zip(*gather(list(values)), strict=True)]


def on_main(function: Callable[[], T]) -> T:
    """The result of `function`, called in the main process only, in every process; where it
    raises an error, so does every process.
    """
    if count() == 1:
        return function()
    result, error = None, None
    if is_main():
        try:
            result = function()
        except Exception as raised:
            error = raised
    kind = next((k for k in (ValueError, OSError) if isinstance(error, k)), RuntimeError)
    result, failed, kind, text = share((result, error is not None, kind, str(error)))
    if failed:
        raise error or kind(text)
    return cast(T, result)


def own_seed(seed: int) -> int:
    """A seed for this process alone: `seed` itself in the main process, which therefore draws what
    a single process draws.

    >>> own_seed(3)
    3
    """
    if is_main():
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {rank()}".encode()).digest()[:8], "big") >> 1
