"""How large a page of a hundred clips is, and how fast it opens.

    python -m benchmarks.page [RUN]

Without a run, the drums recipe's smoke preset is trained and gives a hundred clips, each beside
its nearest training clip. Needs Chromium.
"""

from __future__ import annotations

__all__ = ["main", "measure"]

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.browser import Browser, Page, find_chromium
from sance_audio.recipe import load_recipe
from sance_audio.report import bundle, files_of, write_page

CLIPS, ROUNDS = 100, 5
READY = """new Promise(done => { const wait = () =>
  [...document.querySelectorAll("audio")].every(a => a.readyState > 0 || a.error)
  ? done() : setTimeout(wait, 5); wait(); })"""
"""Is fulfilled once every player knows how long its sound is."""


def measure(page: Path, rounds: int = ROUNDS) -> tuple[list[float], list[float]]:
    """Seconds until the page is there (its load event), and until every player has a duration; in
    a new browser each time, nothing cached.

    Raises:
        ValueError: there is no Chromium.
    """
    path = find_chromium()
    if path is None:
        raise ValueError("no chromium found: apt-get install chromium, or set CHROMIUM to one")
    loaded, ready = [], []
    for _ in range(rounds):
        with Browser(path) as browser:
            began = time.perf_counter()
            shown = Page(browser, page)
            loaded.append(shown.seconds)
            shown.run(READY)
            ready.append(time.perf_counter() - began)
    return loaded, ready


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory() as folder:
        run = Path(arguments[0]) if arguments else Path(folder) / "drums"
        if not arguments:
            recipe = load_recipe("drums")
            smoke = recipe.PRESETS["smoke"]
            recipe.main(replace(smoke, run=run, clips=CLIPS, evaluate=CLIPS))
        began = time.perf_counter()
        page = write_page(run)
        built = time.perf_counter() - began
        files = [page, *(run / name for name in files_of(page))]
        size = sum(file.stat().st_size for file in files)
        text = page.stat().st_size
        packed = bundle(page).stat().st_size
        loaded, ready = measure(page)
    print(f"\n{len(files) - 1} players; written in {built:.1f} s")
    print(
        f"size {size / 2**20:.2f} MiB, of which index.html {text / 2**20:.2f}; as a zip "
        f"{packed / 2**20:.2f} MiB"
    )
    for name, seconds in (("opens (load event)", loaded), ("every player ready", ready)):
        print(f"{name:20} median {statistics.median(seconds):.2f} s, largest {max(seconds):.2f} s")


if __name__ == "__main__":
    main()
