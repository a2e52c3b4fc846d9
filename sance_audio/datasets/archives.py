"""Corpora as archives: fetched once, unpacked whole or not at all, and nowhere but in their
folder.
"""

from __future__ import annotations

__all__ = ["fetch", "unpack"]

import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What unpacking raises; an unknown method or a password is a RuntimeError too."""


def fetch(url: str, cache: Path, name: str, checksum: str | None = None) -> Path:
    """The folder of a corpus: downloaded and unpacked into `cache/name` where it is not there.

    Arguments:
        url: Of a .zip, .tar or .tar.gz archive.
        cache: Where downloads are kept.
        name: Of the folder; the archive is kept beside it.
        checksum: As pooch writes them (`sha256:...`); None where none is known.

    Raises:
        ValueError: no download, a wrong checksum, or an archive that is damaged or unsafe.
    """
    import pooch

    folder = cache / name
    if folder.is_dir():
        return folder
    suffix = "".join(PurePosixPath(url).suffixes[-2:]) if ".tar" in url else Path(url).suffix
    try:
        file = pooch.retrieve(
            url, known_hash=checksum, path=cache, fname=name + suffix, progressbar=True
        )
    except Exception as error:  # pooch raises whatever the network stack beneath it raises
        raise ValueError(
            f"could not download {url} ({error}); fetch it by hand, unpack it and pass --data DIR"
        ) from error
    unpack(Path(file), folder)
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or .tar archive into a new folder, whole or not at all.

    Raises:
        ValueError: no such archive, a damaged one, or one with a member that would lie outside the
            folder (an absolute path, `..`, a link or a device).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as temporary:
        inside = Path(temporary) / folder.name
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as opened:
                    for member in opened.infolist():
                        kind = stat.S_IFMT(member.external_attr >> 16)
                        _refuse(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                    opened.extractall(inside)
            else:
                with tarfile.open(archive) as packed:
                    for entry in packed.getmembers():
                        _refuse(archive, entry.name, entry.isfile() or entry.isdir())
                    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                    packed.extractall(inside, **safe)  # type: ignore[arg-type]
        except DAMAGE as error:
            raise ValueError(
                f"{archive}: a damaged archive ({error}); delete it and try again"
            ) from error
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(inside, folder)


def _refuse(archive: Path, name: str, plain: bool) -> None:
    """Raise ValueError for a member that could write elsewhere than below the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = name[1:2] == ":"
    if not plain or path.is_absolute() or ".." in path.parts or drive:
        raise ValueError(
            f"{archive}: holds {name!r}, which would be written outside its folder or is no plain "
            f"file; nothing was unpacked. Do not trust this archive"
        )
