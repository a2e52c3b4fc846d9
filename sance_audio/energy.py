r"""What an energy is, and how the parts of one go together.

An energy is any callable `(B, ...) -> (B,)`, in nats, low where x is likely:
`p(x) = exp(-E(x)) / Z`. Row i of the result depends on row i of x only. The energies of this
package are a reference density plus a network,

    E_theta(x | c) = -log p_0(x | c) + F_theta(x | c)

with c the component `(B,)` that a row is conditioned on, and p_0 normalised, so that `F = 0` is
the reference exactly.

An object that holds something per row (a condition, a generator) has `rows(slice)`, which narrows
it to some of the rows; `rows_of` applies it where it exists. That is all that samplers need to
work in chunks.
"""

from __future__ import annotations

__all__ = ["Energy", "ReferencedEnergy", "GivenEnergy", "value_and_grad", "rows_of"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Energy = Callable[[Tensor], Tensor]


def value_and_grad(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Energy `(B,)` and its gradient with respect to x, `(B, ...)`, both detached.

    No weight gradient is computed where the parameters of `energy` do not require one.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = energy(x)
        if not value.requires_grad:  # a constant energy
            return value.detach(), torch.zeros_like(x)
        (grad,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
    return value.detach(), torch.zeros_like(x) if grad is None else grad


def rows_of(thing: Any, part: slice) -> Any:
    """`thing` narrowed to some rows where it is held per row, itself where it is not."""
    return thing.rows(part) if hasattr(thing, "rows") else thing


CANDIDATES = 4
"""Components, the likeliest under the reference, that a marginal sums over: they part from the
rest by tens of nats.
"""


class ReferencedEnergy(nn.Module):
    """`E(x | c) = -log p_0(x | c) + F(x | c)`, with log Z_c of each component where it is known.

    Arguments:
        reference: A module with `log_prob(x, c) -> (B,)` and `log_prob_all(x) -> (B, C)`.
        network: A module `(B, 1, M, T), (B,) -> (B,)`: the part F that is learnt.
    """

    reference: Any
    log_z: Tensor

    def __init__(self, reference: nn.Module, network: nn.Module):
        super().__init__()
        self.reference = reference
        self.network = network
        self.register_buffer("log_z", torch.zeros(self.reference.n_components))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Energy `(B,)` in nats of x `(B, 1, M, T)` given the components c `(B,)`."""
        return self.network(x, c) - self.reference.log_prob(x, c)

    def marginal(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """`-log sum_c w_c exp(-E(x | c)) / Z_c`, `(B,)`: the energy of a mixture, normalised.

        Arguments:
            x: `(B, 1, M, T)`.
            log_weight: `(C,)`, log w_c; minus infinity leaves a component out.
        """
        joint = self.reference.log_prob_all(x) + log_weight
        count = min(CANDIDATES, int(log_weight.isfinite().sum()))
        best, c = joint.topk(count, 1)
        learnt = torch.stack([self.network(x, c[:, j]) for j in range(count)], 1)
        return -(best - learnt - self.log_z[c]).logsumexp(1)

    def reference_marginal(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """The same with F = 0: `-log sum_c w_c p_0(x | c)`, `(B,)`."""
        return -(self.reference.log_prob_all(x) + log_weight).logsumexp(1)

    def posterior(self, x: Tensor) -> Tensor:
        """log p(y | x) of every class y, `(B, classes)`, over all components."""
        joint = self.reference.log_prob_all(x) + self.reference.weight.log() - self.log_z
        index = torch.arange(self.reference.n_components, device=x.device)
        joint = joint - torch.stack([self.network(x, c.expand(len(x))) for c in index], 1)
        classes = range(self.reference.n_classes)
        joint = torch.stack(
            [joint[:, self.reference.classes == y].logsumexp(1) for y in classes], 1
        )
        return joint.log_softmax(1)

    def given(self, c: Tensor) -> GivenEnergy:
        """The energy of x alone, one component per row."""
        return GivenEnergy(self, c)


class GivenEnergy:
    """`x -> E(x | c)` with c `(B,)` held fixed, row by row; `learnt` is its part F, `scale`
    multiplies that part.

    A scale of 0 is the reference, 1 the model; between them lies the path of annealed importance
    sampling.
    """

    def __init__(self, energy: ReferencedEnergy, c: Tensor, scale: float = 1.0):
        self.energy, self.c, self.scale = energy, c, scale
        self.reference = energy.reference

    def __call__(self, x: Tensor) -> Tensor:
        return self.learnt(x) - self.reference.log_prob(x, self.c)

    def learnt(self, x: Tensor) -> Tensor:
        """The network's part, `scale * F(x | c)`, `(B,)`."""
        return self.scale * self.energy.network(x, self.c)

    def rows(self, part: slice) -> GivenEnergy:
        return GivenEnergy(self.energy, self.c[part], self.scale)
