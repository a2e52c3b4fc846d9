"""The page of scored recordings: what it shows, and that no file name does harm on it."""

import base64
import io
import os
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from test_hostile import fails, read_rows

from sance_audio import EnergyDetector, cli, scored_page, streams
from sance_audio.scored_page import Beside, Scored, embedded

RATE = 8000
RNG = np.random.default_rng(0)


def noise(seconds=0.5, level=0.1):
    return (level * RNG.standard_normal(round(seconds * RATE))).astype(np.float32)


def tone(seconds=0.5, hertz=1000):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def stub(detector, window):
    return [SimpleNamespace(start=0.1, end=0.3, low=500.0, high=1500.0, score=4.0)]


@pytest.fixture(scope="module")
def detector():
    return EnergyDetector(preset="smoke", alpha=0.25, sample_rate=RATE, window=10.0).fit(
        [noise() for _ in range(12)]
    )


@pytest.fixture(scope="module")
def scored(detector):
    clips = [noise() for _ in range(5)] + [tone()]
    marks = detector.assess(clips)
    return [
        Scored(f"clip {i}", float(s), float(p), (clip, RATE))
        for i, (clip, s, p) in enumerate(
            zip(clips, marks["anomaly_score"], marks["p_value"], strict=True)
        )
    ]


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def sources(self, tag):
        return [attributes["src"] for name, attributes in self.tags if name == tag]


def page_of(tmp_path, *sections, **more):
    path = scored_page.write(tmp_path / "page.html", "a title", sections, **more)
    return Page(path.read_text(encoding="utf-8"))


def test_ranking_cards_and_threshold(detector, scored, tmp_path):
    part = scored_page.section(detector, scored, embedded, show=2, regions=stub)
    scores = [row["score"] for row in part["rows"]]
    assert scores == sorted(scores, reverse=True)
    assert part["rows"][0]["label"] == "clip 5", "the tone"
    assert part["threshold"] == detector.threshold()
    assert part["found"] == sum(s.score > detector.threshold() for s in scored)
    assert part["found"] == sum(s.p_value <= detector.alpha for s in scored)
    assert [card["label"] for card in part["oddest"]] == [r["label"] for r in part["rows"][:2]]
    ordinary = [r["label"] for r in part["rows"][::-1][:2]]
    assert [card["label"] for card in part["ordinary"]] == ordinary
    page = page_of(tmp_path, part, words=["What was done."])
    assert len(page.sources("audio")) == 4
    assert len(page.sources("img")) == 5
    assert all(
        source.startswith("data:") for tag in ("audio", "img") for source in page.sources(tag)
    )
    assert "0.10 to 0.30 s, 500 to 1500 Hz" in page.text
    assert "calibrated on 5 recordings" in page.text
    assert "What was done." in page.text
    assert "Outlined in cyan" in page.text
    bare = scored_page.section(detector, scored, embedded, show=1, regions=lambda *_: ())
    assert "Outlined" not in page_of(tmp_path, bare).text


def test_players_hold_what_was_scored(detector, scored):
    part = scored_page.section(detector, scored, embedded, show=1, regions=stub)
    sound = base64.b64decode(part["oddest"][0]["file"].partition(",")[2])
    wave, rate = soundfile.read(io.BytesIO(sound))
    assert rate == RATE
    assert np.corrcoef(wave, tone())[0, 1] > 0.9999


def test_without_calibration_there_are_no_p_values(scored, tmp_path):
    bare = EnergyDetector(preset="smoke", calibration=0, learnt=False, sample_rate=RATE)
    bare.fit([noise() for _ in range(8)])
    few = [Scored(s.name, float(bare.anomaly_score([s.clip])[0]), None, s.clip) for s in scored]
    part = scored_page.section(bare, few, embedded, show=1, regions=stub)
    assert part["threshold"] == pytest.approx(bare.gamma_threshold())
    page = page_of(tmp_path, part)
    assert "p =" not in page.text
    assert "gamma" in page.text


