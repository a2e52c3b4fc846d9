"""Records of Zenodo: which files they hold, as Zenodo itself lists them, and their archives.

Names, sizes and checksums are asked for when they are needed, so that they are the published ones.
Not verified against Zenodo: it could not be reached where this was written. The form of its answer
is `{"files": [{"key": name, "size": bytes, "checksum": "md5:..."}]}`.
"""

from __future__ import annotations

__all__ = ["Published", "published", "latest", "fetch_all", "SITE"]

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from sance_audio.datasets.archives import fetch
from sance_audio.datasets.download import PATIENCE

SITE = "https://zenodo.org"


class Published(NamedTuple):
    """A file of a record."""

    record: int
    name: str
    size: int
    """In bytes."""
    checksum: str

    @property
    def url(self) -> str:
        return f"{SITE}/records/{self.record}/files/{quote(self.name)}?download=1"


def published(record: int) -> list[Published]:
    """The files of a record.

    Raises:
        ValueError: no answer, or one of another form.
    """
    import requests

    url = f"{SITE}/api/records/{record}"
    remedy = f"try again later, or fetch the files by hand from {SITE}/records/{record}"
    try:
        answer = requests.get(url, timeout=PATIENCE)
        answer.raise_for_status()
        files = json.loads(answer.content)["files"]
        found = [
            Published(record, str(f["key"]), int(f["size"]), str(f["checksum"])) for f in files
        ]
    except requests.exceptions.RequestException as error:
        raise ValueError(f"could not ask {url} for its files ({error}); {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{url}: expected a list of files with names, sizes and checksums, found another "
            f"answer ({error!r}); {remedy}"
        ) from error
    unsafe = [file.name for file in found if not re.fullmatch(r"[\w.-]+", file.name)]
    if unsafe or not found:
        raise ValueError(f"{url}: expected plain names of files, found {unsafe}; {remedy}")
    return found


def latest(files: Sequence[Published], pattern: str) -> Published | None:
    """The file whose name matches a pattern but for its ending; of revisions (`_r2`) the last.

    >>> files = [Published(1, name, 0, "") for name in ("fan.zip", "fan_r2.zip", "fan_r10.zip")]
    >>> latest(files, "fan").name
    'fan_r10.zip'
    """
    found = [
        (int(match["revision"] or 1), file)
        for file in files
        if (match := re.fullmatch(rf"(?:{pattern})(?:_r(?P<revision>\d+))?\.zip", file.name))
    ]
    return max(found, default=(0, None), key=lambda pair: pair[0])[1]


def fetch_all(record: int, patterns: Mapping[str, str], cache: Path) -> None:
    """Download and unpack archives of a record, those whose folders are not there.

    Arguments:
        record: Its number.
        patterns: Of each folder below the cache, what the archive's name matches but for its
            ending; every one is looked for before any is downloaded.
        cache: Where folders go.

    Raises:
        ValueError: an archive that the record does not have, or as `fetch`.
    """
    lacking = {name: p for name, p in patterns.items() if not (cache / name).is_dir()}
    if not lacking:
        return
    files = published(record)
    found = {name: latest(files, pattern) for name, pattern in lacking.items()}
    missing = [lacking[name] for name, file in found.items() if file is None]
    if missing:
        raise ValueError(
            f"{SITE}/records/{record}: expected archives named {', '.join(missing)}, found "
            f"{', '.join(file.name for file in files)}; fetch by hand what you need"
        )
    for name, file in found.items():
        assert file is not None
        fetch(file.url, cache, name, file.checksum, size=file.size, keep=False)
