"""Anomaly detection: what is odd, how sure, where.

`detector` is what users call; `descriptors`, `perturbations` and `contrast` say what is known of a
clip, `typicality` and `scorer` how far that is from normal, `conformal` how sure one can be,
`where` and `maps` at what second and in what band.
"""

from sance_audio.detection.detector import EnergyDetector
from sance_audio.detection.rows import Clips, statistics

__all__ = ["Clips", "EnergyDetector", "statistics"]
