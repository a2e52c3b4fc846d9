"""Speech Commands: its layout, official lists, and folders that are not as they should be."""

import hashlib
import io
import tarfile
from dataclasses import replace

import pytest
import soundfile
from corpus_trees import PEOPLE, speech_commands_tree, tone

from sance_audio.datasets import speech_commands
from sance_audio.datasets.speech_commands import DIGITS
from sance_audio.recipe import load_recipe

FEW = ("two", "one", "up")


@pytest.fixture
def tree(tmp_path):
    return speech_commands_tree(tmp_path / "data", FEW)


def said(corpus, *words):
    """Whether one line of its problems has all the words."""
    return any(all(word in line for word in words) for line in corpus.problems)


def test_digits_are_divided_by_the_lists(tmp_path):
    corpus = speech_commands.prepare(speech_commands_tree(tmp_path))
    assert (corpus.name, corpus.licence, corpus.rate) == ("sc09", "CC BY 4.0", 16000)
    assert corpus.labels == DIGITS
    counts = {split: len(corpus.split(split)) for split in PEOPLE}
    assert counts == {"train": 80, "valid": 40, "test": 40}
    for split, people in PEOPLE.items():
        found = {clip.name.partition("/")[2].partition("_")[0] for clip in corpus.split(split)}
        assert found == {*people}
    clip = corpus.clips[0]
    assert clip.name == "zero/0a7c2a8d_nohash_0.wav"
    assert clip.label == "zero"
    assert len(clip.source.load().waveform) == 4800
    assert len(corpus.problems) == 2, corpus.problems
    assert said(corpus, "_background_noise_", "no word", "left out")
    assert said(corpus, ".DS_Store")


def test_words_are_those_asked_for_or_all(tree):
    assert speech_commands.prepare(tree, words=None).labels == ("one", "two", "up")
    assert speech_commands.prepare(tree, words=None).name == "speech_commands"
    chosen = speech_commands.prepare(tree, words=("up", "one"))
    assert chosen.labels == ("up", "one")
    assert {clip.label for clip in chosen.clips} == {"up", "one"}
    assert not any("two/" in line for line in chosen.problems), "no word of what is not asked for"


@pytest.mark.parametrize("nest", ["speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02"])
def test_where_torchaudio_puts_it(tmp_path, nest):
    speech_commands_tree(tmp_path / nest, FEW)
    assert len(speech_commands.prepare(tmp_path, words=FEW).clips) == 48


def test_another_shape_is_told_with_licence_and_download(tmp_path, tree):
    way_out = r"CC BY 4\.0.*curl -L -C - -O http://download.*speech_commands_v0\.02\.tar\.gz"
    with pytest.raises(ValueError, match=f"expected Speech Commands.*nothing there.*{way_out}"):
        speech_commands.prepare(tmp_path / "gone")
    with pytest.raises(ValueError, match=f"found data; .*{way_out}"):
        speech_commands.prepare(tmp_path)
    with pytest.raises(ValueError, match=f"found no folder of zero, three, four.*{way_out}"):
        speech_commands.prepare(tree)
    (tree / "testing_list.txt").unlink()
    with pytest.raises(ValueError, match=r"with validation_list.txt and testing_list.txt, found"):
        speech_commands.prepare(tree, words=FEW)


@pytest.mark.parametrize("other", ["Up", "up ", "UP"])
def test_a_word_in_two_spellings_is_refused(tree, other):
    tone(tree / other / "0a7c2a8d_nohash_9.wav", 300, 5)
    with pytest.raises(ValueError, match=r"in one spelling, found '.*; give clips") as caught:
        speech_commands.prepare(tree, words=None)
    assert f"{other!r} (1 clips)" in str(caught.value)
    assert "'up' (16 clips)" in str(caught.value)


