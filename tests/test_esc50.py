"""ESC-50: its layout, on a tiny tree and on the real ESC-10; folds never share a recording."""

import csv

import numpy as np
import pytest
import soundfile
from conftest import real_data

from sance_audio.datasets import esc50

COLUMNS = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
CLASSES = {0: ("dog", True), 1: ("rooster", True), 2: ("pig", False)}


def rows_of(suffix=".wav"):
    """Five folds, three classes, two takes of one source each."""
    return [
        {
            "filename": f"{fold}-{100 * fold + target}-{take}-{target}{suffix}",
            "fold": fold,
            "target": target,
            "category": CLASSES[target][0],
            "esc10": CLASSES[target][1],
            "src_file": 100 * fold + target,
            "take": take,
        }
        for fold in range(1, 6)
        for target in CLASSES
        for take in "AB"
    ]


def write_meta(root, rows, columns=COLUMNS):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def esc50_tree(root, suffix=".wav"):
    rows = rows_of()
    write_meta(root, rows)
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    for row in rows:
        path = (root / "audio" / row["filename"]).with_suffix(suffix)
        soundfile.write(path, 0.1 * rng.standard_normal(4410), 44100)
    return root


@pytest.mark.parametrize("suffix", [".wav", ".ogg"])
def test_layout_folds_and_sources(tmp_path, suffix):
    root = esc50_tree(tmp_path, suffix)
    corpus = esc50.prepare(root, test=(1, 2), valid=(3,))
    assert {s: len(corpus.split(s)) for s in ("test", "valid", "train")} == {
        "test": 12,
        "valid": 6,
        "train": 12,
    }
    assert corpus.labels == ("dog", "pig", "rooster")
    assert corpus.licence == "CC BY-NC 3.0"
    first = corpus.clips[0]
    assert first.name == f"audio/1-100-A-0{suffix}"
    assert (first.label, first.fold, first.group) == ("dog", 1, "100")
    assert len(first.source.load().waveform) == pytest.approx(4410, abs=2)


def test_esc10_are_the_classes_so_marked(tmp_path):
    corpus = esc50.prepare(esc50_tree(tmp_path), esc10=True)
    assert corpus.labels == ("dog", "rooster")
    assert corpus.name == "esc10"
    assert corpus.licence == "CC BY 3.0"
    assert len(corpus.clips) == 20


@pytest.mark.parametrize("folds", [{"test": (6,)}, {"test": (4,)}, {"test": (1, 2, 3, 5)}])
def test_folds_are_divided_once_and_leave_some_to_train_on(tmp_path, folds):
    with pytest.raises(ValueError, match="expected folds of"):
        esc50.prepare(tmp_path, **folds)


def test_missing_files_are_counted_and_all_named(tmp_path):
    root = esc50_tree(tmp_path)
    gone = ["1-100-A-0.wav", "3-302-B-2.wav"]
    for name in gone:
        (root / "audio" / name).unlink()
    with pytest.raises(ValueError, match="2 files are missing") as error:
        esc50.prepare(root)
    assert all(name in str(error.value) for name in gone)


def test_files_that_no_line_names_are_left_out_and_listed(tmp_path):
    root = esc50_tree(tmp_path)
    for name in ("1-999-A-0.wav", "notes.txt"):
        (root / "audio" / name).touch()
    corpus = esc50.prepare(root, esc10=True)
    assert len(corpus.clips) == 20
    assert corpus.problems == [
        f"audio/{name}: meta/esc50.csv does not name it; left out"
        for name in ("1-999-A-0.wav", "notes.txt")
    ]


@pytest.mark.parametrize("other", ["Dog", "dog ", "DOG"])
def test_a_category_in_two_spellings_and_a_file_named_twice(tmp_path, other):
    rows = rows_of()
    write_meta(tmp_path, [rows[0] | {"category": other}, *rows[1:]])
    with pytest.raises(ValueError, match=r"'dog' \(9 clips\)") as caught:
        esc50.prepare(tmp_path)
    assert f"{other!r} (1 clips)" in str(caught.value)
    write_meta(tmp_path, [*rows, rows[3]])
    with pytest.raises(ValueError, match=r"each name once, found 1 .*: 1-101-B-1\.wav"):
        esc50.prepare(tmp_path)


def test_another_shape_is_told_with_licence_and_download(tmp_path):
    way_out = r"CC BY-NC 3\.0, .*curl -L -C - -O https://github\.com/karolpiczak/ESC-50"
    with pytest.raises(ValueError, match=f"expected a folder with meta/esc50.csv.*{way_out}"):
        esc50.prepare(tmp_path / "gone")


def test_what_is_no_esc50_is_said(tmp_path):
    with pytest.raises(ValueError, match="found nothing there"):
        esc50.prepare(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no meta/esc50\.csv in it"):
        esc50.prepare(tmp_path)
    write_meta(tmp_path, rows_of(), COLUMNS[:-2])
    with pytest.raises(ValueError, match="found none named src_file, take"):
        esc50.prepare(tmp_path)
    rows = rows_of()
    write_meta(tmp_path, [*rows[1:], rows[0] | {"fold": 2}])
    with pytest.raises(ValueError, match=r"found 1 of 30 .*: 1-100-A-0\.wav"):
        esc50.prepare(tmp_path)
    write_meta(tmp_path, [*rows[1:], rows[0] | {"src_file": 200}])
    with pytest.raises(ValueError, match="1 sources in several: 200"):
        esc50.prepare(tmp_path)
    write_meta(tmp_path, [row | {"esc10": False} for row in rows])
    with pytest.raises(ValueError, match="found none; leave out esc10"):
        esc50.prepare(tmp_path, esc10=True)


def test_real_esc10():
    clips = esc50.listing(real_data("esc10"), esc10=True)
    assert len(clips) == 400
    assert len({clip.label for clip in clips}) == 10
    for fold in esc50.FOLDS:
        inside = {clip.group for clip in clips if clip.fold == fold}
        assert not inside & {clip.group for clip in clips if clip.fold != fold}
        assert sum(clip.fold == fold for clip in clips) == 80
    recording = clips[0].source.load()
    assert recording.sample_rate == esc50.SAMPLE_RATE
    assert len(recording.waveform) == pytest.approx(5 * 44100, rel=0.01)
