"""DCASE's task 2: the layouts and names of its years on tiny trees; what is foreign in them."""

import pytest
from sound_trees import litter, sound, zenodo, zipped

from sance_audio.datasets import dcase, dcase_names
from sance_audio.datasets import zenodo as site

LATER = [year for year in dcase.YEARS if year > 2020]


def names_of(year, first=0):
    """Of a machine's clips, of the development set and of the evaluation set."""
    if year == 2020:
        dev = [f"train/normal_id_02_{i:08d}.wav" for i in range(4)]
        dev += [
            f"test/{label}_id_02_{i:08d}.wav" for label in ("normal", "anomaly") for i in (0, 1)
        ]
        return dev, [f"train/normal_id_05_{i:08d}.wav" for i in range(3)] + [
            f"test/id_05_{i:08d}.wav" for i in range(2)
        ]
    said = "_noAttribute" if year >= 2024 else "_m-n_W"
    dev = [f"train/section_00_source_train_normal_{i + first:04d}{said}.wav" for i in range(4)]
    dev += [f"train/section_00_target_train_normal_{first:04d}{said}.wav"]
    dev += [
        f"{domain + '_' if year == 2021 else ''}test/"
        f"section_00_{domain}_test_{label}_{i + first:04d}{said}.wav"
        for domain in ("source", "target")
        for label in ("normal", "anomaly")
        for i in (0, 1)
    ]
    section = "03" if year < 2023 else "00"
    eva = [f"train/section_{section}_source_train_normal_{i:04d}{said}.wav" for i in range(3)]
    if year == 2021:
        eva += [
            f"{d}_test/section_03_{d}_test_000{i}.wav" for d in ("source", "target") for i in "01"
        ]
    else:
        eva += [f"test/section_{section}_{word}000{i}.wav" for word in ("", "test_") for i in "01"]
    if year >= 2025:
        eva += ["supplemental/section_00_machine_0001_.wav"]
        eva += ["supplemental/section_00_noise_supplemental_normal_0000.wav"]
    return dev, eva


def tree(root, year, machines=None, first=0):
    """As it officially nests: the folder of the year."""
    about = dcase.YEARS[year]
    dev, eva = names_of(year, first)
    same = machines if year < 2023 else None  # later, the evaluation set has machines of its own
    for folder, files, found in (
        ("dev_data", dev, machines or about.developed[:2]),
        ("eval_data", eva, same or about.evaluated[:2]),
    ):
        for machine in found:
            for file in files:
                path = root / f"dcase{year}t2" / folder / "raw" / machine / file
                sound(path, about.channels)
    return root / f"dcase{year}t2"


def reported(found):
    return sorted(line.partition(": ")[0] for line in found.problems)


def below(root, paths):
    return sorted(path.relative_to(root).as_posix() for path in paths)


@pytest.mark.parametrize("year", dcase.YEARS)
def test_layout_of_each_year(tmp_path, year):
    root = tree(tmp_path, year)
    about = dcase.YEARS[year]
    found = dcase.listing(root, year)
    assert found.name == f"DCASE {year} task 2"
    assert found.problems == []
    assert set(found.machines) == {*about.developed[:2], *about.evaluated[:2]}
    dev, eva = names_of(year)
    assert len(found.clips) == 2 * (len(dev) + len(eva))
    machine, section = about.developed[0], "02" if year == 2020 else "00"
    trained = found.of(machine, section, "train")
    assert {clip.label for clip in trained} == {"normal"}
    judged = found.of(machine, section, "test")
    assert sum(clip.label == "anomaly" for clip in judged) == (2 if year == 2020 else 4)
    domains = {clip.domain for clip in judged}
    assert domains == ({"source", "target"} if about.domains else {""})
    attributes = "" if year == 2020 or year >= 2024 else "m-n_W"
    assert {clip.attributes for clip in trained} == {attributes}
    unlabelled = found.of(about.evaluated[0], split="evaluation")
    assert len(unlabelled) == (2 if year == 2020 else 4)
    assert {clip.label for clip in unlabelled} == {""}
    assert {clip.domain for clip in unlabelled} == (domains if year == 2021 else {""})
    assert len(found.of(about.evaluated[0], split="supplemental")) == (2 if year > 2024 else 0)
    assert found.clips[0].source.load().channels == 1


