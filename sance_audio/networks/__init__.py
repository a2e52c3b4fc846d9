"""Energy networks: any module `(B, 1, M, T), (B,) -> (B,)` will do; here are three.

`NETWORKS` are those that a saved model names in its header.
"""

from sance_audio.networks.conditional import LEVEL_SIZES, NoiseConditionalEnergy
from sance_audio.networks.plain import SIZES, DenseEnergy, ResidualEnergy, spread

__all__ = [
    "ResidualEnergy",
    "DenseEnergy",
    "NoiseConditionalEnergy",
    "SIZES",
    "LEVEL_SIZES",
    "NETWORKS",
    "spread",
]

NETWORKS: dict[str, type] = {
    network.__name__: network for network in (ResidualEnergy, DenseEnergy, NoiseConditionalEnergy)
}
"""By name; one that is not here is given to `AudioEBM.from_pretrained` as a class."""
