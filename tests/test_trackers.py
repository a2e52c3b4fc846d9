"""TensorBoard: what it is given, once, over an interruption; and what is said without it."""

import sys
from dataclasses import replace

import pytest
import torch
from conftest import small_model

from sance_audio import TrainConfig, train
from sance_audio.options import Options
from sance_audio.trackers import Samples, TensorBoard

CONFIG = TrainConfig(steps=6, langevin_steps=1, groups=1, checkpoint_every=2, sample_every=3)


class Killed(Exception):
    pass


def run(folder, stop=None):
    options = Options(run=folder, train=CONFIG)
    model = small_model(trained=False)
    x = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with TensorBoard(folder) as board:

        def kill(step, row, model):
            if step == stop:
                raise Killed

        callbacks = (board, Samples(model, options, board, count=2), kill)
        train(model, x, torch.arange(12) % 3, CONFIG, folder, callbacks=callbacks, progress=False)


def test_scalars_pictures_and_clips_stand_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        run(tmp_path, stop=5)
    for path in (tmp_path / "samples").iterdir():
        path.unlink()
    (tmp_path / "state" / "latest.pt").unlink()  # a kill right before the second checkpoint
    run(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"audio": 0}).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/gap", "train/rate"} <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert tags["images"] == ["samples"]
    assert [e.step for e in events.Images("samples")] == [3, 6]
    assert sorted(tags["audio"]) == ["samples/0_a", "samples/1_b"]
    sound = events.Audio("samples/0_a")
    assert [e.step for e in sound] == [3, 6]
    assert sound[0].sample_rate == 4000
    assert sound[0].length_frames == small_model().window
    wavs = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert wavs == [
        f"step_{step:06d}{end}" for step in (3, 6) for end in (".png", "_0_a.wav", "_1_b.wav")
    ]


def test_without_the_extra_one_line_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(ValueError, match=r"sance-audio\[tensorboard\]"):
        TensorBoard(tmp_path)


def test_no_samples_where_none_are_wanted(tmp_path):
    config = replace(CONFIG, sample_every=2)
    options = Options(run=tmp_path, train=config)
    model = small_model()
    samples = Samples(model, options, count=1)
    samples(1, {}, model)
    assert not (tmp_path / "samples").exists()
    samples(2, {}, model)
    assert len(list((tmp_path / "samples").iterdir())) == 2
