r"""What an energy is.

An energy is any callable `(B, ...) -> (B,)`, in nats, low where x is likely:
`p(x) = exp(-E(x)) / Z`. Row i of the result depends on row i of x only.

An object that holds something per row (a condition, a generator) has `rows(part)`, which narrows
it to some of the rows, a slice or an index tensor; `rows_of` applies it where it exists. That is
all that samplers need to work in chunks, and with replicas.
"""

from __future__ import annotations

__all__ = ["Energy", "value_and_grad", "rows_of"]

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]


def value_and_grad(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Energy `(B,)` and its gradient with respect to x, `(B, ...)`, both detached.

    No gradient of the parameters of `energy` is computed, whether they require one or not: only
    the path to x is walked back. While a compiler traces it, the gradient is taken by a function
    transform, which leaves one graph. The caller's `no_grad` or `inference_mode` is no matter.

    Warns:
        UserWarning: nothing leads from the energy back to x (a constant, or an energy under
            `no_grad` of its own); its gradient is taken as 0.
    """
    if torch.compiler.is_compiling():
        return _transformed(energy, x)
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return value_and_grad(energy, x.clone())
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = energy(x)
        if not value.requires_grad:
            warnings.warn("the energy has no gradient with respect to x, 0 is taken", stacklevel=2)
            return value.detach(), torch.zeros_like(x)
        (grad,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
    return value.detach(), torch.zeros_like(x) if grad is None else grad


def _transformed(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        value = energy(x)
        return value.sum(), value

    grad, (_, value) = torch.func.grad_and_value(total, has_aux=True)(x)
    return value, grad


def rows_of(thing: Any, part: Any) -> Any:
    """`thing` narrowed to some rows where it is held per row, itself where it is not."""
    return thing.rows(part) if hasattr(thing, "rows") else thing
