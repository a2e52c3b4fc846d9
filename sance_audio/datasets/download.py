"""Downloads that go on where they were cut off, and are what was published or not there at all.

What has arrived lies beside the file as `{name}.part`, and in `{name}.part.json` what the server
called it (ETag, or when it was changed). The next try asks for the rest, on the condition that it
still is that; a server that gives parts to nobody, or another file, sends the whole anew.
"""

from __future__ import annotations

__all__ = ["Transfer", "download", "size_in_words"]

import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sance_audio.files import read_json, sync, told, write_json

if TYPE_CHECKING:
    import requests

TRIES = 4
"""Of a transfer that breaks off; counted anew when it had got further."""
PAUSE = 0.5
"""Seconds before the second try; doubled before each further one."""
PATIENCE = 30.0
"""Seconds without a byte after which a transfer is broken off."""
BLOCK = 2**16
"""Bytes written at once; fewer are lost where a transfer breaks off."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers that another try may change."""
SENDABLE = re.compile(r"([!-~\xa1-\xff][ -~\xa1-\xff]*)?")
"""A validator that can be sent back; what lies beside a file may be damaged."""
DIGESTS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
"""Hexadecimal digits of each checksum."""


class _Broken(Exception):
    """A transfer that may go on at another try."""


class _Stale(Exception):
    """What had arrived is of another file."""


@dataclass
class Transfer:
    """A file that is being fetched."""

    url: str
    file: Path
    published: int | None = None
    """Bytes that it should have, where known."""
    checked: bool = False
    """Whether a checksum will tell if parts of two files met."""
    size: int | None = field(default=None, init=False)
    """Bytes of the whole, as the server says."""
    validator: str = field(default="", init=False)
    """The server's name for this very content; "" where it has none."""
    resumed: bool = field(default=False, init=False)
    """Whether it holds bytes of an earlier try."""

    @property
    def part(self) -> Path:
        return self.file.with_name(f"{self.file.name}.part")

    @property
    def about(self) -> Path:
        return self.file.with_name(f"{self.file.name}.part.json")

    def begun(self) -> int:
        """Bytes that are there and can be gone on from."""
        self.size, self.validator = self.published, ""
        try:
            known = read_json(self.about)
            sent = SENDABLE.fullmatch(known["validator"]) is not None
            if sent and known["url"] == self.url and (known["validator"] or self.checked):
                n = self.part.stat().st_size
                self.size, self.validator = known["size"], known["validator"]
                return n if self.size is None or n <= self.size else 0
        except (ValueError, KeyError, TypeError, OSError):
            pass
        return 0

    def begin(self) -> None:
        """Nothing has arrived; what will is what the server now names."""
        self.forget()
        about = {"url": self.url, "validator": self.validator, "size": self.size}
        write_json(self.about, about)

    def forget(self) -> None:
        """Delete what has arrived."""
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)