def test_files_and_lists_that_do_not_agree(tree):
    clean = speech_commands.prepare(tree, words=FEW)
    (tree / "up" / "3bfd30e6_nohash_1.wav").unlink()
    (tree / "one" / "c1d39ce8_nohash_0.wav").unlink()
    tone(tree / "two" / "3bfd30e6_nohash_77.wav", 300, 6)  # a judged speaker, in no list
    tone(tree / "two" / "recording.wav", 300, 7)
    (tree / "two" / "notes.txt").touch()
    with (tree / "testing_list.txt").open("a") as file:
        file.write("happy/3bfd30e6_nohash_0.wav\nno line of a list\n\n")
    found = speech_commands.prepare(tree, words=FEW)
    assert len(found.clips) == len(clean.clips) - 2
    assert len(found.problems) == len(clean.problems) + 6
    assert said(found, "up/3bfd30e6_nohash_1.wav", "testing_list.txt names it, it is not there")
    assert said(found, "one/c1d39ce8_nohash_0.wav", "validation_list.txt names it")
    assert said(found, "two/3bfd30e6_nohash_77.wav", "in no list, but testing_list.txt has its sp")
    assert said(found, "two/recording.wav", "expected a name {speaker}_nohash_{n}.wav")
    assert said(found, "notes.txt")
    assert said(found, "1 lines are no {word}/{name}.wav: no line of a list")
    assert said(speech_commands.prepare(tree, words=None), "happy/3bfd30e6_nohash_0.wav")


def test_a_file_in_both_lists_is_refused(tree):
    with (tree / "validation_list.txt").open("a") as file:
        file.write("up/3bfd30e6_nohash_1.wav\n")
    with pytest.raises(ValueError, match=r"found 1 in .*: up/3bfd30e6_nohash_1\.wav; take both"):
        speech_commands.prepare(tree, words=FEW)
    (tree / "validation_list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected a list of files, one a line, found none"):
        speech_commands.prepare(tree, words=FEW)


def test_a_part_of_it_is_the_same_every_time_and_grows(tmp_path):
    every = speech_commands.prepare(speech_commands_tree(tmp_path))
    few, more = every.some(3), every.some(6)
    assert {s: len(few.split(s)) for s in PEOPLE} == {"train": 30, "valid": 10, "test": 10}
    assert few.clips == every.some(3).clips
    assert {clip.name for clip in few.clips} < {clip.name for clip in more.clips}
    assert few.not_chosen == len(every.clips) - len(few.clips)
    assert every.some(10**6).clips == every.clips


def test_another_rate_is_reported_resampled_and_counted(tmp_path, capsys):
    root = speech_commands_tree(tmp_path / "data")
    path = root / "six" / "0a7c2a8d_nohash_0.wav"
    tone(path, 400, 8, rate=8000)
    recipe = load_recipe("speech_commands")
    smoke = replace(recipe.PRESETS["smoke"], data=root, run=tmp_path / "run")
    corpus = recipe.corpus(smoke)
    features = recipe.LogMel(16000, n_fft=1024, hop_length=256, n_mels=64, floor=5e-5)
    facts = recipe.prepare(corpus, features, smoke).facts
    assert facts["resampled"] == 1
    assert facts["other_rate"] == [
        "six/0a7c2a8d_nohash_0.wav: 8000 Hz, where the corpus has 16000; resampled"
    ]
    printed = capsys.readouterr()
    assert "1 of another rate than documented" in printed.out
    assert "six/0a7c2a8d_nohash_0.wav: 8000 Hz" in printed.err
    assert soundfile.info(path).samplerate == 8000


def test_the_archive_is_fetched_checked_and_unpacked_once(tmp_path, monkeypatch, served):
    root = speech_commands_tree(tmp_path / "tree", FEW)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(root, ".")  # members begin with ./, as the real archive's do
    folder, address = served
    (folder / "speech_commands_v0.02.tar.gz").write_bytes(packed.getvalue())
    monkeypatch.setattr(speech_commands, "ARCHIVE", f"{address}/speech_commands_v0.02.tar.gz")
    with pytest.raises(ValueError, match=r"expected the sha256 af14739e.*pass --data DIR"):
        speech_commands.prepare(cache=tmp_path / "cache")
    monkeypatch.setattr(speech_commands, "CHECKSUM", hashlib.sha256(packed.getvalue()).hexdigest())
    corpus = speech_commands.prepare(cache=tmp_path / "cache", words=FEW)
    assert len(corpus.clips) == 48
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["speech_commands"]
    monkeypatch.setattr(speech_commands, "ARCHIVE", f"{address}/gone")
    assert speech_commands.prepare(cache=tmp_path / "cache", words=FEW).clips == corpus.clips


def test_the_checksum_is_the_one_that_torchaudio_publishes():
    published = pytest.importorskip("torchaudio.datasets.speechcommands")._CHECKSUMS
    assert f"sha256:{published[speech_commands.ARCHIVE]}" == speech_commands.CHECKSUM
