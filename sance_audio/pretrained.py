"""An `AudioEBM` in one safetensors file: weights, and every setting; no pickle."""

from __future__ import annotations

__all__ = ["WEIGHTS", "load", "save", "settings_of"]

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sance_audio.energy import ReferencedEnergy
from sance_audio.features import LogMel
from sance_audio.labels import LabelNetwork
from sance_audio.networks import NETWORKS, ResidualEnergy
from sance_audio.reference import GaussianReference
from sance_audio.samplers import Compute
from sance_audio.weights import WeightsError, load_weights, locate, save_weights

WEIGHTS = "model.safetensors"
USUAL = ResidualEnergy.__name__
"""The network of a file that does not name one."""
OWN = "labels frames sigma peak step_size cap steps silence sampling_temperature truncation"


def settings_of(model: Any) -> dict[str, Any]:
    """Everything but tensors."""
    own = {name: getattr(model, name) for name in OWN.split()}
    kind = type(model.density.network).__name__
    return {
        "features": model.features.settings,
        "network": model.density.network.settings,
        **({} if kind == USUAL else {"network_class": kind}),
        "temperature": model.density.temperature,
        "model": own | {"n_iter": model.inverter.n_iter},
        "compute": asdict(model.compute),
        "label_network": model.label_network and model.label_network.settings,
    }


def save(model: Any, folder: Path) -> Path:
    """Write `model.safetensors` into a folder, atomically."""
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("inverter.")}
    if not len(model.sureness):
        del own["sureness"]
    if not bool(model.density.log_z_error.isfinite().all()):  # not known: read back as NaN
        del own["density.log_z_error"]
    return save_weights(folder / WEIGHTS, "model", model.settings, own)


def load(cls: Any, path: str | Path, network: Any) -> Any:
    """A model; arguments and errors as of `AudioEBM.from_pretrained`."""
    file = locate(path, WEIGHTS)
    settings, tensors = load_weights(file, "model")
    try:
        return _built(cls, settings, tensors, network)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{file}: weights and settings do not match ({error})") from error


def _built(cls: Any, settings: dict[str, Any], tensors: dict[str, Tensor], network: Any) -> Any:
    prefix = "density.reference."
    reference = GaussianReference(
        **{k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    )
    features = LogMel(**settings["features"])
    temperature = settings.get("temperature", 1.0)
    network = network or _named(settings.get("network_class", USUAL))
    density = ReferencedEnergy(reference, network(**settings["network"]), temperature)
    tensors.setdefault("density.log_z_error", torch.full_like(density.log_z, torch.nan))
    model = cls(features, density, **settings["model"])
    if settings.get("label_network"):
        model.label_network = LabelNetwork(**settings["label_network"])
    model.sureness = tensors.setdefault("sureness", torch.empty(0))
    compute = settings.get("compute", {})
    model.compute = Compute(**compute) if "path" in compute else Compute()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [key for key in missing if not key.startswith("inverter.")]
    if missing or unexpected:
        raise KeyError(f"missing {missing}, unexpected {unexpected}")
    return model


def _named(kind: str) -> type:
    """A network's class by the name that a file gives it."""
    if kind not in NETWORKS:
        raise ValueError(
            f"its network is a {kind}, none of {', '.join(NETWORKS)}: load it with network={kind}"
        )
    return NETWORKS[kind]
