"""How the clips of DCASE's task 2 are named: what a name says, in each year and folder."""

from __future__ import annotations

__all__ = ["Facts", "folders_of", "parse", "split_of", "attributes"]

import csv
import re
from pathlib import Path
from typing import NamedTuple

from sance_audio.datasets import trees

NOTHING = "noAttribute"
"""What a name says, from 2024 on, of a machine without attributes."""
TESTS = {2020: ("test", "test_rename"), 2021: ("source_test", "target_test")}
"""Folders that are judged, besides those of all other years."""
LATER = ("test", "test_rename", "supplemental")
NAME_2020 = re.compile(r"(?:(normal|anomaly)_)?id_([0-9]{2})_[0-9]{8}\.wav")
NAME = re.compile(
    r"section_([0-9]{2})_(source|target)_(train|test)_(normal|anomaly)_[0-9]{4}(?:_(.*))?\.wav"
)
UNLABELLED = re.compile(r"section_([0-9]{2})(?:_(source|target)_test|_test)?_[0-9]{4}\.wav")
SUPPLEMENT = re.compile(r"section_([0-9]{2})_.+\.wav")
ATTRIBUTES = re.compile(r"attributes_[0-9]{2}\.csv")


class Facts(NamedTuple):
    """What a name says; "" where it does not."""

    section: str
    domain: str = ""
    label: str = ""
    attributes: str = ""
    part: str = ""
    """Of the corpus: "train" or "test"."""


def folders_of(year: int) -> tuple[str, ...]:
    """Folders of a machine, those first whose files are taken where others hold copies."""
    return ("train", *dict.fromkeys((*TESTS.get(year, ()), *LATER)))


def split_of(folder: str, label: str) -> str:
    """Of a clip in a folder."""
    if folder in ("train", "supplemental"):
        return folder
    return "test" if label else "evaluation"


def parse(name: str, folder: str, year: int) -> Facts | str:
    """What a name says; as a text what was expected of it, where it does not belong there.

    >>> parse("section_00_target_test_anomaly_0001_vel_6.wav", "test", 2022)[:4]
    ('00', 'target', 'anomaly', 'vel_6')
    """
    if folder == "supplemental":
        match = SUPPLEMENT.fullmatch(name)
        return Facts(match[1]) if match else "expected a name as section_00_*.wav"
    facts = _facts_2020(name) if year == 2020 else _facts(name)
    training = folder == "train"
    fits = (
        facts is not None
        and (facts.label == "normal" if training else facts.part != "train")
        and not (training and facts.part == "test")
        and (folder not in TESTS[2021] or facts.domain == folder.partition("_")[0])
    )
    if facts is not None and fits:
        return facts
    if year == 2020:
        return f"expected a name as {'normal' if training else '[normal|anomaly]'}_id_00_*.wav"
    domain = folder.partition("_")[0] if folder in TESTS[2021] else "{source,target}"
    kind = "train_normal" if training else "test_[normal|anomaly]"
    return f"expected a name as section_00_{domain}_{kind}_0000[_attributes].wav"


def _facts_2020(name: str) -> Facts | None:
    match = NAME_2020.fullmatch(name)
    return Facts(match[2], label=match[1] or "") if match else None


def _facts(name: str) -> Facts | None:
    if match := NAME.fullmatch(name):
        section, domain, part, label, said = match.groups()
        said = (said or "").strip("_")
        return Facts(section, domain, label, "" if said == NOTHING else said, part)
    if match := UNLABELLED.fullmatch(name):
        return Facts(match[1], match[2] or "", part="test")
    return None


def attributes(folder: Path, report: trees.Report) -> dict[str, str]:
    """What tables beside the clips say of them: stem of the file, values joined by underscores."""
    found: dict[str, str] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if not ATTRIBUTES.fullmatch(path.name):
            report.add(path, "expected folders and attributes_NN.csv, found another file")
            continue
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.reader(file, strict=True))
        except (OSError, UnicodeError, csv.Error) as error:
            report.add(path, f"cannot be read as a table of attributes ({error})")
            continue
        if not rows or not rows[0] or rows[0][0] not in ("file_name", "filename"):
            report.add(path, "expected a table whose first column is file_name")
            continue
        for row in filter(None, rows[1:]):
            stem = row[0].replace("\\", "/").rpartition("/")[2].removesuffix(".wav")
            found[stem] = "_".join(filter(None, (cell.strip() for cell in row[1:])))
    return {stem: "" if said == NOTHING else said for stem, said in found.items()}
