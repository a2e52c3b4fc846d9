"""What is read of a corpus, what is not, and the cache of its log-mels."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from sance_audio.datasets import Clip, Corpus, FileSource
from sance_audio.datasets import cache as caching
from sance_audio.datasets.cache import LogMels, cache_log_mels, distinct, training_windows
from sance_audio.features import LogMel
from sance_audio.options import Options
from sance_audio.preparation import build, prepare
from sance_audio.reference import GaussianReference

RATE = 8000
OPTIONS = Options(frames=16, components=1, rank=4, network="smoke")


def features() -> LogMel:
    return LogMel(RATE, n_fft=256, hop_length=64, n_mels=16)


def noise(seconds: float, seed: int, rate: int = RATE, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 0.1 * rng.standard_normal((round(seconds * rate), channels))


def tree(root: Path, n: int = 12) -> Corpus:
    """Files of two classes: 60 % training, 20 % validation, 20 % test."""
    clips = []
    for i in range(n):
        path = root / "ab"[i % 2] / f"{i:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(0.1 + 0.02 * i, i), RATE)
        split = ("train", "train", "train", "valid", "test")[i // 2 % 5]
        clips.append(Clip(path.name, "ab"[i % 2], split, FileSource(path)))
    return Corpus("tree", "none", clips, ("a", "b"))


def prepared(corpus: Corpus, run: Path, **changes):
    return prepare(corpus, features(), replace(OPTIONS, run=run, **changes))


def test_rows_are_the_log_mels_of_the_clips(tmp_path):
    corpus, mel = tree(tmp_path / "data"), features()
    material = prepare(corpus, mel, replace(OPTIONS, run=tmp_path / "run"))
    assert {s: len(c) for s, c in material.clips.items()} == {"train": 8, "valid": 2, "test": 2}
    for split, clips in material.clips.items():
        for i, clip in enumerate(clips):
            wave = torch.from_numpy(soundfile.read(clip.source.path, dtype="float32")[0])
            wave = 0.5 * wave / wave.abs().max()
            expected = mel(training_windows(wave, mel.length(16), None, 1)[0])
            torch.testing.assert_close(material.x[split][i : i + 1], expected)
            assert material.y[split][i] == "ab".index(clip.label)
    every = torch.cat([material.x["train"]])
    assert abs(float(every.mean())) < 1e-4
    assert float(every.std()) == pytest.approx(1, abs=1e-4)


def test_nothing_is_dropped_in_silence(tmp_path, capsys):
    corpus = tree(tmp_path / "data", 20)
    root = tmp_path / "data"
    (root / "a" / "00.wav").write_text("this is not sound")
    shutil.copy(root / "a" / "08.wav", root / "b" / "01.wav")  # a test clip, again in training
    soundfile.write(root / "a" / "02.wav", noise(0.3, 90, channels=2), RATE)
    soundfile.write(root / "b" / "03.wav", noise(0.3, 91, rate=16000), 16000)
    soundfile.write(root / "a" / "04.wav", np.zeros(2000), RATE)
    material = prepared(corpus, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "preparation.json").read_text())
    assert facts == json.loads(json.dumps(material.facts))
    assert facts["clips"] == {"train": 9, "valid": 4, "test": 4}
    assert len(facts["left_out"]) == 1
    assert "00.wav" in facts["left_out"][0]
    assert facts["repeated"] == ["01.wav (train): the same sound as 08.wav (test)"]
    assert facts["silent"] == ["04.wav"]
    assert (facts["mixed_down"], facts["resampled"]) == (1, 1)
    window = features().length(16) / RATE
    seconds = [
        soundfile.info(c.source.path).duration for s in material.clips for c in material.clips[s]
    ]
    assert facts["padded"] == sum(s < window for s in seconds)
    assert facts["longer_than_window"] == sum(s > window for s in seconds)
    said = capsys.readouterr()
    assert (
        "1 left out, 1 left out as repetitions, 0 read in part, 1 left out as silent" in said.out
    )
    assert "left out: " in said.err
    assert "the same sound as" in said.err


def test_a_file_cut_short_is_used_and_listed(tmp_path):
    corpus = tree(tmp_path / "data")
    path = tmp_path / "data" / "a" / "00.wav"
    path.write_bytes(path.read_bytes()[:-600])
    facts = prepared(corpus, tmp_path / "run").facts
    assert len(facts["read_in_part"]) == 1
    assert "00.wav" in facts["read_in_part"][0]
    assert facts["left_out"] == []


def test_of_equal_clips_the_judged_one_stays(tmp_path):
    corpus = tree(tmp_path, 12)
    for clip in corpus.clips[1:]:
        shutil.copy(corpus.clips[0].source.path, clip.source.path)
    kept, digests, repeated = distinct(corpus.clips)
    assert [clip.split for clip in kept] == ["test"]
    assert len(digests) == 1
    assert len(repeated) == 11


def test_the_cache_is_read_again_and_known_by_settings_and_content(tmp_path, monkeypatch):
    corpus, run = tree(tmp_path / "data"), tmp_path / "run"
    first = prepared(corpus, run)
    files = sorted((run / "features").iterdir())
    assert [f.suffix for f in files] == [".json", ".npy"]

    def forbidden(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(caching, "_read", forbidden)
        again = prepared(corpus, run)
        for split in first.x:
            assert torch.equal(first.x[split][:], again.x[split][:])
        with pytest.raises(AssertionError, match="read again"):
            prepared(corpus, run, frames=32)
    # another content under the same name
    soundfile.write(tmp_path / "data" / "a" / "00.wav", noise(0.2, 99), RATE)
    with pytest.raises(ValueError, match="not the corpus that"):
        prepared(corpus, run)
    other = prepared(corpus, tmp_path / "other", cache=run / "features")
    assert len(list((run / "features").iterdir())) == 4
    assert not torch.equal(first.x["train"][:1], other.x["train"][:1])


def test_runs_share_a_cache(tmp_path, monkeypatch):
    corpus = tree(tmp_path / "data")
    prepared(corpus, tmp_path / "one", cache=tmp_path / "cache")
    monkeypatch.setattr(caching, "_read", None)
    prepared(corpus, tmp_path / "two", cache=tmp_path / "cache")
    assert not (tmp_path / "two" / "features").exists()


@pytest.mark.parametrize("moment", ["reading", "between the files"])
def test_a_kill_leaves_no_half_cache(tmp_path, moment):
    """SIGKILL while clips are read, and after the array but before its description."""
    corpus = tree(tmp_path / "data")
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_preparation import *
name, count = ("_read", 7) if {moment!r} == "reading" else ("write_json", 1)
whole, calls = getattr(caching, name), []
def dies(*arguments):
    calls.append(1)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
setattr(caching, name, dies)
prepared(tree(Path({str(tmp_path / "data")!r})), Path({str(tmp_path / "run")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not list((tmp_path / "run" / "features").glob("[!.]*.json"))
    for left in (tmp_path / "run" / "features").iterdir():
        os.utime(left, (0, 0))  # an hour later, say
    whole = prepared(corpus, tmp_path / "other")
    again = prepared(corpus, tmp_path / "run")
    for split in whole.x:
        assert torch.equal(whole.x[split][:], again.x[split][:])
    files = [p.suffix for p in (tmp_path / "run" / "features").iterdir()]
    assert sorted(files) == [".json", ".npy"], "what the kill left behind is cleared"


BUILD = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_preparation import *
caching.ROUND = 8
whole, calls = caching._read, []
def counted(*arguments):
    calls.append(1)
    if len(calls) == {most}:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
caching._read = counted
if Path({data!r}).exists():
    soundfile.write = lambda *_: None  # another process may be reading what is there
clips, digests, _ = distinct(tree(Path({data!r}), 60).clips)
cache_log_mels(clips, digests, features(), 16, {cache!r})
print(len(calls))
"""


