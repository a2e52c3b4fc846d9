"""A page and all it plays, in one file to mail."""

from __future__ import annotations

__all__ = ["bundle", "files_of"]

import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from sance_audio.files import atomic

WHEN = (1980, 1, 1, 0, 0, 0)
"""One time for all entries, so that the same page gives the same bytes."""


class _Sources(HTMLParser):
    """Addresses that a page loads, but those inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "src" and value and not value.startswith("data:"):
                self.found[unquote(value)] = None


def files_of(page: Path) -> list[str]:
    """Files that a page plays, relative to its folder, each once, in order."""
    sources = _Sources()
    sources.feed(page.read_text(encoding="utf-8"))
    return list(sources.found)


def bundle(page: Path) -> Path:
    """Write `page.zip` beside a page: the page and what it plays, in a folder of the run's name.

    Raises:
        ValueError: a file that the page plays is gone.
    """
    run = page.resolve().parent
    names = [page.name, *files_of(page)]
    for name in names:
        if not (run / name).is_file():
            raise ValueError(f"{run / name}: gone since the page was written; run it again")
    out = run / "page.zip"
    with atomic(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(f"{run.name}/{name}", WHEN)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, (run / name).read_bytes())
    return out
