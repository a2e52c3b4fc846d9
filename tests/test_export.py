"""A detector as an ONNX graph: the same scores, the same labels, without PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, real_data, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_detection import hums

from sance_audio import EnergyDetector, audio, cli
from sance_audio.detection.domains import DomainDetector
from sance_audio.export import deviation_of, export_onnx
from sance_audio.features import LogMel

ort = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
RATE = 8000
KINDS = ("noise", "tone", "clicks", "zeros")


@pytest.fixture(scope="module")
def detector() -> EnergyDetector:
    d = EnergyDetector(preset="smoke", alpha=0.1, sample_rate=RATE, window=1.0)
    return d.fit(hums(40, seconds=1.0))


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory) -> Path:
    return export_onnx(detector, tmp_path_factory.mktemp("onnx") / "model.onnx").model


def run(path: Path, clip: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [out.name for out in session.get_outputs()]
    return dict(zip(names, session.run(None, {"waveform": clip}), strict=True))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 8000), st.floats(-6, 0), st.sampled_from(["noise", "tone", "clicks", "zeros"])
)
def test_any_window_has_the_detector_s_statistics(detector, exported, n, level, kind):
    rng, t = np.random.default_rng(n), np.arange(n) / RATE
    clip = {
        "noise": rng.normal(size=n),
        "tone": np.sin(2 * np.pi * 440 * t) + 0.01 * rng.normal(size=n),
        "clicks": (np.arange(n) % 1000 == 0).astype(float),
        "zeros": np.zeros(n),
    }[kind].astype(np.float32) * np.float32(10**level)
    found = run(exported, clip)
    (row,) = detector._describer.described([(0, torch.from_numpy(clip))])
    about = json.loads(exported.with_suffix(".json").read_text())
    np.testing.assert_allclose(found["log_mel"], row.log_mel.numpy(), atol=1e-4)
    assert sorted(about["statistics"]) == ["bands", "loud", "rhythm", "timbre"]
    for name, (start, end) in about["statistics"].items():
        part = found["statistics"][start:end]
        # a frame whose roll-off or quantile lies on a border may fall to either side
        np.testing.assert_allclose(part, row.vectors[name], rtol=1e-4, atol=2e-3, err_msg=name)
    own = detector.anomaly_score([clip])[0]
    assert abs(found["anomaly_score"] - own) <= 1e-4 * max(1, abs(own))


def kinds() -> dict[str, EnergyDetector]:
    """Every kind of detector."""
    model = small_model()
    model.features = LogMel(8000, n_fft=256, hop_length=64, n_mels=16)
    clips = [torch.from_numpy(x) for x in hums(30)]
    how = {"preset": "smoke", "alpha": 0.2}
    plain = hums(30)
    domains = ["source"] * 22 + ["target"] * 8
    return {
        "reference alone": EnergyDetector(sample_rate=RATE, learnt=False, **how).fit(plain),
        "uncalibrated": EnergyDetector(sample_rate=RATE, calibration=0, **how).fit(plain),
        "largest": EnergyDetector(sample_rate=RATE, aggregate="max", **how).fit(plain),
        "model": EnergyDetector(model, **how).fit(clips),
        "model's reference": EnergyDetector(model, learnt=False, **how).fit(clips),
        "energy": EnergyDetector(model, score="energy", **how).fit(clips),
        "domains": DomainDetector(sample_rate=RATE, calibration=0, **how).fit(
            plain, domains=domains
        ),
    }


def test_every_kind_of_detector(tmp_path):
    windows = [torch.from_numpy(x) for s in (0.05, 0.4, 2.0) for x in hums(3, 7, s)]
    for name, d in kinds().items():
        done = export_onnx(d, tmp_path / "model.onnx")
        assert deviation_of(done.model, d, windows) <= 1e-4, name
        about = json.loads(done.about.read_text())
        found = run(done.model, windows[0].numpy())
        assert sorted(found) == sorted(about["outputs"]), name
        assert ("energy" in found) == (d.model_ is not None), name
        if d.model_ is not None:
            own = d.assess([windows[0]])["energy"][0]
            assert found["energy"] == pytest.approx(own, rel=1e-5, abs=1e-3), name
        assert about["threshold"] == -d.offset_
        assert (about["calibration"] is None) == (d.calibration_ is None)


def test_labels_on_esc10_are_identical(tmp_path):
    """A detector of each class fitted to four folds, judging the fifth: 800 scores and labels."""
    paths = sorted((real_data("esc10") / "audio").iterdir())
    waves = {p: audio.read(p, 16000)[0] for p in paths}
    classes = sorted({p.stem.split("-")[-1] for p in paths})
    judged = [p for p in paths if p.name[0] == "5"]
    largest = 0.0
    for label in classes:
        own = [p for p in paths if p.stem.endswith(f"-{label}") and p.name[0] != "5"]
        d = EnergyDetector(preset="smoke", calibration=0, sample_rate=16000, window=10.0)
        d.fit([waves[p].numpy() for p in own])
        done = export_onnx(d, tmp_path / f"{label}.onnx")
        threshold = json.loads(done.about.read_text())["threshold"]
        session = ort.InferenceSession(str(done.model), providers=["CPUExecutionProvider"])
        theirs = [
            float(session.run(["anomaly_score"], {"waveform": waves[p].numpy()})[0])
            for p in judged
        ]
        ours = d.anomaly_score([waves[p].numpy() for p in judged])
        largest = max(largest, float((abs(theirs - ours) / np.maximum(1, abs(ours))).max()))
        labels = d.predict([waves[p].numpy() for p in judged])
        assert (np.where(np.array(theirs) > threshold, -1, 1) == labels).all()
    assert len(classes) == 10
    assert len(judged) == 80
    assert largest <= 1e-4


def snippet() -> str:
    """The code of docs/onnx.md: NumPy and onnxruntime alone."""
    text = (ROOT / "docs" / "onnx.md").read_text()
    (code,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    return code


def write_case(detector: EnergyDetector, folder: Path) -> np.ndarray:
    wave = np.concatenate(hums(6, 3, 0.55))
    np.save(folder / "clip.npy", wave)
    export_onnx(detector, folder / "model.onnx")
    return wave


USE = """
import json, sys
score, p_value, odd = judge("model.onnx", numpy.load("clip.npy"))
assert "torch" not in sys.modules and "sance_audio" not in sys.modules
print(json.dumps([score, p_value, odd]))
"""


def agrees(detector: EnergyDetector, wave: np.ndarray, printed: str) -> None:
    marks = detector.assess([wave])
    score, p, odd = json.loads(printed)
    assert score == pytest.approx(marks["anomaly_score"][0], rel=1e-4)
    assert p == marks["p_value"][0]
    assert odd == (detector.predict([wave])[0] == -1)


def test_the_guide_s_code_judges_as_the_detector(detector, tmp_path):
    wave = write_case(detector, tmp_path)
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        + snippet()
        + USE.replace('"torch" not in sys.modules', 'sys.modules["torch"] is None')
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    agrees(detector, wave, out.stdout)


def test_a_bare_environment_needs_onnxruntime_and_numpy_only(detector, tmp_path):
    wave = write_case(detector, tmp_path)
    python = tmp_path / "bare" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "bare")], check=True)
    got = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "onnxruntime", "numpy"],
        capture_output=True,
        text=True,
        check=False,
    )
    if got.returncode:
        pytest.skip(f"no package index to install onnxruntime from: {got.stderr[-200:]}")
    listed = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, check=True
    )
    assert "torch" not in listed.stdout
    out = subprocess.run(
        [python, "-c", snippet() + USE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    agrees(detector, wave, out.stdout)


def test_the_command_says_what_it_wrote(detector, tmp_path, capsys):
    detector.save_pretrained(tmp_path / "run")
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out" / "model.onnx")])
    said = capsys.readouterr().out
    assert "log-mels, statistics and scores are in the graph" in said
    assert "checked in onnxruntime" in said
    assert (tmp_path / "out" / "model.json").exists()
    soundfile.write(tmp_path / "a.wav", hums(1)[0], RATE)


def test_a_stranger_s_json_is_left_alone(detector, exported, tmp_path):
    """A run folder has results.json, config.json and others; an earlier export is replaced."""
    path = tmp_path / "results.onnx"
    for content in ('{"auc": 0.9}', "[1]", "no JSON"):
        path.with_suffix(".json").write_text(content)
        with pytest.raises(ValueError, match=r"results\.json would be written too"):
            export_onnx(detector, path)
        assert path.with_suffix(".json").read_text() == content
        assert not path.exists()
    before = exported.with_suffix(".json").read_text()
    export_onnx(detector, exported)
    assert exported.with_suffix(".json").read_text() == before


def test_mistakes_are_named(detector, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"a name ending in \.onnx"):
        export_onnx(detector, tmp_path / "model.pt")
    slow = EnergyDetector(preset="smoke", alpha=0.2, sample_rate=4000).fit(hums(20))
    with pytest.raises(ValueError, match="4000 Hz resamples its windows to 8000 Hz"):
        export_onnx(slow, tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'sance-audio\[onnx\]'"):
        export_onnx(detector, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
