"""The listening page: what it shows of runs in any state, and that it can be mailed."""

import base64
import io
import math
import re
import shutil
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread
from test_hostile import fails

from sance_audio import audio, cli
from sance_audio.files import read_json, read_jsonl, write_json, write_jsonl
from sance_audio.model import AudioEBM
from sance_audio.preparation import prepare
from sance_audio.recipe import load_recipe
from sance_audio.report import bundle, files_of, write_page
from sance_audio.report.cards import COLUMNS, Deck
from sance_audio.report.film import film, frames
from sance_audio.report.learning import curves
from sance_audio.report.loudness import DEEPEST, gains, loudness
from sance_audio.report.page import _keyed
from sance_audio.samplers import clip_seeds


class Shown(HTMLParser):
    """Tags with their attributes, and the text between them, of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def every(self, tag, attribute):
        return [
            about[attribute] for name, about in self.tags if name == tag and attribute in about
        ]


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def tone(hertz, seconds=1.0, rate=48000, peak=1.0):
    return peak * torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * rate)) / rate)


# Loudness


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000])
def test_loudness_is_that_of_the_standard_at_any_rate(rate):
    """EBU Tech 3341's first case in mono: a sine of 997 Hz at -20 dBFS has -23.01 LUFS."""
    assert loudness(tone(997, rate=rate, peak=0.1), rate) == pytest.approx(-23.01, abs=0.1)


def test_loudness_weighs_frequencies_as_the_standard_s_filters_do():
    """BS.1770-4, figures 2 and 4: bass counts less, treble 4 dB more."""
    at = {f: loudness(tone(f), 48000) + 3.01 for f in (25, 100, 1000, 10000)}
    assert at[25] < -8
    assert at[100] == pytest.approx(-1.8, abs=0.7)
    assert at[1000] == pytest.approx(0, abs=0.1)
    assert at[10000] == pytest.approx(3.3, abs=0.3)


def test_silence_around_a_sound_changes_nothing_and_gain_is_gain():
    sound = tone(500, 0.2)
    padded = torch.nn.functional.pad(sound, (48000, 48000))
    assert loudness(padded, 48000) == pytest.approx(loudness(sound, 48000), abs=0.2)
    assert loudness(sound / 2, 48000) == pytest.approx(loudness(sound, 48000) - 6.02, abs=0.01)
    assert loudness(torch.zeros(100), 8000) == -math.inf
    assert loudness(tone(200, rate=3000), 3000) > -10, "a rate without room for the shelf"


def test_gains_make_clips_equally_loud_and_never_louder():
    rng = np.random.default_rng(0)
    levels = (-20 + 4 * rng.standard_normal(50)).tolist()
    found = np.array(levels) + 20 * np.log10(gains(levels))
    assert found == pytest.approx(np.full(50, found[0]))
    assert max(gains(levels)) == 1.0
    far = [*levels, -65.0, -math.inf]
    assert gains(far)[-2:] == [1.0, 1.0], "what is far quieter stays as it is"
    assert min(20 * np.log10(gains(far))) > -DEEPEST - 15
    assert gains([]) == []
    assert gains([-math.inf]) == [1.0]


# A finished run


def test_every_player_has_a_picture_a_gain_and_a_name(run):
    shown = Shown(write_page(run))
    players = shown.every("audio", "src")
    clips = [about for _, about in shown.tags if about.get("class", "").split()[:1] == ["clip"]]
    assert len(players) == len(clips) == len(shown.every("img", "src")) > 60
    assert all((run / unquote(source)).is_file() for source in players)
    assert all(0 < float(clip["data-gain"]) <= 1 for clip in clips)
    assert len({clip["data-gain"] for clip in clips}) > 10
    assert all(source.startswith("data:image/png") for source in shown.every("img", "src"))
    names = [n for n in shown.every("button", "aria-label") if n.startswith("Play ")]
    assert len(names) == len(players)
    assert shown.every("button", "data-show") == ["", *AudioEBM.from_pretrained(run).labels]


def test_gains_on_the_page_make_its_clips_equally_loud(run):
    shown = Shown(write_page(run))
    clips = [about for _, about in shown.tags if about.get("class", "").split()[:1] == ["clip"]]
    files = [unquote(source) for source in shown.every("audio", "src")]
    found = []
    for clip, file in zip(clips, files, strict=True):
        if float(clip["data-gain"]) < 1:
            wave, rate = audio.read(run / file)
            found.append(loudness(float(clip["data-gain"]) * wave, rate))
    assert len(found) > 20
    assert max(found) - min(found) < 0.1