@pytest.mark.parametrize("year", dcase.YEARS)
def test_wherever_the_machines_folder_lies(tmp_path, year):
    root = tree(tmp_path / "data", year, ["ToyCar"])
    counts = len(dcase.listing(root, year).clips)
    for above in (tmp_path / "data", tmp_path):
        assert len(dcase.listing(above, year).clips) == counts
    dev = len(names_of(year)[0])
    for part in ("dev_data", "dev_data/raw", "dev_data/raw/ToyCar"):
        found = dcase.listing(root / part, year)
        assert len(found.clips) == dev
        assert found.machines == ("ToyCar",)


def test_years_side_by_side_are_kept_apart(tmp_path):
    for year in dcase.YEARS:
        tree(tmp_path, year)
    for year in dcase.YEARS:
        found = dcase.listing(tmp_path, year)
        assert found.problems == []
        assert all(f"dcase{year}t2" in clip.name for clip in found.clips)
    with pytest.raises(ValueError, match=r"expected DCASE 2021 .* \(4 foreign, such as .* 2022"):
        dcase.listing(tmp_path / "dcase2022t2", 2021)


@pytest.mark.parametrize("year", LATER)
def test_counts_may_begin_at_one(tmp_path, year):
    found = dcase.listing(tree(tmp_path, year, ["fan"], first=1), year)
    assert found.problems == []


def test_near_is_read_of_two_channels(tmp_path):
    clip = dcase.listing(tree(tmp_path, 2026), 2026).clips[0]
    assert clip.source.channel == 0
    assert clip.source.load().waveform.abs().max() == pytest.approx(0.1, rel=0.05)


def test_labels_of_the_evaluation_set_where_files_are_renamed(tmp_path):
    root = tree(tmp_path, 2023)
    machine = dcase.YEARS[2023].evaluated[0]
    sound(
        root / "eval_data/raw" / machine / "test_rename/section_00_source_test_anomaly_0001_x.wav"
    )
    found = dcase.listing(root, 2023)
    (clip,) = found.of(machine, split="test")
    assert (clip.label, clip.domain, clip.attributes) == ("anomaly", "source", "x")
    assert found.problems == []


def test_copies_that_baselines_make_are_taken_once(tmp_path):
    root = tree(tmp_path, 2021, ["fan"])
    clean = dcase.listing(root, 2021).clips
    here = root / "dev_data" / "raw" / "fan"
    for domain in ("source", "target"):
        for path in list((here / f"{domain}_test").iterdir()):
            sound(here / "test" / path.name)
    found = dcase.listing(root, 2021)
    assert found.clips == clean
    assert [line.partition(": ")[2] for line in found.problems] == [
        f"4 files of the same names as in dev_data/raw/fan/{domain}_test, taken from there"
        for domain in ("source", "target")
    ]


@pytest.mark.parametrize("form", ["fan/train/{}.wav", "{}", "{}.wav"])
def test_attributes_of_a_table_where_a_name_has_none(tmp_path, form):
    here = tree(tmp_path, 2024, ["fan"]) / "dev_data" / "raw" / "fan"
    one, other = sorted((here / "train").iterdir())[:2]
    sound(here / "train" / "section_00_source_train_normal_0009_own.wav")
    rows = [form.format(path.stem) for path in (one, other)]
    rows.append(form.format("section_00_source_train_normal_0009_own"))
    (here / "attributes_00.csv").write_text(
        f"file_name,d1p,d1v,d2p,d2v\n{rows[0]},vel,6,loc,A\n{rows[1]},noAttribute\n"
        f"{rows[2]},vel,1\n"
    )
    found = dcase.listing(tmp_path, 2024)
    assert found.problems == []
    said = {
        clip.name.rpartition("/")[2]: clip.attributes for clip in found.of("fan", "00", "train")
    }
    assert said[one.name] == "vel_6_loc_A"
    assert said[other.name] == ""
    assert said["section_00_source_train_normal_0009_own.wav"] == "own"


