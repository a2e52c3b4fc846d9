"""Corpora as archives: fetched once, unpacked whole or not at all, nowhere but in their folder,
and to no more than an archive of sounds holds.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from sance_audio.datasets.download import download, size_in_words

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What unpacking raises; an unknown method or a password is a RuntimeError too."""
RATIO, FLOOR = 50, 2**30
"""An archive may unpack to so many times its own size, or to so many bytes where that is more:
sounds shrink to a third, digital silence and tables further.
"""
MEMBERS = 1_000_000
"""Files and folders in an archive, at most."""
BLOCK = 2**20
WORDS = 2**27
"""Bytes of long names and other words on a tar's members, at most: they are held in memory."""


class Member(NamedTuple):
    """Of an archive."""

    name: str
    size: int
    """In bytes, as the archive says."""
    folder: bool
    plain: bool
    """Whether it is a file or a folder: no link, no device."""
    open: Callable[[], IO[bytes] | None]


def fetch(
    url: str,
    cache: Path,
    name: str,
    checksum: str | None = None,
    *,
    size: int | None = None,
    keep: bool = True,
) -> Path:
    """The folder of a corpus: downloaded and unpacked into `cache/name` where it is not there.

    Arguments:
        url: Of a .zip, .tar or .tar.gz archive.
        cache: Where downloads are kept.
        name: Of the folder; the archive is kept beside it.
        checksum: `md5:...` or `sha256:...`; None where none is known.
        size: Of the archive in bytes, where known.
        keep: Keep the archive after it is unpacked.

    Raises:
        ValueError: no download, a wrong checksum, or an archive that is damaged or unsafe.
    """
    folder = cache / name
    if folder.is_dir():
        return folder
    bare = url.partition("?")[0]
    suffix = "".join(PurePosixPath(bare).suffixes[-2:]) if ".tar" in bare else Path(bare).suffix
    try:
        file = download(url, cache / (name + suffix), checksum, size)
    except ValueError as error:
        raise ValueError(f"{error}, unpack it and pass --data DIR") from error
    unpack(file, folder)
    if not keep:
        file.unlink()
    return folder


def unpack(archive: Path, folder: Path, most: int | None = None) -> None:
    """Unpack a .zip or .tar archive into a new folder, whole or not at all.

    Arguments:
        archive: The file.
        folder: What it is unpacked to; one that is there is replaced.
        most: Bytes that it may unpack to; when None, `RATIO` times its own, `FLOOR` at least.

    Raises:
        ValueError: no such archive, a damaged one, one with a member that would lie outside the
            folder (an absolute path, `..`, a link or a device), or one that unpacks to more than
            it may, or than the disk has room for.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as temporary:
        inside = Path(temporary) / folder.name
        try:
            with _members(archive) as members:
                for member in members:
                    _refuse(archive, member)
                most = max(RATIO * archive.stat().st_size, FLOOR) if most is None else most
                _refuse_bombs(archive, members, most, folder.parent)
                _extract(archive, members, inside, most)
        except DAMAGE as error:
            raise ValueError(
                f"{archive}: a damaged archive ({error}); delete it and try again"
            ) from error
        except OSError as error:
            raise ValueError(
                f"{archive}: cannot be unpacked into {folder} ({error}); nothing was unpacked"
            ) from error
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(inside, folder)


class _Header(tarfile.TarInfo):
    """Of a member. A damaged one is an error, wherever it stands, and so is an end without its
    mark, where `tarfile` would say that the archive ends; words are read only where they are few.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} after {tar.offset} bytes") from error

    def _proc_member(self, tar: _Tar) -> Any:
        if not self.isfile() and not self.isdir():
            tar.words += max(0, self.size)
        if tar.words > WORDS:
            raise tarfile.ReadError(f"more than {size_in_words(WORDS)} of words on its members")
        return super()._proc_member(tar)  # type: ignore[misc]


class _Tar(tarfile.TarFile):
    tarinfo = _Header
    words = 0


@contextmanager
def _members(archive: Path) -> Iterator[Sequence[Member]]:
    """What an archive says it holds."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            found = []
            for part in opened.infolist():
                kind = stat.S_IFMT(part.external_attr >> 16)
                plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                reader = _reader(opened, part)
                folder = part.filename.endswith("/")
                found.append(Member(part.filename, part.file_size, folder, plain, reader))
            yield found
    else:
        with _Tar.open(archive) as packed:
            entries = []
            for entry in packed:
                entries.append(entry)
                if len(entries) > MEMBERS:  # a stream of headers without end fills memory
                    break
            yield [
                Member(e.name, e.size, e.isdir(), e.isfile() or e.isdir(), _reader(packed, e))
                for e in entries
            ]


def _reader(
    opened: zipfile.ZipFile | tarfile.TarFile, part: zipfile.ZipInfo | tarfile.TarInfo
) -> Callable[[], IO[bytes] | None]:
    if isinstance(opened, zipfile.ZipFile):
        assert isinstance(part, zipfile.ZipInfo)
        return lambda: opened.open(part)
    assert isinstance(part, tarfile.TarInfo)
    return lambda: opened.extractfile(part)


def _extract(archive: Path, members: Sequence[Member], inside: Path, most: int) -> None:
    """Write all members below a new folder. Bytes are counted as they come: what an archive says
    of itself may be wrong.
    """
    inside.mkdir()
    count = 0
    for member in members:
        path = inside / PurePosixPath(member.name.replace("\\", "/"))
        if member.folder:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        source = member.open()
        assert source is not None, "a plain file"
        with source, path.open("wb") as file:
            while block := source.read(BLOCK):
                count += len(block)
                if count > most:
                    raise ValueError(_bomb(archive, "more than it announces", most))
                file.write(block)


def _refuse(archive: Path, member: Member) -> None:
    """Raise ValueError for a member that could write elsewhere than below the folder."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    drive = member.name[1:2] == ":"
    nameless = "\0" in member.name or not (path.parts or member.folder)
    if not member.plain or path.is_absolute() or ".." in path.parts or drive or nameless:
        raise ValueError(
            f"{archive}: holds {member.name!r}, which would be written outside its folder or is "
            f"no plain file; nothing was unpacked. Do not trust this archive"
        )


def _refuse_bombs(archive: Path, members: Sequence[Member], most: int, where: Path) -> None:
    """Raise ValueError for an archive that announces more than it may unpack to, or than there is
    room for.
    """
    total = sum(member.size for member in members)
    if total > most:
        raise ValueError(_bomb(archive, size_in_words(total), most))
    if len(members) > MEMBERS:
        raise ValueError(
            f"{archive}: expected at most {MEMBERS} files, found more; nothing was unpacked. Do "
            f"not trust this archive"
        )
    free = shutil.disk_usage(where).free
    if total > free:
        raise ValueError(
            f"{archive}: expected room for {size_in_words(total)}, found {size_in_words(free)} "
            f"free on the disk of {where}; make room, or keep downloads on another disk"
        )


def _bomb(archive: Path, found: str, most: int) -> str:
    return (
        f"{archive}: expected it to unpack to at most {size_in_words(most)}, found {found}; "
        f"nothing was unpacked. Do not trust this archive, or unpack it yourself"
    )
