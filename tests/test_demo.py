"""The demo: what its controls do, and the page as a browser would drive it."""

import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import small_model
from test_detection import hums

from sance_audio import EnergyDetector, cli
from sance_audio.demo import ANY, Player, app

RATE = 4000


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A model and its detector."""
    folder = tmp_path_factory.mktemp("demo")
    model = small_model()
    detector = EnergyDetector(model, preset="smoke", alpha=0.2)
    detector.fit(list(model.generate(30)))
    model.save_pretrained(folder)
    detector.save_pretrained(folder)
    return folder


def test_clips_are_those_of_the_seed(run):
    player = Player(run)
    assert player.classes == [ANY, "a", "b", "c"]
    one, again = (player.generate(3, 5, 1.0, "b") for _ in range(2))
    assert one.words.startswith("b, seed 3: energy ")
    assert one.sound[0] == RATE
    assert (one.sound[1] == again.sound[1]).all()
    assert one.sound[1].dtype == np.int16
    assert one.picture.shape == (80, 80, 3)
    others = [player.generate(3, 5, 0.5, "b"), player.generate(3, 0, 1.0, "b")]
    others += [player.generate(4, 5, 1.0, "b"), player.generate(3, 5, 1.0, "c")]
    assert all((one.sound[1] != other.sound[1]).any() for other in others)
    assert player.generate(4, 5, 1.0, ANY).words.startswith("b, ")  # 4 % 3 = 1


def test_recordings_are_judged(run):
    player, rng = Player(run), np.random.default_rng(0)
    stereo = (3000 * rng.normal(size=(9000, 2))).astype(np.int16)
    found = player.judge((8000, stereo))
    assert found.picture.shape == (160, 80, 3)  # log-mel, and energies below
    mono = stereo.astype(np.float32).mean(1) / 32767
    p = player.detector.p_value([(mono, 8000)])[0]
    assert f"p-value {p:.3f}" in found.words
    energy = float(player.model.energy(player_wave(mono), 8000)[0])
    assert f"energy {energy:.1f} nats" in found.words


def player_wave(samples: np.ndarray):
    import torch

    return torch.from_numpy(samples)


def test_a_detector_alone_judges(tmp_path):
    d = EnergyDetector(preset="smoke", alpha=0.2, sample_rate=8000).fit(hums(30))
    d.save_pretrained(tmp_path)
    player = Player(tmp_path)
    assert "p-value" in player.judge((8000, hums(1, 5)[0])).words
    with pytest.raises(ValueError, match="a detector and no model"):
        player.generate(0, 5, 1.0, ANY)
    assert app(tmp_path) is not None


def test_a_model_alone_generates(tmp_path):
    small_model().save_pretrained(tmp_path)
    player = Player(tmp_path)
    assert player.detector is None
    words = player.judge((4000, hums(1, 5)[0])).words
    assert "nats" in words
    assert "p-value" not in words


def test_the_page_is_driven_through_its_server(run, tmp_path):
    """Started, opened, and its two buttons pressed, as a browser's script would."""
    client = pytest.importorskip("gradio_client", reason="needs the extra [demo]")
    page = app(run)
    page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        html = urllib.request.urlopen(page.local_url).read().decode()
        assert "sance_audio" in html
        browser = client.Client(page.local_url, verbose=False)
        clip, picture, words = browser.predict(3, 5, 1.0, "b", api_name="/generate")
        assert "seed 3" in words
        samples, rate = soundfile.read(clip)
        assert rate == RATE
        assert np.abs(samples).max() > 0
        assert Path(picture if isinstance(picture, str) else picture["path"]).stat().st_size > 100
        path = tmp_path / "a.wav"
        soundfile.write(path, hums(1, 5)[0], 8000)
        _, told = browser.predict(client.handle_file(str(path)), api_name="/judge")
        assert "p-value" in told
        soundfile.write(path, np.zeros(800), 8000)
        with pytest.raises(Exception, match="silent"):
            browser.predict(client.handle_file(str(path)), api_name="/judge")
    finally:
        page.close()


def test_mistakes_are_named(run, tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="record or upload a sound first"):
        Player(run).judge(None)
    for arguments, words in (
        ([str(tmp_path / "none")], "none"),
        ([str(run), "--port", "99999"], "between 1 and 65535"),
    ):
        with pytest.raises(SystemExit) as error:
            cli.main(["demo", *arguments])
        assert error.value.code == 2
        assert words in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"pip install 'sance-audio\[demo\]'"):
        app(run)