def built(data: Path, cache: Path, most: int = -1) -> subprocess.CompletedProcess[str]:
    """Build a cache of 60 clips in rounds of eight, killed when so many clips have been read."""
    about = {"here": str(Path(__file__).parent), "data": str(data), "cache": str(cache)}
    code = BUILD.format(most=most, **about)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_killed_build_goes_on_after_its_last_round(tmp_path):
    data, cache = tmp_path / "data", tmp_path / "cache"
    assert built(data, tmp_path / "whole").stdout.split() == ["60"]
    for most in (30, 20):
        assert built(data, cache, most).returncode == -signal.SIGKILL
    (log,) = cache.glob(".*.jsonl")
    assert len(log.read_text().splitlines()) == 5, "three rounds, then two"
    (part,) = cache.glob(".*.part")
    size = part.stat().st_size
    with part.open("ab") as file:  # a round that was not finished
        file.write(b"half a row")
    with log.open("a") as file:
        file.write('{"given": [{"ro')
    assert built(data, cache).stdout.split() == ["20"], "40 clips are not read again"
    names = sorted(path.name for path in cache.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    for name in names:
        assert (cache / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert size < (cache / names[1]).stat().st_size


def test_a_part_cut_short_is_gone_on_from_where_it_is_whole(tmp_path):
    data, cache = tmp_path / "data", tmp_path / "cache"
    built(data, tmp_path / "whole")
    built(data, cache, 30)
    (part,) = cache.glob(".*.part")
    os.truncate(part, part.stat().st_size - 5000)  # as a machine that lost power leaves it
    assert built(data, cache).stdout.split() == ["44"], "one of three rounds is made anew"
    for path in cache.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_two_builds_of_one_cache_are_one(tmp_path):
    data, cache = tmp_path / "data", tmp_path / "cache"
    tree(data, 60)
    about = {"here": str(Path(__file__).parent), "data": str(data), "cache": str(cache)}
    slow = "    import time; time.sleep(0.05)\n    return whole"
    code = BUILD.format(most=-1, **about).replace("    return whole", slow)
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(process.communicate()[0].split() for process in both) == [["0"], ["60"]]
    assert sorted(p.suffix for p in cache.iterdir()) == [".json", ".npy"]


def test_log_mels_on_disk_are_those_in_memory(tmp_path, monkeypatch):
    corpus, mel = tree(tmp_path / "data", 20), features()
    clips, digests, _ = distinct(corpus.clips)
    path, readings = cache_log_mels(clips, digests, mel, 16, tmp_path / "cache")
    assert [r.rows for r in readings] == [1] * 20
    array = np.load(path)
    assert array.shape == (20, 16, 16)
    mel.fit(torch.from_numpy(array))
    monkeypatch.setattr(caching, "HELD_BYTES", 0)  # let go of the file after every read
    rows = np.array([3, 1, 19, 4])
    x = LogMels(path, rows, mel)
    expected = mel.standardise(torch.from_numpy(array[rows]))
    assert len(x) == 4
    assert torch.equal(x[:], expected)
    assert torch.equal(x[torch.tensor([2, 0, 2])], expected[[2, 0, 2]])
    assert torch.equal(x[1:3], expected[1:3])


def test_long_clips_give_several_windows_where_they_may(tmp_path):
    corpus = tree(tmp_path / "data", 12)
    soundfile.write(corpus.clips[0].source.path, noise(2.0, 50), RATE, subtype="FLOAT")
    corpus.windows, mel = 4, features()
    material = prepare(corpus, mel, replace(OPTIONS, run=tmp_path / "run"))
    rows = (material.owner["train"] == 0).nonzero().flatten()
    assert rows.tolist() == [0, 1, 2, 3]
    length = mel.length(16)
    wave = torch.from_numpy(noise(2.0, 50)[:, 0]).float()
    every, _ = training_windows(wave, length, 0.5, 10**6)
    plain = 0.5 / wave.abs().max() * wave[: len(wave) // length * length].view(-1, length)
    torch.testing.assert_close(every[: len(plain)], plain)
    count = len(every)
    model = SimpleNamespace(sample_rate=RATE, window=length, peak=0.5)
    for row, k in enumerate([0, count // 4, 2 * count // 4, 3 * count // 4]):
        sound = material.window("train", row, model)
        torch.testing.assert_close(sound, every[k])
        torch.testing.assert_close(material.x["train"][row : row + 1], mel(sound[None]))


def test_a_split_without_a_readable_clip_is_an_error(tmp_path):
    corpus = tree(tmp_path / "data", 12)
    for clip in corpus.split("test"):
        clip.source.path.write_text(f"{clip.name} is broken")
    with pytest.raises(ValueError, match=r"no readable clip in the test split \(2 left out\)"):
        prepared(corpus, tmp_path / "run")
    corpus = tree(tmp_path / "data", 12)
    for clip in corpus.split("train"):
        if clip.label == "b":
            clip.source.path.write_text(f"{clip.name} is broken")
    with pytest.raises(ValueError, match="no training clip of b"):
        prepared(corpus, tmp_path / "other")


def test_a_reference_of_many_rows_is_fitted_to_some_and_owns_all(tmp_path):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 1, 4, 4, generator=g)
    x[:150] += 4
    y = torch.arange(300) % 2
    few, component = GaussianReference.fit(x, y, components=2, rank=2, most=60)
    every, component_0 = GaussianReference.fit(x, y, components=2, rank=2)
    assert (component >= 0).all()
    assert torch.equal(few.classes[component], y)
    # the two clusters of each class are found from 60 rows as from 150
    same = [(component == k).long().argmax() for k in range(4)]
    assert len({int(component_0[i]) for i in same}) == 4
    agree = torch.stack(
        [component_0[component == k].bincount(minlength=4).max() for k in range(4)]
    )
    assert agree.sum() == 300
    torch.testing.assert_close(few.weight.sum(), torch.tensor(1.0))
    torch.testing.assert_close(few.mean.sort(0)[0], every.mean.sort(0)[0], atol=0.8, rtol=0)


def test_an_untrained_model_is_built_from_rows_on_disk(tmp_path, monkeypatch):
    from sance_audio import preparation

    corpus, mel = tree(tmp_path / "data", 40), features()
    options = replace(OPTIONS, run=tmp_path / "run")
    material = prepare(corpus, mel, options)
    model, components = build(material, corpus, mel, options)
    monkeypatch.setattr(preparation, "IN_MEMORY", 0)
    lazy = prepare(corpus, mel, options)
    assert isinstance(lazy.x["train"], LogMels)
    other, same = build(lazy, corpus, mel, options)
    assert torch.equal(components, same)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_unreadable_files_are_problems_of_their_own(tmp_path):
    source = FileSource(tmp_path / "gone.wav")
    clips = [Clip("gone.wav", "", "train", source), Clip("gone2.wav", "", "train", source)]
    kept, _, repeated = distinct(clips)
    assert len(kept) == 2, "two files that cannot be read are not the same sound"
    assert repeated == []


def test_silence_between_sounds_is_no_window(tmp_path):
    length = features().length(16)
    wave = torch.from_numpy(noise(2.0, 5)[:, 0]).float()
    wave[3 * length : 9 * length] = 0
    chosen, empty = training_windows(wave, length, 0.5, 64)
    count = len(range(0, 1 + -(-(len(wave) - length) // (length // 2)), 2))
    assert (len(chosen), empty) == (count - 6, 6)
    assert chosen.square().mean(1).min() > 1e-4
    alone, empty = training_windows(torch.zeros(3 * length), length, 0.5, 64)
    assert (len(alone), empty) == (1, 3), "a silent clip is no clip less"
