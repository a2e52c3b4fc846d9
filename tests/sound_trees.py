"""Folders of machine sounds as their archives unpack, of clips a few samples long; a Zenodo of one
machine's archives.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import soundfile


def sound(path: Path, channels: int = 1, rate: int = 16000) -> Path:
    """A clip of noise of its own, channel c at level 0.1 / (c + 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.blake2b(path.name.encode(), digest_size=4).digest(), "big")
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, 400)
    soundfile.write(path, noise[:, None] / np.arange(1, channels + 1), rate)
    return path


def litter(folder: Path) -> list[Path]:
    """What other systems and people leave in a folder."""
    names = ["._a.wav", ".DS_Store", "notes.txt", "a.wav", "__MACOSX/x.wav", "more/x.wav"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return [folder / name.partition("/")[0] for name in names]


def zipped(folder: Path) -> bytes:
    """A folder's content as an archive."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return packed.getvalue()


@contextmanager
def zenodo(records: dict[int, dict[str, bytes]]):
    """The address of a site that publishes files of records; and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            _, *parts = self.path.partition("?")[0].split("/")
            if parts[0] == "api":
                files = records[int(parts[2])]
                listed = [
                    {
                        "key": name,
                        "size": len(content),
                        "checksum": "md5:" + hashlib.md5(content).hexdigest(),
                    }
                    for name, content in files.items()
                ]
                body = json.dumps({"id": int(parts[2]), "files": listed}).encode()
            else:
                body = records[int(parts[1])][parts[3]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
