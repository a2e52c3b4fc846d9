"""What the README says can be typed, can be typed."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_python_blocks_run(finished_run, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block.replace("runs/drums", str(finished_run)), names)
    printed = capsys.readouterr().out
    assert "torch.Size([16, 8064])" in printed


DOCS = sorted((ROOT / "docs").glob("*.md"))


def blocks_of(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_python_of_the_docs_runs(path, capsys):
    """Examples run one after the other; those of `onnx.md` in test_export.py, with its files."""
    names: dict = {}
    for block in blocks_of(path):
        if not block.startswith("# sance_audio/") and path.name != "onnx.md":
            exec(block, names)
    if path.name == "parts.md":
        assert "64 chains, 500 steps, acceptance 0.5" in capsys.readouterr().out


def quotations():
    for path in DOCS:
        for block in blocks_of(path):
            if block.startswith("# sance_audio/"):
                head, *lines = block.splitlines()
                yield from ((head[2:], line) for line in lines)


@pytest.mark.parametrize(("path", "line"), list(quotations()))
def test_a_quoted_line_stands_in_its_file(path, line):
    assert line.strip() in [there.strip() for there in (ROOT / path).read_text().splitlines()]


def test_the_method_quotes_its_code():
    files = {path for path, _ in quotations()}
    assert len(files) >= 9


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_of_the_docs_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)h][^)]*)\)", path.read_text()):
        assert (path.parent / link).exists(), link


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
