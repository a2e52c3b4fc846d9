"""MIMII: fans, pumps, slide rails and valves in order and damaged, in the noise of a factory, at
three signal-to-noise ratios; 16 kHz, 10 s, 8 channels, of which the first is read.

Layout: `{-6,0,6}_dB_{machine}/{machine}/id_0X/{normal,abnormal}/00000000.wav`, X of four machines
of a kind. The same below one folder, without the ratio in a folder's name, is taken too. Split, as
its authors have it: judged are all abnormal clips of an id and as many normal ones, the first by
name; the other normal clips are trained on.

Licence: CC BY-SA 4.0. Source: https://zenodo.org/records/3384388

References:
    MIMII dataset: Sound dataset for malfunctioning industrial machine investigation and inspection
    (Purohit et al., 2019)
"""

from __future__ import annotations

__all__ = ["listing", "MACHINES", "RATIOS", "SAMPLE_RATE", "LICENCE", "RECORD"]

import re
from collections.abc import Collection
from pathlib import Path

from sance_audio import processes
from sance_audio.audio import shown
from sance_audio.datasets import trees, zenodo
from sance_audio.datasets.corpus import FileSource
from sance_audio.datasets.sections import Listing, SectionClip

SAMPLE_RATE = 16000
MACHINES = ("fan", "pump", "slider", "valve")
RATIOS = (-6, 0, 6)
"""Signal-to-noise ratios, in dB."""
RECORD = 3384388
"""Of Zenodo."""
LICENCE = "CC BY-SA 4.0"
LABELS = {"normal": "normal", "abnormal": "anomaly"}
LAYOUT = "{-6,0,6}_dB_{machine}/{machine}/id_0X/{normal,abnormal}/00000000.wav"
ID = re.compile(r"id_(\d\d)")
NAME = re.compile(r"\d{8}\.wav")
RATIO = re.compile(r"(-6|0|6)_?dB(?:_(\w+))?")


def listing(
    root: str | Path | None = None,
    cache: str | Path = "data",
    *,
    machines: Collection[str] | None = None,
    snr: int | None = None,
) -> Listing:
    """List the corpus.

    Arguments:
        root: A folder with the corpus, a machine's folder, or one anywhere between. None downloads
            what is not there into the cache: some 10 GB for one machine at one ratio, which must
            be named.
        cache: Where downloads are kept.
        machines: Some of `MACHINES`; all that are there when None.
        snr: One of `RATIOS`; all that are there when None. Clips say theirs in `attributes`.

    Raises:
        ValueError: no such folder or ratio, none of the machines, or one with nothing to train on;
            as `zenodo.fetch_all`.
    """
    if snr is not None and snr not in RATIOS:
        raise ValueError(f"snr={snr}: expected one of {RATIOS}, in dB, or None for all")
    if root is None:
        root = Path(cache) / "mimii"
        _download(root, machines, snr)
    root = Path(root)
    report = trees.Report(root)
    found = _machine_folders(root, snr, report)
    if not found:
        raise ValueError(_remedy(root, snr))
    wanted = trees.chosen(root, {folder.name for folder, _ in found}, machines)
    clips = [
        clip
        for folder, ratio in found
        if folder.name in wanted
        for part in trees.folders(folder, report)
        for clip in _section(root, folder.name, part, ratio, report)
    ]
    if not clips:
        raise ValueError(_remedy(root, snr))
    trees.refuse_untrainable(root, clips)
    name = "MIMII" if snr is None else f"MIMII, {snr} dB"
    return Listing(name, LICENCE, sorted(clips, key=lambda clip: clip.name), report.lines)


def _machine_folders(
    root: Path, snr: int | None, report: trees.Report
) -> list[tuple[Path, int | None]]:
    """Folders that hold ids, each with its signal-to-noise ratio, where a folder's name says."""
    found: list[tuple[Path, int | None]] = []
    for folder in trees.below(root, ID, report):
        said = next((m for p in folder.parents if (m := RATIO.fullmatch(p.name))), None)
        if folder.name not in MACHINES or (said and said[2] not in (None, folder.name)):
            expected = said[2] if said and said[2] else "one of " + ", ".join(MACHINES)
            report.add(folder, f"expected a folder of the machine {expected}")
        elif snr is None or (said and int(said[1]) == snr):
            found.append((folder, int(said[1]) if said else None))
    return found


def _section(
    root: Path, machine: str, folder: Path, ratio: int | None, report: trees.Report
) -> list[SectionClip]:
    """The clips of one machine of a kind, with their split."""
    section = ID.fullmatch(folder.name)
    if section is None:
        report.add(folder, "expected a folder named id_0X")
        return []
    files: dict[str, list[Path]] = {label: [] for label in LABELS.values()}
    for part in trees.folders(folder, report):
        if part.name not in LABELS:
            report.add(part, f"expected folders named {' and '.join(LABELS)}")
            continue
        for path in trees.sounds(part, report):
            if NAME.fullmatch(path.name):
                files[LABELS[part.name]].append(path)
            else:
                report.add(path, "expected a name of eight digits: 00000000.wav")
    judged = {*files["anomaly"], *files["normal"][: len(files["anomaly"])]}
    attributes = "" if ratio is None else f"{ratio}_dB"
    return [
        SectionClip(
            trees.name_of(root, path),
            label,
            "test" if path in judged else "train",
            FileSource(path, channel=0),
            machine,
            section[1],
            attributes=attributes,
        )
        for label, paths in files.items()
        for path in paths
    ]


def _download(root: Path, machines: Collection[str] | None, snr: int | None) -> None:
    """Fetch what is wanted and not there: `{snr}_dB_{machine}/{machine}/`."""
    unknown = sorted(set(machines or ()) - set(MACHINES))
    if unknown:
        raise ValueError(f"machines={', '.join(unknown)}: expected some of {', '.join(MACHINES)}")
    if snr is None and not root.is_dir():
        raise ValueError(
            f"snr=None: expected one of {RATIOS} to download, some 10 GB a machine; or name the "
            f"folder of the corpus"
        )
    names = (
        [] if snr is None else [f"{snr}_dB_{m}" for m in MACHINES if m in (machines or MACHINES)]
    )
    processes.on_main(lambda: zenodo.fetch_all(RECORD, {name: name for name in names}, root))


def _remedy(root: Path, snr: int | None) -> str:
    wanted = "" if snr is None else f" at {snr} dB"
    return (
        f"{shown(root)}: expected MIMII{wanted}, {LAYOUT}, found {trees.found_in(root)}; "
        f"name no folder to download it, or fetch it from https://zenodo.org/records/{RECORD} "
        f"({LICENCE}) and unpack it there"
    )