def test_the_outline_lies_round_what_is_odd():
    """Of noise with a second of a tone, the oddest region is there."""
    fitted = EnergyDetector(preset="smoke", calibration=0, sample_rate=RATE)
    fitted.fit([noise(4) for _ in range(12)])
    wave = noise(4)
    wave[2 * RATE : 3 * RATE] += 0.1 * tone(1, 1000)
    region = scored_page.regions_of(fitted, torch.from_numpy(wave))[0]
    assert 1.5 < region.start < 2.2
    assert 2.8 < region.end < 3.5
    assert 500 < region.low < 1000 < region.high < 2000


def test_files_beside_the_page(detector, scored, tmp_path):
    store = Beside(tmp_path, "samples/fan")
    page = page_of(tmp_path, scored_page.section(detector, scored, store, show=1, regions=stub))
    for source in page.sources("audio") + page.sources("img"):
        assert source.startswith("samples/fan/")
        assert (tmp_path / source).stat().st_size > 100


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_recordings_stand_on_one_shelf_each(detector, scored, count):
    part = scored_page.section(detector, scored[:count], embedded, show=6, regions=stub)
    names = [card["label"] for kind in ("oddest", "ordinary") for card in part[kind]]
    assert sorted(names) == sorted(s.name for s in scored[:count])


@pytest.mark.parametrize("samples", [1, streams.SAMPLES, 2**30])
def test_the_oddest_window_of_a_long_recording_is_shown(detector, tmp_path, monkeypatch, samples):
    """The tone lies in seconds 20 to 22 of 31; the last window ends with the recording. Whether
    windows come one at a time, some, or all together.
    """
    monkeypatch.setattr(streams, "SAMPLES", samples)
    for second, expected in ((20, (15.0, 20.0)), (29, (20.0, 21.0))):
        wave = np.concatenate([noise(second), 0.2 * tone(2), noise(31 - second - 2)])
        soundfile.write(tmp_path / "long.wav", wave, RATE)
        for clip in ((wave, RATE), tmp_path / "long.wav", str(tmp_path / "long.wav")):
            window, start, whole = scored_page.oddest_window(detector, clip)
            assert not whole
            assert start in expected
            assert len(window) == 10 * RATE
            part = torch.from_numpy(wave[round(start * RATE) :][: len(window)])
            assert torch.corrcoef(torch.stack([part, window]))[0, 1] > 0.999


