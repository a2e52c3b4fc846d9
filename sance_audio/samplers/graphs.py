"""A block of moves as a CUDA graph: captured once, replayed without Python or launches.

Not verified: no GPU was at hand when this was written. `choose` checks its result against the
eager path before it takes it.

Reference:
    CUDA semantics, CUDA graphs (PyTorch documentation): warm-up on a side stream, static inputs.
"""

from __future__ import annotations

__all__ = ["GraphedBlock"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3


class GraphedBlock:
    """A pure function of tensors on a GPU, captured at its first call.

    Arguments:
        function: `(x, value, grad, noise)` to a tuple of tensors; noise is a tuple of tensors.
            Shapes must stay those of the first call.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]):
        self.function = function
        self.graph: Any = None
        self.inputs: list[Tensor] = []
        self.outputs: tuple[Tensor, ...] = ()

    def __call__(
        self, x: Tensor, value: Tensor, grad: Tensor, noise: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        given = [x, value, grad, *noise]
        if self.graph is None:
            self._capture(given)
        for static, new in zip(self.inputs, given, strict=True):
            static.copy_(new)
        self.graph.replay()
        return tuple(out.clone() for out in self.outputs)

    def _capture(self, given: list[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in given]
        x, value, grad, *noise = self.inputs
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.function(x, value, grad, tuple(noise))
        torch.cuda.current_stream(x.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.outputs = self.function(x, value, grad, tuple(noise))
        self.graph = graph  # only one that was captured whole
