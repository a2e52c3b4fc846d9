"""MIMII: its layout on tiny trees of eight channels; its split; what is foreign in it."""

import pytest
import torch
from sound_trees import litter, sound, zenodo, zipped

from sance_audio import audio
from sance_audio.datasets import mimii
from sance_audio.datasets import zenodo as site
from sance_audio.datasets.corpus import FileSource


def section(folder, normal=5, abnormal=2):
    for i in range(normal):
        sound(folder / "normal" / f"{i:08d}.wav", 8)
    for i in range(abnormal):
        sound(folder / "abnormal" / f"{i:08d}.wav", 8)


def tree(root, snrs=(-6, 0, 6), machines=("fan", "valve")):
    for snr in snrs:
        for machine in machines:
            for i in ("id_00", "id_02"):
                section(root / f"{snr}_dB_{machine}" / machine / i)
    return root


def names(clips):
    return [clip.name for clip in clips]


def test_layout_and_split(tmp_path):
    found = mimii.listing(tree(tmp_path), snr=-6)
    assert found.name == "MIMII, -6 dB"
    assert found.licence == "CC BY-SA 4.0"
    assert found.machines == ("fan", "valve")
    assert found.problems == []
    assert len(found.clips) == 2 * 2 * 7
    folder = "-6_dB_fan/fan/id_02"
    judged = [
        f"{folder}/{label}/0000000{i}.wav" for label in ("abnormal", "normal") for i in (0, 1)
    ]
    assert names(found.of("fan", "02", "test")) == judged
    assert [clip.label for clip in found.of("fan", "02", "test")] == 2 * ["anomaly"] + 2 * [
        "normal"
    ]
    trained = found.of("fan", "02", "train")
    assert names(trained) == [f"{folder}/normal/0000000{i}.wav" for i in (2, 3, 4)]
    assert {clip.label for clip in trained} == {"normal"}


def test_every_ratio_is_listed_unless_one_is_asked_for(tmp_path):
    found = mimii.listing(tree(tmp_path), machines=["valve"])
    assert found.machines == ("valve",)
    assert {clip.attributes for clip in found.clips} == {"-6_dB", "0_dB", "6_dB"}
    assert len(found.clips) == 3 * 2 * 7
    assert len(set(names(found.clips))) == len(found.clips)


@pytest.mark.parametrize("part", ["", "6_dB_fan", "6_dB_fan/fan"])
def test_a_folder_within_will_do(tmp_path, part):
    found = mimii.listing(tree(tmp_path, (6,), ("fan",)) / part, snr=6)
    assert len(found.clips) == 14
    assert found.clips[0].attributes == "6_dB"


def test_a_merged_tree_does_not_say_its_ratio(tmp_path):
    section(tmp_path / "pump" / "id_04")
    found = mimii.listing(tmp_path)
    assert {clip.attributes for clip in found.clips} == {""}
    assert found.machines == ("pump",)
    with pytest.raises(ValueError, match=r"expected MIMII at 0 dB, .* found pump"):
        mimii.listing(tmp_path, snr=0)


def test_the_first_channel_is_read(tmp_path):
    clip = mimii.listing(tree(tmp_path, (0,), ("fan",))).clips[0]
    path = tmp_path / clip.name
    recording = clip.source.load()
    assert recording.channels == 1, "none was mixed down"
    assert recording.waveform.abs().max() == pytest.approx(0.1, rel=0.05)
    third = FileSource(path, channel=2).load().waveform
    torch.testing.assert_close(third, recording.waveform / 3, atol=1e-4, rtol=0)
    mixed = FileSource(path).load()
    assert mixed.channels == 8
    sources = [FileSource(path, channel=c) for c in (None, 0, 1)]
    sources.append(FileSource(path, 0.0, 0.01, channel=1))
    assert len({source.digest() for source in sources}) == 4
    assert [source.whole for source in sources] == [True, False, False, False]
    part = FileSource(path, 0.01, 0.01, channel=0).load().waveform
    torch.testing.assert_close(part, recording.waveform[160:320])
    for channel in (8, -1):
        with pytest.raises(audio.AudioError, match=r"expected a channel .* found 8 channels"):
            FileSource(path, channel=channel).load()


