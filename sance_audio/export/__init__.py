"""A detector for other runtimes: an ONNX graph of everything from samples to the anomaly score,
and a JSON file of what is decided with it.

`graph` writes ONNX as formulas, `describe`, `scores` and `energies` are the parts of a detector,
`detector` puts them together and checks the whole.
"""

from sance_audio.export.detector import Exported, deviation_of, export_onnx

__all__ = ["Exported", "deviation_of", "export_onnx"]