def test_tables_that_cannot_be_read_are_reported(tmp_path):
    here = tree(tmp_path, 2022, ["fan"]) / "dev_data" / "raw" / "fan"
    clean = dcase.listing(here, 2022).clips
    (here / "attributes_00.csv").write_bytes(b"file_name\xff\xfe,d1p\n")
    (here / "attributes_01.csv").write_text("a,b\n1,2\n")
    (here / "attributes_02.csv").write_text("")
    (here / "attributes.txt").write_text("file_name\n")
    found = dcase.listing(here, 2022)
    assert found.clips == clean
    assert reported(found) == below(here, here.glob("attributes*"))


@pytest.mark.parametrize("year", dcase.YEARS)
def test_foreign_files_are_reported_not_read(tmp_path, year):
    root = tree(tmp_path, year, ["fan"])
    clean = dcase.listing(root, year).clips
    here = root / "dev_data" / "raw" / "fan"
    wrong = [*litter(here / "train"), here / "train_old", root / "dev_data" / "raw" / "fans"]
    if year == 2020:
        files = ["train/anomaly_id_00_00000000.wav", "train/id_00_00000000.wav"]
        files += ["test/normal_id_0_00000000.wav", "test/section_00_0000.wav"]
    else:
        test = "target_test" if year == 2021 else "test"
        files = ["train/section_00_source_train_anomaly_0000.wav", "train/section_00_0000.wav"]
        files += [f"{test}/section_00_source_train_normal_0000.wav"]
        files += ["train/section_00_source_test_normal_0000.wav"]
        files += [f"{test}/section_0_source_test_normal_0000.wav", f"{test}/id_00_00000000.wav"]
        files += [f"{test}/section_00_source_test_normal_00.wav"]
        files += [f"{test}/section_00_middle_test_normal_0000.wav"]
        files += ["train/section_0\u0660_source_train_normal_0000.wav"]
    if year == 2021:
        files += ["target_test/section_00_source_test_normal_0000.wav"]
    wrong += [sound(here / file) for file in files]
    (here / "train_old").mkdir()
    sound(root / "dev_data" / "raw" / "fans" / "train" / "x.wav")
    found = dcase.listing(root, year)
    assert found.clips == clean
    assert reported(found) == below(root, wrong)


def test_a_folder_of_another_name_is_read_where_it_is_named(tmp_path):
    tree(tmp_path, 2022, ["press"])
    with pytest.raises(ValueError, match="press: expected one of the machines ToyCar"):
        dcase.listing(tmp_path, 2022)
    assert dcase.listing(tmp_path, 2022, machines=["press"]).machines == ("press",)


def test_what_is_no_such_year_is_said(tmp_path):
    with pytest.raises(ValueError, match="year=2019: expected one of 2020, 2021"):
        dcase.listing(tmp_path, 2019)
    for year, about in dcase.YEARS.items():
        words = (
            rf"expected DCASE {year} .*found nothing there.*records/{about.development} .*CC BY"
        )
        with pytest.raises(ValueError, match=words):
            dcase.listing(tmp_path / "nowhere", year)
    root = tree(tmp_path, 2020).rename(tmp_path / "unnamed")
    with pytest.raises(ValueError, match=r"expected DCASE 2022 .*foreign, such as .*section_00"):
        dcase.listing(root / "dev_data" / "raw" / "fan", 2022)
    with pytest.raises(ValueError, match="expected the machines ToyTrain, found fan, pump"):
        dcase.listing(root, 2020, machines=["fan", "ToyTrain"])


def test_a_machine_without_normals_to_train_on(tmp_path):
    root = tree(tmp_path, 2023, ["fan", "valve"])
    for path in (root / "dev_data/raw/valve/train").iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=r"to train on for every machine, found none for valve \("
    ):
        dcase.listing(root, 2023)
    assert dcase.listing(root, 2023, machines=["fan"]).machines == ("fan",)


