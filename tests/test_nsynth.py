"""NSynth: its layout, labels and sources, and folders that are not as they should be."""

import json
import tarfile
from dataclasses import replace

import pytest
from corpus_trees import FAMILIES, note_of, nsynth_tree, tone

from sance_audio.datasets import nsynth
from sance_audio.recipe import load_recipe

SPLITS = ("train", "valid", "test")


@pytest.fixture
def tree(tmp_path):
    return nsynth_tree(tmp_path / "data")


def change(tree, split, changed):
    """Rewrite `examples.json` of a split by a function of its notes."""
    path = tree / f"nsynth-{split}" / "examples.json"
    notes = json.loads(path.read_text())
    changed(notes)
    path.write_text(json.dumps(notes))


def said(corpus, *words):
    return any(all(word in line for word in words) for line in corpus.problems)


def test_families_are_divided_by_the_folders(tree):
    corpus = nsynth.prepare(tree)
    assert (corpus.name, corpus.licence, corpus.rate) == ("nsynth", "CC BY 4.0", 16000)
    assert corpus.labels == ("guitar", "organ", "vocal")
    assert {s: len(corpus.split(s)) for s in SPLITS} == {"train": 36, "valid": 12, "test": 12}
    assert corpus.problems == []
    clip = corpus.split("train")[0]
    assert clip.name == "nsynth-train/audio/guitar_acoustic_000-060-025.wav"
    assert clip.label == "guitar"
    assert len(clip.source.load().waveform) == 6400


def test_pitches_none_and_sources(tree):
    assert nsynth.prepare(tree, labels="pitch").labels == ("060", "061", "062", "063")
    unlabelled = nsynth.prepare(tree, labels="none")
    assert unlabelled.labels == ()
    assert len(unlabelled.clips) == 60
    acoustic = nsynth.prepare(tree, sources=["acoustic"])
    assert acoustic.labels == ("guitar", "vocal")
    assert not said(acoustic, "organ"), "nothing is wrong with what was not asked for"
    with pytest.raises(ValueError, match="expected notes of the sources synthetic"):
        nsynth.prepare(tree, sources=["synthetic"])
    with pytest.raises(ValueError, match="labels='velocity': expected one of family, pitch, none"):
        nsynth.prepare(tree, labels="velocity")
    with pytest.raises(ValueError, match="expected some of acoustic, electronic, synthetic"):
        nsynth.prepare(tree, sources=["wooden"])


def test_another_shape_is_told_with_licence_and_download(tmp_path, tree):
    way_out = r"CC BY 4\.0.*curl -L -C - -O https://.*nsynth-train\.jsonwav\.tar\.gz && curl"
    with pytest.raises(ValueError, match=f"expected NSynth, .*found nothing there.*{way_out}"):
        nsynth.prepare(tmp_path / "gone")
    with pytest.raises(ValueError, match=rf"no nsynth-train/ with .* \(audio, exa.*{way_out}"):
        nsynth.prepare(tree / "nsynth-train")
    (tree / "nsynth-test" / "examples.json").unlink()
    with pytest.raises(ValueError, match="no nsynth-test/ with both in it"):
        nsynth.prepare(tree)


@pytest.mark.parametrize("content", ["", "[]", "{}", "5", '{"a": {"pitch": 60}}', '"no notes"'])
def test_json_of_another_form_is_told(tree, content):
    (tree / "nsynth-valid" / "examples.json").write_text(content)
    with pytest.raises(ValueError, match=r"nsynth-valid.examples.json: expected .*unpack its"):
        nsynth.prepare(tree)


def test_json_cut_short_at_any_byte_is_told(tree):
    path = tree / "nsynth-valid" / "examples.json"
    whole = path.read_bytes()
    for size in range(1, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=rf"examples\.json: .*found {size} bytes that are cut"
        ):
            nsynth._notes(path)


