"""DCASE challenge, task 2, of 2020 to 2026: machines in order, to train on, and in order or odd,
to judge; 16 kHz, 6 to 18 s, one channel (2026: two, near and far, of which the near is read).

Layout: a machine is a folder with `train/` and `test/`, wherever it lies below the one given; the
official place is `dcase20XXt2/{dev,eval}_data/raw/{machine}/`. Years differ in the names:

    2020         {train,test}/{normal,anomaly}_id_NN_NNNNNNNN.wav
    2021         {train,source_test,target_test}/
                 section_NN_{source,target}_{train,test}_{normal,anomaly}_NNNN[_{attributes}].wav
    from 2022    {train,test}/ with names as of 2021, and attributes_NN.csv
    from 2025    supplemental/section_NN_*.wav too: the machine, or the noise, alone

A clip of the evaluation set does not say its label: `id_NN_NNNNNNNN.wav` in 2020,
`section_NN_{source,target}_test_NNNN.wav` in 2021, `section_NN[_test]_NNNN.wav` from 2022; its
split is "evaluation". The same clips with labels in their names, in `test_rename/`, are in "test".

Licence: CC BY-NC-SA 4.0 (of 2021, 2022 and 2024 not verified: see the record). Source: Zenodo, the
records of `YEARS`, of which neither the names of the archives nor what lies in them is verified.

References:
    https://dcase.community (task 2 of each year)
"""

from __future__ import annotations

__all__ = ["listing", "Year", "YEARS", "SAMPLE_RATE"]

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sance_audio import processes
from sance_audio.audio import shown
from sance_audio.datasets import dcase_names, trees, zenodo
from sance_audio.datasets.corpus import FileSource
from sance_audio.datasets.sections import Listing, SectionClip

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Year:
    """What is known of a year; records are of Zenodo."""

    development: int
    additional: int
    """The clips to train on of the evaluation set."""
    evaluation: int
    developed: tuple[str, ...]
    """Machines of the development set."""
    evaluated: tuple[str, ...]
    """Machines of the evaluation set."""
    channels: int = 1
    domains: bool = True
    licence: str = "CC BY-NC-SA 4.0"

    @property
    def machines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.developed, *self.evaluated)))


_OF_2020 = ("fan", "pump", "slider", "ToyCar", "ToyConveyor", "valve")
_OF_2021 = ("fan", "gearbox", "pump", "slider", "ToyCar", "ToyTrain", "valve")
_OF_2022 = ("bearing", "fan", "gearbox", "slider", "ToyCar", "ToyTrain", "valve")
YEARS = {
    2020: Year(3678171, 3727685, 3841772, _OF_2020, _OF_2020, domains=False),
    2021: Year(4562016, 4660992, 4884786, _OF_2021, _OF_2021),
    2022: Year(6355122, 6462969, 6586456, _OF_2022, _OF_2022),
    2023: Year(
        *(7882613, 7830345, 7860847, _OF_2022),
        ("bandsaw", "grinder", "shaker", "ToyDrone", "ToyNscale", "ToyTank", "Vacuum"),
    ),
    2024: Year(
        *(10902294, 11259435, 11363076, _OF_2022),
        (
            *("3DPrinter", "AirCompressor", "BrushlessMotor", "HairDryer", "HoveringDrone"),
            *("RoboticArm", "Scanner", "ToothBrush", "ToyCircuit"),
        ),
    ),
    2025: Year(
        *(15097779, 15392814, 15519362, _OF_2022),
        (
            *("AutoTrash", "BandSealer", "CoffeeGrinder", "HomeCamera", "Polisher"),
            *("ScrewFeeder", "ToyPet", "ToyRCCar"),
        ),
    ),
    2026: Year(
        *(19336329, 20151556, 20437238),
        ("bearingEmu", "fan", "gearboxEmu", "sliderEmu", "ToyCar", "ToyCarEmu", "valveEmu"),
        ("BlowerDustCollector", "Sander", "SewingMachine", "ToothBrush", "ToyDrone"),
        channels=2,
    ),
}
PARTS = re.compile("train|test|source_test|target_test")
OWN = re.compile(r"dcase(20\d\d)t2")


def listing(
    root: str | Path | None = None,
    year: int = 2022,
    cache: str | Path = "data",
    *,
    machines: Collection[str] | None = None,
    evaluation: bool = False,
) -> Listing:
    """List the corpus of a year.

    Arguments:
        root: A folder with the corpus, a machine's folder, or one anywhere between. None downloads
            what is not there into the cache.
        year: One of `YEARS`.
        cache: Where downloads are kept.
        machines: Some of the year's; all of its that are there when None. A folder of another name
            is read if it is named here.
        evaluation: Download the evaluation set too. It is downloaded anyway for machines that are
            named here and in no other.

    Raises:
        ValueError: no such year or folder, none of the machines, or one with nothing to train on;
            as `zenodo.fetch_all`.
    """
    if year not in YEARS:
        raise ValueError(f"year={year}: expected one of {', '.join(map(str, YEARS))}")
    if root is None:
        root = Path(cache) / f"dcase{year}t2"
        _download(root, year, machines, evaluation)
    root = Path(root)
    report = trees.Report(root)
    found = _machine_folders(root, year, machines or (), report)
    if not found:
        raise ValueError(_remedy(root, year, report))
    wanted = trees.chosen(root, {folder.name for folder in found}, machines)
    clips = [
        clip
        for folder in found
        if folder.name in wanted
        for clip in _machine(root, folder, year, report)
    ]
    if not clips:
        raise ValueError(_remedy(root, year, report))
    trees.refuse_untrainable(root, clips)
    clips = _once(clips, report)
    return Listing(f"DCASE {year} task 2", YEARS[year].licence, clips, report.lines)