def test_nothing_on_the_page_is_fetched(run):
    page = write_page(run).read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!data:)|\bfetch\(|XMLHttp", page)
    assert str(run.resolve()) not in page, "no path of the machine"


def test_nearest_training_clips_are_the_nearest(run):
    """By hand, of the recipe's own material."""
    results = read_json(run / "results.json")
    made = [c for c in results["examples"] if c["kind"] == "generated"]
    recipe, model = load_recipe("drums"), AudioEBM.from_pretrained(run)
    options = recipe.PRESETS["smoke"]
    corpus = recipe.corpus(options)
    options = replace(options, run=run)
    material = prepare(corpus, model.features, options, frames=model.frames, fitted=True)
    train = material.x["train"][:].flatten(1)
    for clip in made:
        wave, _ = audio.read(run / clip["file"])
        x = model.log_mels(model.windows(wave)[:1]).flatten(1)
        distances = (train - x).norm(dim=1)
        near = clip["nearest"]
        assert distances.argmin() == near["row"]
        assert distances.min() == pytest.approx(near["distance"], rel=1e-2), "16-bit files"
        sound, _ = audio.read(run / near["file"])
        again = model.log_mels(model.windows(sound)[:1]).flatten(1)
        assert (again - train[near["row"]]).norm() < 0.2 * near["distance"]
    files = {clip["nearest"]["file"] for clip in made}
    assert {f"page/{p.name}" for p in (run / "page").glob("nearest_*")} == files
    page = write_page(run).read_text()
    assert all(f'src="{file}"' in page for file in files)


def test_a_film_ends_with_the_clip_and_begins_with_the_reference(run):
    model = AudioEBM.from_pretrained(run)
    films = film(run, 0)
    assert len(films) == 3
    seeds = clip_seeds(torch.Generator().manual_seed(0), 3)
    warm = model.sampling_temperature
    x, _ = model.draw(model.classes(3), seeds, steps=0, reference_only=True, temperature=warm)
    alone = model.invert(x, seeds)
    for i, row in enumerate(films):
        assert [frame["step"] for frame in row] == frames(model.steps)
        assert {frame["label"] for frame in row} == {model.labels[i]}
        last, _ = audio.read(run / row[-1]["file"])
        clip, _ = audio.read(sorted((run / "clips").glob(f"{i:04d}*"))[0])
        assert torch.equal(last, clip)
        first, _ = audio.read(run / row[0]["file"])
        scale = min(1.0, audio.PEAK / float(alone[i].abs().max()))
        assert (first - scale * alone[i]).abs().max() < 1e-4
    before = {p: p.stat().st_mtime_ns for p in (run / "page").glob("film_*")}
    assert film(run, 0) == films
    assert before == {p: p.stat().st_mtime_ns for p in (run / "page").glob("film_*")}, "kept"
    film(run, 1)
    assert before != {p: p.stat().st_mtime_ns for p in (run / "page").glob("film_*")}, "drawn"


def test_the_bundle_holds_all_that_the_page_plays(run, tmp_path, capsys):
    cli.main(["page", str(run), "--zip"])
    assert "page.zip" in capsys.readouterr().out
    with zipfile.ZipFile(run / "page.zip") as archive:
        archive.extractall(tmp_path / "mailed")
    home = tmp_path / "mailed" / "run"
    names = files_of(home / "index.html")
    assert {n.split("/")[0] for n in names} == {"clips", "samples", "page", "evaluation"}
    assert all((home / name).is_file() for name in names)
    assert not (home / "model.safetensors").exists()
    first = (run / "page.zip").read_bytes()
    assert bundle(run / "index.html").read_bytes() == first, "the same page, the same bytes"
    (run / names[0]).unlink()
    with pytest.raises(ValueError, match="gone since"):
        bundle(run / "index.html")


# Runs in other states


def test_files_that_are_gone_are_left_out_and_told(run):
    whole = len(Shown(write_page(run)).every("audio", "src"))
    shutil.rmtree(run / "clips")
    for path in (run / "page").glob("nearest_*"):
        path.unlink()
    (run / "samples" / "real_00_kick.wav").write_bytes(b"no sound")
    shown = Shown(write_page(run))
    assert "files are gone or cannot be read" in shown.text
    assert "sance-audio train drums" in shown.text
    assert 0 < len(shown.every("audio", "src")) < whole
    assert "Generated" not in shown.text
    assert all((run / unquote(source)).is_file() for source in shown.every("audio", "src"))
    shutil.rmtree(run / "samples")
    assert "How it learnt" not in Shown(write_page(run)).text


def test_a_run_half_finished_has_a_page_that_says_so(run):
    """As a kill leaves it after the first checkpoint: no model, no results."""
    for name in ("model.safetensors", "detector.safetensors", "results.json", "evaluation.json"):
        (run / name).unlink()
    for folder in ("clips", "page", "evaluation"):
        shutil.rmtree(run / folder)
    rows = read_jsonl(run / "metrics.jsonl")
    write_jsonl(run / "metrics.jsonl", rows[:7])
    shown = Shown(write_page(run))
    assert "Not finished: training was at step 7 of 10" in shown.text
    assert "sance-audio train drums" in shown.text
    assert "How it learnt" in shown.text
    assert "How good they are" not in shown.text
    players = shown.every("audio", "src")
    assert len(players) == len(shown.every("img", "src")) == 6
    shutil.rmtree(run / "samples")
    assert "Network gap" in Shown(write_page(run)).text, "no samples yet"


def test_a_run_trained_but_not_judged(run):
    (run / "results.json").unlink()
    shown = Shown(write_page(run))
    assert "Trained, but not judged yet" in shown.text
    assert "How a clip emerges" in shown.text
    assert "step 10" in shown.text


def test_a_run_from_before_nearest_clips_were_written(run):
    results = read_json(run / "results.json")
    for clip in results["examples"]:
        clip.pop("nearest", None)
    write_json(run / "results.json", results)
    shown = Shown(write_page(run))
    assert "Nearest training clips were not written" in shown.text
    assert "nearest in training" not in shown.text


def test_what_is_no_run_is_one_line(tmp_path, run, capsys):
    (tmp_path / "empty").mkdir()
    assert "no model.safetensors" in fails(capsys, "page", tmp_path / "empty")
    assert "no such run folder" in fails(capsys, "page", tmp_path / "nowhere")
    (run / "metrics.jsonl").unlink()
    (run / "results.json").unlink()
    assert "sance-audio train" in fails(capsys, "page", run)
    (run / "results.json").write_text("[]")
    assert "not the results of a recipe" in fails(capsys, "page", run)


def test_hostile_names_do_no_harm(run):
    """Labels and names of training clips stand on the page as text, whatever is in them."""
    evil = "</script><script>alert(1)</script>\"'>&"
    results = read_json(run / "results.json")
    for clip in results["examples"]:
        clip["label"] = evil
        if "nearest" in clip:
            clip["nearest"]["name"] = evil
    write_json(run / "results.json", results)
    odd = run / "samples" / 'a b#c?%41".wav'
    soundfile.write(odd, 0.1 * np.ones(4000), 16000)
    results["anomalies"]["oddest"][0] |= {"file": f"samples/{odd.name}", "label": evil}
    write_json(run / "results.json", results)
    shown = Shown(write_page(run))
    assert sum(tag == "script" for tag, _ in shown.tags) == 2
    assert evil in shown.text
    assert f"samples/{odd.name}" in files_of(run / "index.html")
    bundle(run / "index.html")


def test_curves_follow_the_metrics():
    rows = [{"step": i, "gap": float(i), "loss": None, "refresh": "start"} for i in range(1, 1001)]
    (panel,) = curves(rows)
    assert panel["title"] == "network gap (nats)"
    points = [tuple(map(float, pair.split(","))) for pair in panel["line"].split()]
    assert len(points) <= 161
    assert all(b[0] > a[0] and b[1] <= a[1] for a, b in pairwise(points))
    assert float(panel["last"]) == pytest.approx(988, abs=1), "the mean of the last 25"
    assert curves([]) == []
    assert curves(rows[:1]) == []
    assert curves([{"step": i, "gap": 2.0} for i in range(5)])[0]["last"] == "2"


def test_long_clips_are_drawn_whole_and_within_limits(run):
    """Of ten seconds the picture has 512 columns at most, and the time of the whole clip."""
    model = AudioEBM.from_pretrained(run)
    wave = torch.zeros(10 * model.sample_rate)
    wave[-model.sample_rate :] = tone(1000, 1.0, model.sample_rate, 0.5)
    audio.write(run / "samples" / "long.wav", wave, model.sample_rate)
    deck = Deck(run, ["samples/long.wav", "samples/none.wav"], model)
    assert deck.gone == ["samples/none.wav"]
    (card,) = deck.deal([{"file": "samples/long.wav"}, {"file": "samples/none.wav"}])
    assert card["span"] == pytest.approx(10)
    pixels = picture(card["picture"])
    assert 200 < pixels.shape[1] <= COLUMNS
    bright = pixels.sum((0, 2))
    assert bright[-pixels.shape[1] // 12 :].mean() > 1.05 * bright[: pixels.shape[1] // 2].mean()


def picture(address):
    return imread(io.BytesIO(base64.b64decode(address.partition(",")[2])), format="png")


def test_classes_have_keys():
    assert _keyed(["kick", "snare"]) == [("kick", "1"), ("snare", "2")]
    assert _keyed(["7", "0"]) == [("7", "7"), ("0", "0")], "digits are their own"
    many = _keyed([f"class {i}" for i in range(12)])
    assert [key for _, key in many] == [*"1234567890", "", ""]
    assert _keyed([]) == []


def test_a_run_without_classes(run):
    """As of a folder of recordings: one group, no chips."""
    model = AudioEBM.from_pretrained(run)
    model.labels = ()
    model.save_pretrained(run)
    results = read_json(run / "results.json")
    for clip in results["examples"]:
        clip["label"] = f"clip {clip['index']}" if "index" in clip else "a recording"
    write_json(run / "results.json", results)
    shown = Shown(write_page(run))
    assert "no classes" in shown.text
    assert shown.every("button", "data-show") == []
    assert "clip 0 energy" in shown.text.replace("\xa0", " ")
    assert "clip 0, clip 0" not in shown.text
