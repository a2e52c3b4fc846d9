"""The wheel, installed away from the checkout. `make test-wheel` does the same in a fresh
environment, dependencies and all.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

RECIPES = sorted(path.parent.name for path in (ROOT / "recipes").glob("*/train.py"))

PAGE = [f"report/page.{kind}" for kind in ("html.j2", "css", "js")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *arguments: object) -> str:
    """A command of the installed package, started from a folder that is no checkout."""
    command = [sys.executable, "-P", "-m", "sance_audio", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = installed.parent
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_what_it_needs(installed):
    for name in ("py.typed", *PAGE, "recipes/drums/train.py"):
        assert (installed / "sance_audio" / name).is_file(), name
    assert not (installed / "tests").exists()


def test_recipes_are_found_and_drums_train_there(installed):
    listed = run(installed, "train")
    assert all(name in listed for name in RECIPES)
    said = run(installed, "train", "drums", "--preset", "smoke", "--run", "run")
    assert "index.html" in said
    assert (installed.parent / "run" / "index.html").is_file()
    code = "import sance_audio; print(sance_audio.__file__)"
    where = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(installed)), "it was the installed package that ran"
