"""Corpora for generation as their archives unpack: a few short clips in exactly the layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from sance_audio.datasets.speech_commands import DIGITS

RATE = 16000
PEOPLE = {"train": ("0a7c2a8d", "1b4c9b89"), "valid": ("c1d39ce8",), "test": ("3bfd30e6",)}
FAMILIES = {"guitar": "acoustic", "vocal": "acoustic", "organ": "electronic"}


def tone(path: Path, pitch: float, seed: int, seconds: float = 0.3, rate: int = RATE) -> None:
    """A tone in noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(t))
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * pitch * t) + 0.05 * noise, rate)


def speech_commands_tree(root: Path, words: tuple[str, ...] = (*DIGITS, "up"), takes=4) -> Path:
    """Four people say each word: two to train on, one in each list; and a recording of noise."""
    lists: dict[str, list[str]] = {"valid": [], "test": []}
    for w, word in enumerate(words):
        for p, (split, person) in enumerate((s, x) for s, some in PEOPLE.items() for x in some):
            for take in range(takes):
                name = f"{word}/{person}_nohash_{take}.wav"
                tone(root / name, 200 + 100 * w + 10 * p, 1000 * w + 100 * p + take)
                if split in lists:
                    lists[split].append(name)
    tone(root / "_background_noise_" / "pink_noise.wav", 100, 9999, 2)
    (root / "_background_noise_" / "README.md").touch()
    for name in ("README.md", "LICENSE", ".DS_Store"):
        (root / name).touch()
    (root / "validation_list.txt").write_text("\n".join(lists["valid"]) + "\n")
    (root / "testing_list.txt").write_text("\n".join(lists["test"]) + "\n")
    return root


def note_of(family: str, source: str, instrument: int, pitch: int, velocity: int) -> dict:
    """An entry of `examples.json`."""
    player = f"{family}_{source}_{instrument:03d}"
    return {
        **{"note": 100 * instrument + pitch, "instrument": instrument, "instrument_str": player},
        **{"note_str": f"{player}-{pitch:03d}-{velocity:03d}", "sample_rate": RATE},
        **{"pitch": pitch, "velocity": velocity, "instrument_family_str": family},
        **{"instrument_family": 3, "instrument_source": 0, "instrument_source_str": source},
        **{"qualities": [0, 1], "qualities_str": ["dark"]},
    }


def nsynth_tree(root: Path) -> Path:
    """Three families, of two sources; instruments of their own in each split."""
    for i, (split, pitches) in enumerate({"train": 12, "valid": 4, "test": 4}.items()):
        folder, notes = root / f"nsynth-{split}", {}
        for f, (family, source) in enumerate(FAMILIES.items()):
            for k in range(pitches):
                note = note_of(family, source, i, 60 + k % 4, 25 + k)
                notes[note["note_str"]] = note
                pitch = 440 * 2 ** ((note["pitch"] - 69) / 12)
                path = folder / "audio" / f"{note['note_str']}.wav"
                tone(path, pitch * (f + 1), 100 * i + 10 * f + k, 0.4)
        (folder / "examples.json").write_text(json.dumps(notes, indent=1))
    return root
