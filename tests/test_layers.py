"""The house: who may import whom, how large a room may be, what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import sance_audio

PACKAGE = Path(sance_audio.__file__).parent

LAYERS = {
    0: "files processes rows headers decoding audio chunks divergences energy gaussian locks "
    "metrics parquet tracks verdicts weights",
    1: "ranking resumed streams features reference networks samplers config ledger holes labels",
    2: "options pretrained generation restoration inversion pictures noise health diagnostics "
    "datasets",
    3: "model resynthesis toys challenge",
    4: "state evaluation trackers tuning composition",
    5: "checkpoint report",
    6: "loop",
    7: "training conditional_training preparation",
    8: "workflow judges normals",
    9: "assessment",
    10: "detection experiments",
    11: "scoring anomalies scored_page export demo",
    12: "recipe screening workers",
    13: "cli monitoring",
    14: "__main__",
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}
# Within layer 0, these come first: audio.py and weights.py read and write through them.
FOUNDATIONS = {"files", "headers", "decoding"}


def modules() -> list[Path]:
    return [
        p
        for p in PACKAGE.rglob("*.py")
        if p != PACKAGE / "__init__.py" and "recipes" not in p.parts
    ]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms of the package that a module imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("sance_audio")
        ):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                a.name.split(".")[1] for a in node.names if a.name.startswith("sance_audio.")
            }
    return found & set(LAYER)


def test_every_module_has_a_layer():
    assert {room(p) for p in modules()} == set(LAYER)


def test_modules_import_only_from_layers_above():
    for path in modules():
        here = room(path)
        for other in imported(path) - {here}:
            allowed = LAYER[other] < LAYER[here] or other in FOUNDATIONS
            assert allowed, f"{here} (layer {LAYER[here]}) imports {other} (layer {LAYER[other]})"


def test_no_module_is_a_god():
    sizes = {p.name: len(p.read_text().splitlines()) for p in modules()}
    assert max(sizes.values()) <= 350, max(sizes.items(), key=lambda item: item[1])


def test_public_names_resolve():
    for name in sance_audio.__all__:
        assert getattr(sance_audio, name) is not None


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, sance_audio; "
        "print([m for m in ('torch', 'librosa', 'sklearn', 'matplotlib', 'accelerate', "
        "'torchaudio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_pickle_is_loaded_from_a_user_s_path():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", path