def test_more_rows_than_are_listed(detector, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(scored_page, "LISTED", 4)
    part = scored_page.section(detector, scored, embedded, show=1, regions=stub)
    assert (len(part["rows"]), part["count"]) == (4, 6)
    assert "And 2 that are less odd" in page_of(tmp_path, part).text


HOSTILE = [
    "<script>alert(1)</script>",
    '" onerror="alert(1)',
    "' onload='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "new\nline\r\u2028\u202eright-to-left",
    "caf\udce9 😀 &amp; é",
    "../../etc/passwd",
]


def test_hostile_names_are_text(detector, scored, tmp_path):
    few = [
        Scored(name, s.score, s.p_value, s.clip, name)
        for name, s in zip(HOSTILE, (scored * 2)[: len(HOSTILE)], strict=True)
    ]
    part = scored_page.section(detector, few, embedded, show=4, regions=stub)
    page = page_of(tmp_path, part, refused=HOSTILE, words=HOSTILE)
    harmless = page_of(
        tmp_path, scored_page.section(detector, few, embedded, show=4, regions=stub)
    )
    assert "script" not in [tag for tag, _ in page.tags]
    allowed = {"src", "alt", "class", "controls", "preload", "lang", "charset", "name", "content"}
    assert {key for _, attributes in page.tags for key in attributes} <= allowed
    assert len(page.sources("img")) == len(harmless.sources("img")) == 9
    for source in page.sources("img") + page.sources("audio"):
        assert re.fullmatch(r"data:(image/png|audio/wav);base64,[A-Za-z0-9+/=]+", source)
    for name in ("<script>alert(1)</script>", "{{ 7 * 7 }}", r"new\nline\r\u2028", r"caf\udce9"):
        assert name in page.text
    written = os.listdir(tmp_path)
    assert written == ["page.html"]


@pytest.fixture
def folders(tmp_path):
    """Normals, and a folder with a tone among noises and with what cannot be read."""
    normals, sounds = tmp_path / "normals", tmp_path / "sounds"
    for folder, count in ((normals, 12), (sounds, 4)):
        folder.mkdir()
        for i in range(count):
            soundfile.write(folder / f"{i:02d}.wav", noise(), RATE)
    soundfile.write(sounds / "<b>tone.wav", 0.2 * tone(), RATE)
    (sounds / "bad<i>.wav").write_text("no sound")
    return normals, sounds


DETECT = ("--preset", "smoke", "--alpha", "0.25")


def test_detect_then_score_with_a_page(folders, tmp_path, capsys):
    normals, sounds = folders
    (normals / "broken.wav").write_text("no sound")
    soundfile.write(normals / "silent.wav", np.zeros(RATE), RATE)
    run, out, page = tmp_path / "run", tmp_path / "scores.csv", tmp_path / "pages" / "page.html"
    cli.main(["detect", str(normals), "--run", str(run), *DETECT])
    told = capsys.readouterr()
    assert "12 normal files at 8000 Hz" in told.out
    assert "2 of 14 normal files left out" in told.err
    assert [p.name for p in run.iterdir()] == ["detector.safetensors"]
    cli.main(["score", str(run), str(sounds), "--out", str(out), "--page", str(page)])
    told = capsys.readouterr()
    assert str(page.resolve()) in told.out
    rows = read_rows(out)
    assert len(rows) == 6
    found = Page(page.read_text(encoding="utf-8"))
    assert "i" not in {tag for tag, _ in found.tags}
    assert "<b>tone.wav" in found.text
    assert "1 could not be read" in found.text
    assert "bad<i>.wav" in found.text
    assert len(found.sources("audio")) == 5
    assert [p.name for p in page.parent.iterdir()] == ["page.html"]


def test_recordings_of_a_folder_stay_together(folders, tmp_path, capsys):
    normals, _ = folders
    for i, path in enumerate(sorted(normals.iterdir())):
        (normals / f"machine {i % 6}").mkdir(exist_ok=True)
        path.rename(normals / f"machine {i % 6}" / path.name)
    arguments = ["detect", str(normals), "--run", str(tmp_path / "run"), *DETECT]
    cli.main([*arguments, "--recording", "folder"])
    assert "3 recordings calibrate" in capsys.readouterr().out
    assert EnergyDetector.from_pretrained(tmp_path / "run").calibration_.recordings == 3


def test_mistakes_are_one_line(folders, tmp_path, capsys):
    normals, sounds = folders
    run = tmp_path / "run"
    detect = ("detect", normals, "--run", run)
    assert "12 recordings" in fails(capsys, *detect, "--preset", "smoke", "--alpha", "0.01")
    assert "no such file" in fails(capsys, "detect", tmp_path / "gone", "--run", run)
    assert "none of 1 files" in fails(capsys, "detect", sounds / "bad<i>.wav", "--run", run)
    assert not run.exists()
    cli.main([str(a) for a in (*detect, *DETECT)])
    capsys.readouterr()
    assert "holds a detector" in fails(capsys, *detect, *DETECT)
    score = ("score", run, sounds, "--out", tmp_path / "scores.csv", "--page")
    assert "ending in .html" in fails(capsys, *score, tmp_path / "page.txt")
    (tmp_path / "x.html").mkdir()
    assert "a folder stands there" in fails(capsys, *score, tmp_path / "x.html")
    assert "--show must be" in fails(capsys, *score, tmp_path / "page.html", "--show", 0)
    assert not (tmp_path / "scores.csv").exists(), "before any work is done"


def test_a_run_with_a_model_has_a_page_too(finished_run, folders, tmp_path):
    _, sounds = folders
    soundfile.write(sounds / "long.wav", noise(25), RATE)
    out, page = tmp_path / "scores.csv", tmp_path / "page.html"
    arguments = ["score", finished_run, sounds, "--out", out, "--page", page, "--show", 1]
    cli.main([str(a) for a in arguments])
    found = Page(page.read_text(encoding="utf-8"))
    assert len(found.sources("audio")) == 2
    assert "resampled from 8000 Hz" in found.text