def _machine_folders(
    root: Path, year: int, named: Collection[str], report: trees.Report
) -> list[Path]:
    """Folders of machines below a root: not those of other years, where folders say the year."""
    own = [path for path in (root, root / "data") if (path / f"dcase{year}t2").is_dir()]
    found = trees.below(own[0] / f"dcase{year}t2" if own else root, PARTS, report)
    known = {*YEARS[year].machines, *named}
    machines = []
    for folder in found:
        said = next((m for p in folder.parents if (m := OWN.fullmatch(p.name))), None)
        if said and int(said[1]) != year:
            report.add(folder, f"of {said[1]}, expected {year}")
        elif folder.name not in known:
            report.add(folder, f"expected one of the machines {', '.join(sorted(known))}")
        else:
            machines.append(folder)
    return machines


def _machine(root: Path, folder: Path, year: int, report: trees.Report) -> list[SectionClip]:
    """The clips in a machine's folder."""
    parts = dcase_names.folders_of(year)
    for path in trees.folders(folder, report):
        if path.name not in parts:
            report.add(path, f"expected folders named {', '.join(parts)}")
    attributes = dcase_names.attributes(folder, report)
    clips = []
    for part in parts:
        if not (folder / part).is_dir():
            continue
        for path in trees.sounds(folder / part, report):
            facts = dcase_names.parse(path.name, part, year)
            if isinstance(facts, str):
                report.add(path, facts)
                continue
            clips.append(
                SectionClip(
                    trees.name_of(root, path),
                    facts.label,
                    dcase_names.split_of(part, facts.label),
                    FileSource(path, channel=0 if YEARS[year].channels > 1 else None),
                    folder.name,
                    facts.section,
                    facts.domain,
                    facts.attributes or attributes.get(path.stem, ""),
                )
            )
    return clips


def _once(clips: list[SectionClip], report: trees.Report) -> list[SectionClip]:
    """Clips by name; of copies in other folders of a machine, as baselines make them of
    `source_test` and `target_test`, the first.
    """
    first: dict[tuple[str, str, str], SectionClip] = {}
    copies: Counter[tuple[Path, Path]] = Counter()
    for clip in clips:
        assert isinstance(clip.source, FileSource)
        path = clip.source.path
        kept = first.setdefault((clip.machine, clip.split, path.name), clip)
        if kept is not clip:
            assert isinstance(kept.source, FileSource)
            copies[path.parent, kept.source.path.parent] += 1
    for (folder, other), count in copies.items():
        where = trees.name_of(report.root, other)
        report.add(folder, f"{count} files of the same names as in {where}, taken from there")
    return sorted(first.values(), key=lambda clip: clip.name)


def _download(root: Path, year: int, machines: Collection[str] | None, evaluation: bool) -> None:
    """Fetch what is wanted and not there: `{dev,eval}_data/raw/{archive}/{machine}/`."""
    about = YEARS[year]
    wanted = set(about.machines if machines is None else machines)
    unknown = sorted(wanted - set(about.machines))
    if unknown:
        raise ValueError(
            f"machines={', '.join(unknown)}: expected some of {year}: {', '.join(about.machines)}"
        )
    alone = set(machines or ()) - set(about.developed)
    dev, eva = "dev_data/raw", "eval_data/raw"
    developed = {
        f"{dev}/dev_{m}": f"dev(?:_data)?_{m}"
        for m in about.developed
        if m in wanted and not (root / dev / m).is_dir()
    }
    train, test = (
        {
            f"{eva}/eval_{m}_{part}": f"eval_data_{part}_{m}|eval_data_{m}_{part}"
            for m in about.evaluated
            if m in wanted and (evaluation or m in alone)
            if not any((root / eva / m).glob(f"*{part}"))
        }
        for part in ("train", "test")
    )

    def fetch() -> None:
        zenodo.fetch_all(about.development, developed, root)
        zenodo.fetch_all(about.additional, train, root)
        zenodo.fetch_all(about.evaluation, test, root)

    processes.on_main(fetch)


def _remedy(root: Path, year: int, report: trees.Report) -> str:
    about, lines = YEARS[year], report.lines
    expected = "{normal,anomaly}_id_00_00000000.wav" if year == 2020 else "section_00_*.wav"
    foreign = f" ({len(lines)} foreign, such as {lines[0]})" if lines else ""
    return (
        f"{shown(root)}: expected DCASE {year} task 2, {{machine}}/{{train,test}}/{expected}"
        f", of the machines {', '.join(about.machines)}; found {trees.found_in(root)}{foreign}; "
        f"name no folder to download it, or fetch it from https://zenodo.org/records/"
        f"{about.development} (to evaluate: {about.additional}, {about.evaluation}; "
        f"{about.licence}) and unpack it there"
    )