def download(url: str, file: Path, checksum: str | None = None, size: int | None = None) -> Path:
    """Fetch a file, whole and as published; nothing is done where it is there.

    Arguments:
        url: http or https.
        file: Where to; folders are made.
        checksum: `md5:...`, `sha256:...` or the digits of a sha256 alone; None where none is
            published.
        size: In bytes, where published.

    Raises:
        ValueError: no such address, an answer that is not the file, or no end of it after several
            tries (what has arrived is kept), a checksum that differs (nothing is kept), or too
            little room on the disk.
        OSError: the system refuses the write.
    """
    kind, digits = _checksum(checksum)
    if file.is_file():
        return file
    transfer = Transfer(url, file, size, checked=bool(kind))
    with told(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            _all_of_it(transfer)
            found = digest(transfer.part, kind) if kind else ""
            if found == digits:
                sync(transfer.part)
                os.replace(transfer.part, file)
                transfer.forget()
                return file
            transfer.forget()
            if not transfer.resumed:  # else parts of two files may have met: once more
                break
    raise ValueError(
        f"could not download {url}: expected the {kind} {digits}, found {found}; it was damaged "
        f"on the way or changed at its source, and was deleted. Try again, or fetch it by hand"
    )


def _checksum(text: str | None) -> tuple[str, str]:
    """The kind and the digits of a checksum; ("", "") where there is none."""
    if text is None:
        return "", ""
    kind, _, digits = text.lower().rpartition(":")
    kind = kind or "sha256"
    if not re.fullmatch(f"[0-9a-f]{{{DIGESTS.get(kind, 0)}}}", digits) or not digits:
        raise ValueError(
            f"checksum={text!r}: expected one of {', '.join(DIGESTS)}, a colon, and its digits"
        )
    return kind, digits


def digest(path: Path, kind: str) -> str:
    """The hexadecimal digits of a file's checksum."""
    found = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def _all_of_it(transfer: Transfer) -> None:
    """Try until all bytes are there."""
    tries, held = 0, transfer.begun()
    while True:
        try:
            _go_on(transfer)
            return
        except _Stale:
            if tries == TRIES - 1:
                raise _gave_up(transfer, "it changes at every try") from None
            transfer.forget()
        except _Broken as broken:
            now = transfer.begun()
            tries = 0 if now > held else tries
            held = max(held, now)
            if tries == TRIES - 1:
                raise _gave_up(transfer, str(broken)) from broken
            time.sleep(PAUSE * 2**tries)
        tries += 1


def _gave_up(transfer: Transfer, reason: str) -> ValueError:
    kept = transfer.part.stat().st_size if transfer.part.exists() else 0
    transfer.begun()
    whole = "" if transfer.size is None else f" of {size_in_words(transfer.size)}"
    return ValueError(
        f"could not download {transfer.url} ({reason}); {size_in_words(kept)}{whole} are there. "
        f"Try again to go on, or fetch it by hand"
    )


def _go_on(transfer: Transfer) -> None:
    """One try: ask for what is lacking, and append it."""
    import requests

    start = transfer.begun()
    transfer.resumed = start > 0
    if 0 < start == transfer.size:
        return
    headers = {"Accept-Encoding": "identity"}  # sizes and places are of the file itself
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and transfer.validator:
        headers["If-Range"] = transfer.validator
    try:
        with requests.get(transfer.url, headers=headers, stream=True, timeout=PATIENCE) as answer:
            _append(transfer, answer, _agreed(transfer, answer, start))
    except requests.exceptions.RequestException as error:
        if isinstance(error, ValueError):
            raise ValueError(f"could not download {transfer.url} ({error})") from error
        raise _Broken(str(error)) from error


def _agreed(transfer: Transfer, answer: requests.Response, start: int) -> int:
    """Where the bytes that an answer brings begin."""
    if answer.status_code in PASSING:
        raise _Broken(f"the server answered {answer.status_code} {answer.reason}")
    if answer.status_code == 416 and start:
        raise _Stale
    if answer.status_code == 206 and start:
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if place is None or int(place[1]) != start or place[2] not in ("*", str(transfer.size)):
            raise _Stale
        return start
    if answer.status_code != 200:
        raise ValueError(
            f"could not download {transfer.url}: the server answered {answer.status_code} "
            f"{answer.reason}; fetch it by hand"
        )
    length, tag = answer.headers.get("Content-Length", ""), answer.headers.get("ETag", "")
    transfer.size = int(length) if length.isdecimal() else transfer.published
    if transfer.published not in (None, transfer.size):
        raise ValueError(
            f"could not download {transfer.url}: expected {transfer.published} bytes, the server "
            f"has {transfer.size}; it changed at its source: fetch it by hand"
        )
    exact = not tag.startswith("W/")  # a weak tag may stand for other bytes
    transfer.validator = (exact and tag) or answer.headers.get("Last-Modified", "")
    return 0


def _append(transfer: Transfer, answer: requests.Response, start: int) -> None:
    """Write what an answer brings, from a place on; all of it must have come."""
    _refuse_without_room(transfer, start)
    transfer.resumed = start > 0
    if not start:
        transfer.begin()
    with transfer.part.open("ab") as file, _progress(transfer, start) as bar:
        for block in answer.iter_content(BLOCK):
            file.write(block)
            bar.update(len(block))
        count = file.tell()
    if transfer.size is not None and count < transfer.size:
        raise _Broken(f"it ended after {count} of {transfer.size} bytes")
    if transfer.size is not None and count > transfer.size:
        raise _Stale


def _refuse_without_room(transfer: Transfer, start: int) -> None:
    """Raise ValueError where the rest of a file finds no room."""
    free = shutil.disk_usage(transfer.file.parent).free
    lacking = (transfer.size or 0) - start
    if lacking > free:
        raise ValueError(
            f"{transfer.file}: expected room for {size_in_words(lacking)} more of "
            f"{transfer.url}, found {size_in_words(free)} free on this disk; make room, or keep "
            f"downloads on another disk"
        )


def _progress(transfer: Transfer, start: int) -> Any:
    from tqdm import tqdm

    return tqdm(
        desc=transfer.file.name,
        initial=start,
        total=transfer.size,
        unit="B",
        unit_scale=True,
        disable=None,  # hidden where nobody watches
    )


def size_in_words(n: int) -> str:
    """
    >>> size_in_words(1_540_000_000), size_in_words(12)
    ('1.5 GB', '12 bytes')
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n >= unit:
            return f"{n / unit:.1f} {name}"
    return f"{n} bytes"