def test_foreign_files_are_reported_not_read(tmp_path):
    tree(tmp_path, (6,), ("fan",))
    clean = names(mimii.listing(tmp_path).clips)
    here = tmp_path / "6_dB_fan" / "fan"
    wrong = litter(here / "id_00" / "normal")
    section(tmp_path / "6_dB_fan" / "valve" / "id_00")  # in the folder of another machine
    section(tmp_path / "6_dB_pumps" / "pumps" / "id_00")  # of no machine
    wrong += [tmp_path / "6_dB_fan" / "valve", tmp_path / "6_dB_pumps" / "pumps"]
    wrong += [(here / "id_00" / "odd"), (here / "extra"), sound(here / "id_00" / "abnormal/1.wav")]
    for folder in wrong[-3:-1]:
        folder.mkdir()
    found = mimii.listing(tmp_path)
    assert names(found.clips) == clean
    assert sorted(line.partition(": ")[0] for line in found.problems) == sorted(
        path.relative_to(tmp_path).as_posix() for path in wrong
    )


def test_a_link_that_leads_back_up_is_not_followed(tmp_path):
    """Each clip would be there as often as the link can be gone through."""
    before = mimii.listing(tree(tmp_path / "a")).clips
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    found = mimii.listing(tmp_path / "a")
    assert names(found.clips) == names(before)
    assert found.problems == ["again: a link to a folder that it lies in; not followed"]


def test_what_is_no_mimii_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"found nothing there.*records/3384388 \(CC BY-SA 4.0\)"):
        mimii.listing(tmp_path / "nowhere")
    (tmp_path / "songs").mkdir()
    with pytest.raises(ValueError, match=r"expected MIMII, .*id_0X.*found songs"):
        mimii.listing(tmp_path)
    with pytest.raises(ValueError, match=r"snr=3: expected one of \(-6, 0, 6\)"):
        mimii.listing(tmp_path, snr=3)
    tree(tmp_path, (6,))
    with pytest.raises(ValueError, match="expected the machines pump, found fan, valve"):
        mimii.listing(tmp_path, machines=["pump", "fan"])
    section(tmp_path / "6_dB_slider" / "slider" / "id_00", normal=2, abnormal=3)
    with pytest.raises(ValueError, match=r"train on for every machine, found none for slider \(5"):
        mimii.listing(tmp_path)
    assert mimii.listing(tmp_path, machines=["fan"]).machines == ("fan",)


def test_one_archive_a_machine_is_downloaded_once(tmp_path, monkeypatch):
    section(tmp_path / "zip" / "fan" / "id_00")
    section(tmp_path / "zip" / "fan" / "id_02")
    archive = zipped(tmp_path / "zip")
    record = {"6_dB_fan.zip": archive, "-6_dB_fan.zip": archive, "0_dB_pump.zip": b""}
    with zenodo({3384388: record}) as (address, asked):
        monkeypatch.setattr(site, "SITE", address)
        found = mimii.listing(cache=tmp_path / "cache", machines=["fan"], snr=-6)
        assert len(found.clips) == 14
        assert found.clips[0].name == "-6_dB_fan/fan/id_00/abnormal/00000000.wav"
        assert asked == [
            "/api/records/3384388",
            "/records/3384388/files/-6_dB_fan.zip?download=1",
        ]
        mimii.listing(cache=tmp_path / "cache", machines=["fan"], snr=-6)
        mimii.listing(cache=tmp_path / "cache")  # what is there
        assert len(asked) == 2
        with pytest.raises(ValueError, match=r"expected archives named 6_dB_pump, found 6_dB_f"):
            mimii.listing(cache=tmp_path / "cache", machines=["pump", "fan"], snr=6)
    with pytest.raises(ValueError, match=r"snr=None: expected one of .* to download"):
        mimii.listing(cache=tmp_path / "none")
    with pytest.raises(ValueError, match="machines=ToyCar: expected some of fan"):
        mimii.listing(cache=tmp_path / "none", machines=["ToyCar"], snr=0)
