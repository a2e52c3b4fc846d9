"""What the README says can be typed, can be typed."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_python_blocks_run(finished_run, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(block.replace("runs/drums", str(finished_run)), names)
    printed = capsys.readouterr().out
    assert "torch.Size([16, 8064])" in printed
    assert "64 chains, 500 steps, acceptance 0.5" in printed


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)h][^)]*)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("path", sorted(ROOT.glob("**/README.md")), ids=lambda p: p.parent.name)
def test_no_figure_is_left_to_fill_in(path):
    if ".venv" not in path.parts:
        assert "@@" not in path.read_text()