@pytest.mark.parametrize(
    "name",
    ["section_00_source_train_normal_0000_.wav", "section_00_source_train_normal_0000.wav"],
)
def test_a_name_may_have_no_attributes(name):
    assert dcase_names.parse(name, "train", 2021)[:4] == ("00", "source", "normal", "")


def test_archives_are_downloaded_once_revised_ones_first(tmp_path, monkeypatch):
    dev, eva = names_of(2026)
    made = {}
    for part, files in (
        ("dev", dev),
        ("train", [f for f in eva if not f.startswith("test")]),
        ("test", [f for f in eva if f.startswith("test")]),
    ):
        machine = "ToyCar" if part == "dev" else "Sander"
        for file in files:
            sound(tmp_path / part / machine / file, 2)
        made[part] = zipped(tmp_path / part)
    records = {
        19336329: {"dev_ToyCar.zip": b"withdrawn", "dev_ToyCar_r2.zip": made["dev"]},
        20151556: {"eval_data_Sander_train.zip": made["train"]},
        20437238: {"eval_data_Sander_test.zip": made["test"], "terms.pdf": b""},
    }
    with zenodo(records) as (address, asked):
        monkeypatch.setattr(site, "SITE", address)
        cache = tmp_path / "cache"
        found = dcase.listing(None, 2026, cache, machines=["ToyCar"])
        assert found.machines == ("ToyCar",)
        assert [path.rpartition("/")[2] for path in asked] == [
            "19336329",
            "dev_ToyCar_r2.zip?download=1",
        ]
        found = dcase.listing(None, 2026, cache, machines=["Sander", "ToyCar"])
        assert len(found.clips) == len(dev) + len(eva)
        assert found.problems == []
        before = len(asked)
        assert dcase.listing(None, 2026, cache, machines=["Sander", "ToyCar"]).clips == found.clips
        assert len(asked) == before
        with pytest.raises(ValueError, match=r"expected archives named dev.*bearingEmu"):
            dcase.listing(None, 2026, cache)
        with pytest.raises(ValueError, match="machines=pump: expected some of 2026: bearingEmu"):
            dcase.listing(None, 2026, cache, machines=["pump"])
    assert not list(cache.rglob("*.zip")), "unpacked archives are not kept"


@pytest.mark.parametrize(
    ("year", "names"),
    [
        (2020, "dev_data_fan eval_data_train_fan eval_data_test_fan"),
        (2021, "dev_data_fan eval_data_fan_train eval_data_fan_test"),
        (2022, "dev_fan eval_data_fan_train eval_data_fan_test"),
    ],
)
def test_archives_of_early_years_have_names_of_their_own(tmp_path, monkeypatch, year, names):
    dev, eva = names_of(year)
    about = dcase.YEARS[year]
    tests = [f for f in eva if "test/" in f]
    contents = dev, [f for f in eva if f not in tests], tests
    records = {}
    for record, name, files in zip(
        (about.development, about.additional, about.evaluation),
        names.split(),
        contents,
        strict=True,
    ):
        for file in files:
            sound(tmp_path / name / "fan" / file)
        records[record] = {f"{name}.zip": zipped(tmp_path / name)}
    with zenodo(records) as (address, asked):
        monkeypatch.setattr(site, "SITE", address)
        cache = tmp_path / "cache"
        assert len(dcase.listing(None, year, cache, machines=["fan"]).clips) == len(dev)
        assert len(asked) == 2
        found = dcase.listing(None, year, cache, machines=["fan"], evaluation=True)
        assert len(found.clips) == len(dev) + len(eva)


def test_what_lies_in_the_official_place_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "published", lambda record: pytest.fail("asked"))
    root = tree(tmp_path, 2021, ["fan"])
    found = dcase.listing(None, 2021, tmp_path, machines=["fan"], evaluation=True)
    assert len(found.clips) == len(dcase.listing(root, 2021).clips)
