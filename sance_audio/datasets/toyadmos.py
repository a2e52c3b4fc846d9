"""ToyADMOS: a toy car, a toy conveyor and a toy train in order and deliberately damaged; 48 kHz,
four microphones, each a file of its own.

Layout: `{machine}/case[1-4]/{NormalSound_IND,NormalSound_CNT,AnomalousSound_IND}/` with
`1101010001_ToyCar_case1_ab01_IND_ch1_0001.wav`, or `..._normal_IND_...`. A case is a machine of
its own; `abNN` says how it was damaged. One event is recorded by every microphone, so that one of
them is listed. `EnvironmentalNoise_CNT`, factory noise alone, is passed over and reported.

Split: there is no official one. Here, of each case, all anomalies are judged and as many of its
`NormalSound_IND`, the first by name, though at most half of them; the others are trained on.
`NormalSound_CNT`, long recordings of machines that run on, are "supplemental".

Licence: its own terms, for research only. There is no download here: read the terms, fetch it.
Source: https://zenodo.org/records/3351307

References:
    ToyADMOS: A dataset of miniature-machine operating sounds for anomalous sound detection
    (Koizumi et al., 2019)
"""

from __future__ import annotations

__all__ = ["listing", "MACHINES", "SAMPLE_RATE", "LICENCE", "RECORD"]

import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from sance_audio.audio import shown
from sance_audio.datasets import trees
from sance_audio.datasets.corpus import FileSource
from sance_audio.datasets.sections import Listing, SectionClip

SAMPLE_RATE = 48000
MACHINES = ("ToyCar", "ToyConveyor", "ToyTrain")
RECORD = 3351307
"""Of Zenodo."""
LICENCE = "research only (the terms of ToyADMOS)"
KINDS = {
    "NormalSound_IND": ("normal", "IND"),
    "NormalSound_CNT": ("normal", "CNT"),
    "AnomalousSound_IND": ("ab", "IND"),
}
"""Of each folder: what its files' names say of the condition, and of the recording."""
NOISE = "EnvironmentalNoise_CNT"
LAYOUT = f"{{machine}}/case[1-4]/{{{','.join(KINDS)}}}/*_{{machine}}_case1_normal_IND_ch1_0001.wav"
CASE = re.compile(r"case\d")
NAME = re.compile(r"\d+_(\w+)_(case\d)_(normal|ab\d\d)_(IND|CNT)_ch(\d)_(\d+)\.wav")


def listing(
    root: str | Path | None, *, machines: Collection[str] | None = None, channel: int = 1
) -> Listing:
    """List the corpus.

    Arguments:
        root: A folder with `ToyCar/` and others, or one of these.
        machines: Some of `MACHINES`; all that are there when None.
        channel: The microphone, 1 to 4.

    Raises:
        ValueError: no such folder, none of the machines, or one with nothing to train on.
    """
    if root is None:
        raise ValueError(_remedy("ToyADMOS cannot be downloaded here"))
    root = Path(root)
    report = trees.Report(root)
    found = _machine_folders(root, report)
    if not found:
        raise ValueError(_remedy(f"{shown(root)}: found {trees.found_in(root)}"))
    wanted = trees.chosen(root, {folder.name for folder in found}, machines)
    others: Counter[str] = Counter()
    clips = [
        clip
        for folder in found
        if folder.name in wanted
        for part in trees.folders(folder, report)
        for clip in _case(root, folder.name, part, channel, others, report)
    ]
    if not clips:
        heard = f", of the channels {', '.join(sorted(others))}" if others else ""
        raise ValueError(_remedy(f"{shown(root)}: found no clip of channel {channel}{heard}"))
    trees.refuse_untrainable(root, clips)
    return Listing("ToyADMOS", LICENCE, sorted(clips, key=lambda clip: clip.name), report.lines)


def _machine_folders(root: Path, report: trees.Report) -> list[Path]:
    found = trees.below(root, CASE, report)
    for folder in found:
        if folder.name not in MACHINES:
            report.add(folder, f"expected a folder named one of {', '.join(MACHINES)}")
    return [folder for folder in found if folder.name in MACHINES]


def _case(
    root: Path,
    machine: str,
    folder: Path,
    channel: int,
    others: Counter[str],
    report: trees.Report,
) -> list[SectionClip]:
    """The clips of one machine of a kind, with their split; `others` counts other channels."""
    if folder.name == NOISE:
        report.add(folder, "factory noise alone, without a machine; passed over")
        return []
    if CASE.fullmatch(folder.name) is None:
        report.add(folder, "expected a folder named case1 to case4")
        return []
    files: dict[str, list[tuple[Path, str]]] = {part: [] for part in KINDS}
    for part in trees.folders(folder, report):
        if part.name not in KINDS:
            report.add(part, f"expected folders named {', '.join(KINDS)}")
            continue
        for path, condition, heard in _named(part, machine, report):
            if heard == channel:
                files[part.name].append((path, condition))
            else:
                others[str(heard)] += 1
    normals = files["NormalSound_IND"]
    judged = trees.held_out(len(normals), len(files["AnomalousSound_IND"]))
    split = {path: "test" if i < judged else "train" for i, (path, _) in enumerate(normals)}
    split |= {path: "supplemental" for path, _ in files["NormalSound_CNT"]}
    return [
        SectionClip(
            trees.name_of(root, path),
            "normal" if condition == "normal" else "anomaly",
            split.get(path, "test"),
            FileSource(path),
            machine,
            folder.name,
            attributes="" if condition == "normal" else condition,
        )
        for paths in files.values()
        for path, condition in paths
    ]


def _named(folder: Path, machine: str, report: trees.Report) -> Iterator[tuple[Path, str, int]]:
    """The files of a case that are named as they should be there, each with its condition and
    channel.
    """
    condition, kind = KINDS[folder.name]
    expected = machine, folder.parent.name, condition, kind
    number = "01" if condition == "ab" else ""
    for path in trees.sounds(folder, report):
        match = NAME.fullmatch(path.name)
        says = match and (match[1], match[2], match[3].rstrip("0123456789"), match[4])
        if match and says == expected:
            yield path, match[3], int(match[5])
        else:
            form = f"*_{machine}_{folder.parent.name}_{condition}{number}_{kind}_ch1_0001.wav"
            report.add(path, f"expected a name as {form}")


def _remedy(found: str) -> str:
    return (
        f"{found}; expected {LAYOUT}. ToyADMOS is for research only: read its terms at "
        f"https://zenodo.org/records/{RECORD}, fetch and unpack it yourself, and pass the folder"
    )
