"""ToyADMOS: its layout on tiny trees; its split; one microphone; what is foreign in it."""

import shutil

import pytest
from sound_trees import litter, sound

from sance_audio.datasets import toyadmos

MACHINE = {"ToyCar": 1, "ToyConveyor": 2, "ToyTrain": 3}


def name(machine, case, condition, kind, channel, i):
    number = condition.removeprefix("ab") if condition != "normal" else "00"
    prefix = f"{MACHINE[machine]}{case}{number}{int(kind == 'CNT')}{channel}{i:04d}"
    return f"{prefix}_{machine}_case{case}_{condition}_{kind}_ch{channel}_{i:04d}.wav"


def tree(root, machines=("ToyCar", "ToyTrain"), cases=(1, 4), channels=(1, 2, 3, 4)):
    for machine in machines:
        for case in cases:
            folder = root / machine / f"case{case}"
            clips = [("NormalSound_IND", "normal", "IND", i) for i in range(1, 7)]
            clips += [("AnomalousSound_IND", f"ab0{i}", "IND", i) for i in (1, 2)]
            clips += [("NormalSound_CNT", "normal", "CNT", 1)]
            for part, condition, kind, i in clips:
                for c in channels:
                    sound(folder / part / name(machine, case, condition, kind, c, i), rate=48000)
    return root


def test_layout_split_and_one_microphone(tmp_path):
    found = toyadmos.listing(tree(tmp_path))
    assert found.machines == ("ToyCar", "ToyTrain")
    assert found.problems == []
    assert len(found.clips) == 2 * 2 * 9, "each event once"
    assert all("_ch1_" in clip.name for clip in found.clips)
    judged = found.of("ToyCar", "case4", "test")
    assert [(clip.label, clip.attributes) for clip in judged] == [
        ("anomaly", "ab01"),
        ("anomaly", "ab02"),
        ("normal", ""),
        ("normal", ""),
    ]
    ranks = [clip.name[-8:-4] for clip in found.of("ToyCar", "case4", "train")]
    assert ranks == ["0003", "0004", "0005", "0006"]
    (long,) = found.of("ToyCar", "case4", "supplemental")
    assert "NormalSound_CNT" in long.name
    assert found.clips[0].source.load().sample_rate == toyadmos.SAMPLE_RATE


def test_another_microphone(tmp_path):
    found = toyadmos.listing(tree(tmp_path, channels=(2, 3)), channel=3)
    assert len(found.clips) == 36
    assert all("_ch3_" in clip.name for clip in found.clips)
    with pytest.raises(ValueError, match="no clip of channel 1, of the channels 2, 3"):
        toyadmos.listing(tmp_path)


def test_half_of_the_normals_are_trained_on_at_least(tmp_path):
    folder = tmp_path / "ToyCar" / "case1" / "AnomalousSound_IND"
    for i in range(20):
        sound(folder / name("ToyCar", 1, "ab07", "IND", 1, i))
    found = toyadmos.listing(tree(tmp_path, ("ToyCar",), (1,)))
    assert len(found.of("ToyCar", split="train")) == 3
    assert sum(clip.label == "anomaly" for clip in found.of("ToyCar", split="test")) == 22


def test_a_machines_folder_will_do(tmp_path):
    tree(tmp_path)
    assert toyadmos.listing(tmp_path / "ToyCar").machines == ("ToyCar",)
    assert toyadmos.listing(tmp_path, machines=["ToyTrain"]).machines == ("ToyTrain",)


def test_foreign_files_are_reported_not_read(tmp_path):
    tree(tmp_path, ("ToyCar",), (1,))
    clean = toyadmos.listing(tmp_path).clips
    here = tmp_path / "ToyCar" / "case1"
    wrong = litter(here / "NormalSound_IND")
    for file in [
        name("ToyCar", 4, "normal", "IND", 1, 7),  # of another case
        name("ToyTrain", 1, "normal", "IND", 1, 7),  # another machine
        name("ToyCar", 1, "ab01", "IND", 1, 7),  # odd among those in order
        name("ToyCar", 1, "normal", "CNT", 1, 7),
    ]:
        wrong.append(sound(here / "NormalSound_IND" / file))
    noise = sound(tmp_path / "ToyCar" / "EnvironmentalNoise_CNT" / "0000_ToyCar_caseAll.wav")
    wrong += [noise.parent, tmp_path / "ToyCar" / "case", here / "AnomalousSound_CNT"]
    for folder in wrong[-2:]:
        folder.mkdir()
    tree(tmp_path / "x", ("ToyCar",), (1,))
    shutil.move(tmp_path / "x" / "ToyCar", tmp_path / "TinyCar")
    wrong.append(tmp_path / "TinyCar")
    found = toyadmos.listing(tmp_path)
    assert found.clips == clean
    assert sorted(line.partition(": ")[0] for line in found.problems) == sorted(
        path.relative_to(tmp_path).as_posix() for path in wrong
    )


def test_what_is_no_toyadmos_is_said_with_its_terms(tmp_path):
    for root, words in ((None, "cannot be downloaded here"), (tmp_path, "found an empty folder")):
        with pytest.raises(ValueError, match=f"{words}.*research only.*records/3351307"):
            toyadmos.listing(root)
    tree(tmp_path, ("ToyCar",))
    with pytest.raises(ValueError, match="expected the machines ToyTrain, found ToyCar"):
        toyadmos.listing(tmp_path, machines=["ToyTrain"])
    for case in (1, 4):
        shutil.rmtree(tmp_path / "ToyCar" / f"case{case}" / "NormalSound_IND")
    with pytest.raises(ValueError, match=r"found none for ToyCar \(6 clips\)"):
        toyadmos.listing(tmp_path)
