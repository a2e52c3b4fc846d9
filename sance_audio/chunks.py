"""Work in chunks of a fixed size, over threads: the same bits whatever the batch and the load.

Gradients differ in their last bits between batch sizes and between thread counts. So a chunk
always has the same number of rows (the last is padded by repeating a row), and every chunk runs
with one intra-operation thread. Several chunks run side by side in Python threads, which PyTorch
releases to run in parallel; no thread ever spins at a barrier, which on a shared core is what
makes many-threaded convolutions slow (docs/decisions.md).
"""

from __future__ import annotations

__all__ = ["slices", "padded", "run_chunks", "chunked", "chunk_size", "cores", "threads_of"]

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
NAME = "sance_audio_chunk"


def slices(n: int, size: int) -> list[slice]:
    """`n` rows cut into slices of `size`, the last one shorter.

    >>> slices(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    if size < 1:
        raise ValueError(f"chunk size must be at least 1, found {size}")
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def padded(x: Tensor, size: int) -> Tensor:
    """`x` of shape `(n, ...)`, 1 <= n <= size, with its last row repeated up to `size` rows."""
    missing = size - x.shape[0]
    return x if missing == 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])


def run_chunks(
    function: Callable[[slice], T], parts: Sequence[slice], parallel: bool = True, threads: int = 1
) -> list[T]:
    """`function` of each slice, in order; each in a thread of its own when `parallel`, and with
    one torch thread. Whether gradients are recorded, and in what precision the work is done, is
    the caller's choice there too.

    With `threads` above 1, one after the other, each with so many torch threads.
    """
    if threads > 1:
        with threads_of(threads):
            return [function(part) for part in parts]
    grad, low = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def there(part: slice) -> T:
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=low):
            return function(part)

    if not parallel or threading.current_thread().name.startswith(NAME):
        return [function(part) for part in parts]
    return list(_pool().map(there, parts))


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """PyTorch with `count` threads in its operations; as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One pool for the life of the process: threads that come and go leave their memory behind."""
    return ThreadPoolExecutor(cores(), NAME, initializer=torch.set_num_threads, initargs=(1,))


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def chunk_size(device: torch.device, cells: int = 4096) -> int:
    """Rows of a chunk: few on a CPU, where each has a core; many on a GPU, one after the other.
    Rows of fewer cells than a spectrogram's make larger chunks.

    The last bits of a result depend on it.
    """
    return (16 if device.type == "cpu" else 256) * max(1, min(64, 4096 // cells))


def cores() -> int:
    """Processor cores that this process may use: its share, where a launcher has started several
    on this machine (`LOCAL_WORLD_SIZE`).
    """
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def chunked(function: Callable[..., Tensor], *rows: Tensor, size: int) -> Tensor:
    """`function` over tensors that share their first dimension, in padded chunks of `size` rows,
    results joined.

    Arguments:
        function: Of tensors `(size, ...)`, giving `(size, ...)`; row i of the result depends on
            rows i only.
        rows: Tensors `(n, ...)`, n >= 1.

    Returns:
        `(n, ...)`, equal to the bit for whatever n a row comes in, at the same place modulo
        `size`.
    """
    n = rows[0].shape[0]

    def one(part: slice) -> Tensor:
        out = function(*(padded(r[part], size) for r in rows))
        return out[: part.stop - part.start]

    return torch.cat(run_chunks(one, slices(n, size), parallel=rows[0].device.type == "cpu"))