def test_files_and_json_that_do_not_agree(tree):
    clean = nsynth.prepare(tree)
    audio = tree / "nsynth-train" / "audio"
    (audio / "guitar_acoustic_000-060-025.wav").unlink()
    tone(audio / "vocal_acoustic_000-099-127.wav", 500, 1)
    (audio / ".DS_Store").touch()
    odd = "guitar_acoustic_000-061-026"
    change(tree, "train", lambda notes: notes[odd].update(pitch=99))
    found = nsynth.prepare(tree)
    assert len(found.clips) == len(clean.clips) - 2
    assert len(found.problems) == 4, found.problems
    assert said(found, "guitar_acoustic_000-060-025.wav", "names it, it is not there")
    assert said(found, "vocal_acoustic_000-099-127.wav", "does not name it; left out")
    assert said(found, f"{odd}.wav", "examples.json says guitar, acoustic, 99")
    assert said(found, ".DS_Store")


def test_a_name_that_comes_twice_is_refused(tree):
    name = "guitar_acoustic_000-060-025"
    note = note_of("guitar", "acoustic", 0, 60, 25)
    change(tree, "test", lambda notes: notes.update({name: note}))
    with pytest.raises(ValueError, match=f"each name once, found 1 more than once: {name}"):
        nsynth.prepare(tree)
    path = tree / "nsynth-train" / "examples.json"
    nsynth_tree(tree)
    path.write_text(
        path.read_text().rstrip().removesuffix("}") + f', "{name}": ' + json.dumps(note) + "}"
    )
    with pytest.raises(ValueError, match=f"more than once: {name}"):
        nsynth.prepare(tree)


def test_a_family_in_two_spellings_is_refused(tree):
    change(
        tree,
        "valid",
        lambda notes: [
            n.update(instrument_family_str="Guitar ")
            for n in notes.values()
            if n["instrument_family_str"] == "guitar"
        ],
    )
    with pytest.raises(ValueError, match=r"'Guitar ' \(4 clips\) and 'guitar' \(16 clips\)"):
        nsynth.prepare(tree)


def test_labels_of_few_notes_are_left_out_and_listed(tree):
    def few(notes):
        for name in [n for n in notes if n.startswith("vocal")][:5]:
            del notes[name]

    change(tree, "train", few)
    found = nsynth.prepare(tree)
    assert found.labels == ("guitar", "organ")
    assert said(found, "vocal", "'vocal' has 7 notes to train on, fewer than 8")


def test_without_labels_figures_that_need_them_are_left_out_by_name(tree, tmp_path, capsys):
    recipe = load_recipe("nsynth")
    smoke = replace(recipe.PRESETS["smoke"], data=tree, run=tmp_path / "run", labels="none")
    recipe.main(replace(smoke, source="all"))
    printed = capsys.readouterr().out
    assert "Left out, for want of labels: accuracy, inception score." in printed
    assert "accuracy, ours less" not in printed
    assert (tmp_path / "run" / "clips" / "0000.wav").is_file()


def test_the_archives_are_fetched_once(tmp_path, tree, monkeypatch, served):
    folder, address = served
    for split in SPLITS:
        with tarfile.open(folder / f"nsynth-{split}.jsonwav.tar.gz", "w:gz") as archive:
            archive.add(tree / f"nsynth-{split}", f"nsynth-{split}")
    monkeypatch.setattr(nsynth, "ARCHIVE", address + "/nsynth-{split}.jsonwav.tar.gz")
    corpus = nsynth.prepare(cache=tmp_path / "cache")
    assert len(corpus.clips) == 20 * len(FAMILIES)
    assert sorted(p.name for p in (tmp_path / "cache" / "nsynth").iterdir()) == [
        f"nsynth-{split}" for split in sorted(SPLITS)
    ]
    monkeypatch.setattr(nsynth, "ARCHIVE", address + "/gone-{split}")
    assert nsynth.prepare(cache=tmp_path / "cache").clips == corpus.clips
