"""Shared fixtures: small models, a finished smoke run, the real corpora where they are at hand."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from sance_audio.energy import ReferencedEnergy
from sance_audio.features import LogMel
from sance_audio.model import AudioEBM
from sance_audio.networks import ResidualEnergy
from sance_audio.recipe import load_recipe
from sance_audio.reference import GaussianReference

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def real_data(corpus: str) -> Path:
    """The folder of a real corpus; the test is skipped, and says why, where there is none."""
    root = os.environ.get("SANCE_AUDIO_DATA")
    if not root or not (Path(root) / corpus).is_dir():
        pytest.skip(f"needs the real corpus: set SANCE_AUDIO_DATA to a folder with {corpus}/")
    return Path(root) / corpus


def random_reference(
    components: int = 3, dimensions: int = 256, rank: int = 4
) -> GaussianReference:
    g = torch.Generator().manual_seed(1)
    bases = [
        torch.linalg.qr(torch.randn(dimensions, rank, generator=g))[0] for _ in range(components)
    ]
    return GaussianReference(
        0.3 * torch.randn(components, dimensions, generator=g),
        torch.stack(bases),
        0.5 + 3 * torch.rand(components, rank, generator=g),
        0.05 + 0.2 * torch.rand(components, generator=g),
        torch.full((components,), 1 / components),
        torch.arange(components),
    )


def small_model(trained: bool = True) -> AudioEBM:
    """A labelled model of 16 x 16 log-mels whose network is not zero."""
    torch.manual_seed(0)
    features = LogMel(4000, n_fft=256, hop_length=64, n_mels=16)
    network = ResidualEnergy(3, channels=(8, 8), depth=(1,), positions=1)
    if trained:
        torch.nn.init.normal_(network.head.weight, std=0.5)
    energy = ReferencedEnergy(random_reference(), network)
    return AudioEBM(features, energy, ("a", "b", "c"), frames=16, steps=5).eval()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the drums recipe's smoke preset."""
    run = tmp_path_factory.mktemp("runs") / "drums"
    recipe = load_recipe("drums")
    recipe.main(replace(recipe.PRESETS["smoke"], run=run))
    return run


@pytest.fixture
def served(tmp_path):
    """A folder, and the address it is served at."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    (tmp_path / "served").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
