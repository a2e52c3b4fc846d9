"""Tensors and their settings in one safetensors file: nothing in it can run code.

Settings travel as JSON in the file's metadata under the key `sance_audio`, with the kind of
object, a format number, and a digest of settings and tensors by which damage is found.
"""

from __future__ import annotations

__all__ = ["WeightsError", "save_weights", "load_weights", "locate", "digest", "below"]

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sance_audio.files import write_whole

FORMAT = 1
KEY = "sance_audio"
DIGEST = "sha256"


class WeightsError(ValueError):
    """A folder or file that does not hold what this package saved."""


def save_weights(
    path: Path, kind: str, settings: dict[str, Any], tensors: dict[str, Tensor]
) -> Path:
    """Write tensors and settings, atomically.

    Raises:
        OSError: a full disk, or whatever else kept the file from being written; it names the file.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    header = {"kind": kind, "format": FORMAT, DIGEST: digest(settings, tensors), **settings}
    write_whole(path, save(tensors, {KEY: json.dumps(header)}))
    return path


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def digest(settings: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of settings and tensors: their names, types, shapes and every bit."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_weights(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a file.

    Raises:
        WeightsError: another kind of file, another version, values that are not finite, or a file
            that is not as it was written.
    """
    try:
        with safe_open(path, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get(KEY, "null"))
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        raise WeightsError(
            f"{path}: expected a sance_audio {kind}, found another kind of safetensors file"
        )
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path}: format {header.get('format')}, this version reads {FORMAT}; train again "
            f"or use the version "
            f"that wrote it"
        )
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{path}: {broken[0]} holds NaN or infinite values; the file is damaged"
        )
    own = {k: v for k, v in header.items() if k not in ("kind", "format", DIGEST)}
    if DIGEST in header and header[DIGEST] != digest(own, tensors):
        raise WeightsError(
            f"{path}: weights and settings do not match the digest written with them; the file is "
            f"damaged or was changed: fetch it again"
        )
    return header, tensors


def locate(name: str | Path, filename: str) -> Path:
    """The file `filename` of a run folder, of the hub (`hf:owner/name`), or the file itself.

    Raises:
        WeightsError: nothing there.
    """
    if str(name).startswith("hf:"):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(str(name).removeprefix("hf:"), filename))
    path = Path(name)
    if not path.exists():
        raise WeightsError(
            f"{path}: no such run folder (a model on the hub is written hf:owner/name)"
        )
    if path.is_dir():
        path = path / filename
        if not path.is_file():
            raise WeightsError(
                f"{path.parent}: no {filename} in this folder; is it a run that has finished?"
            )
    return path
