"""The listening page: `index.html` in the run folder, made from what the run wrote."""

from __future__ import annotations

__all__ = ["write_page"]

from pathlib import Path
from typing import Any

from sance_audio import audio, pictures
from sance_audio.files import atomic, read_json, read_jsonl
from sance_audio.health import summary
from sance_audio.model import AudioEBM
from sance_audio.verdicts import cell, columns

TEMPLATE = Path(__file__).with_name("page.html.j2")


def write_page(run: str | Path) -> Path:
    """(Re)build `index.html` of a finished run from its `results.json`, `metrics.jsonl`, model and
    WAVs.

    Raises:
        ValueError: a folder that is no finished run.
    """
    import jinja2

    run = Path(run)
    model = AudioEBM.from_pretrained(run)
    results = read_json(run / "results.json")
    wanted = {"recipe", "examples", "anomalies", "evaluation", "findings"}
    if not isinstance(results, dict) or not wanted <= results.keys():
        raise ValueError(f"{run / 'results.json'}: not the results of a recipe; run it again")
    rows = read_jsonl(run / "metrics.jsonl")
    curves = {
        "gap": "network gap (nats)",
        "loss": "loss",
        "log_z": "log Z ledger (nats)",
        "accuracy": "data told from noise",
        "pool_ess": "ESS / N of the pool",
        "displacement": "chains' steps / the reference's",
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(TEMPLATE.name).render(
        name=results["recipe"],
        results=results,
        titles=columns(results["evaluation"]),
        cell=cell,
        closest=_pairs(model, run, results["evaluation"]["memorisation"]["closest"]),
        clips=_cards(model, run, results["examples"]),
        oddest=_cards(model, run, results["anomalies"]["oddest"]),
        ordinary=_cards(model, run, results["anomalies"]["most_ordinary"]),
        curves=pictures.data_uri(pictures.curves(rows, curves)) if rows else "",
        words=summary(rows),
        progress=_progress(run),
    )
    path = run / "index.html"
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _cards(model: AudioEBM, run: Path, clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Clips with a spectrogram each; a file that is gone is left out."""
    cards = []
    for clip in clips:
        try:
            wave, _ = audio.read(run / clip["file"], model.sample_rate)
        except audio.AudioError:
            continue
        x = model.log_mels(model.windows(wave)[:1])
        cards.append(clip | {"picture": pictures.data_uri(pictures.spectrogram(x[0, 0]))})
    return cards


def _pairs(model: AudioEBM, run: Path, pairs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Generated clips, each with its nearest training clip."""
    return [
        _cards(
            model,
            run,
            [
                {"file": pair["generated"], "label": f"generated, clip {pair['index']}"},
                {"file": pair["training"], "label": f"nearest training clip, {pair['name']}"},
            ],
        )
        for pair in pairs
    ]


def _progress(run: Path) -> list[dict[str, str]]:
    """Sheets of the fixed chains written during training."""
    sheets = sorted((run / "samples").glob("step_*.png"))
    return [
        {"step": str(int(s.stem.split("_")[1])), "picture": pictures.data_uri(s.read_bytes())}
        for s in sheets
    ]
