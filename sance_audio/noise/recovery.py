r"""Self-adapting noise of a noise-conditional model: `p_k(x_t | x_{t+1})`, p_k the model, frozen.

Drawn anew for every batch, from an exact draw of its Gaussian part, by `samplers.recover`. It has
no persistent chains: given x_{t+1}, one mode is left next to alone.
"""

from __future__ import annotations

__all__ = ["RecoveryNoise"]

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sance_audio.energy import ReferencedEnergy
from sance_audio.samplers import SamplingError, recover


class RecoveryNoise:
    """A frozen snapshot of an energy's network, and draws of it at each level.

    Arguments:
        energy: The energy being trained; its reference is shared, its network copied.
        steps: Langevin steps of a draw.
        step_size: eps of `ReferenceLangevin`.
        cap: Its cap.
    """

    def __init__(self, energy: ReferencedEnergy, *, steps: int, step_size: float, cap: float):
        network = copy.deepcopy(energy.network).requires_grad_(False).eval()
        self.frozen = ReferencedEnergy(energy.reference, network)
        self.steps, self.how = steps, {"step_size": step_size, "cap": cap}

    def refresh(self, network: nn.Module) -> None:
        """Make `network` the snapshot."""
        self.frozen.network.load_state_dict(network.state_dict())

    def draw(
        self, y: Tensor, c: Tensor, sigma: Tensor, above: Tensor, generator: torch.Generator
    ) -> Tensor:
        """One x of `p_k(x | y, c)` for each row; arguments as of `samplers.recover`."""
        with torch.no_grad():
            try:
                return recover(
                    self.frozen, y, c, sigma, above, self.steps, generator=generator, **self.how
                )
            except SamplingError:  # no chain is left: the guard of the loop sees it, and goes back
                return torch.full_like(y, torch.nan)

    @torch.no_grad()
    def energy(self, x: Tensor, c: Tensor, sigma: Tensor) -> Tensor:
        """F_k(x | c, sigma), `(B,)`."""
        return self.frozen.network(x, c, sigma)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the noise to come."""
        return {"network": self.frozen.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.frozen.network.load_state_dict(state["network"])
