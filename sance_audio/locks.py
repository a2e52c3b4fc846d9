"""A file that one process at a time may hold."""

from __future__ import annotations

__all__ = ["hold"]

import errno
import os
import sys
from io import FileIO
from pathlib import Path

BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
PLACE = 2**30
"""The byte that stands for the file on Windows, where others could not read what is locked."""


def hold(path: Path) -> FileIO | None:
    """Open a file to read and to append to, made where there is none; None where another process
    holds it.

    The system lets go when the file is closed or the process ends, however it ends. On a file
    system that knows no locks nobody is held back.

    Raises:
        OSError: it cannot be opened.
    """
    while True:
        file = open(path, "a+b", buffering=0)  # noqa: SIM115
        try:
            if not _locked(file):
                file.close()
                return None
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()  # whoever held it has renamed or removed it in the meantime


def _locked(file: FileIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(PLACE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in BUSY
    return True
