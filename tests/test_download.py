"""Downloads from a server on this machine that cuts them off, changes files and knows no parts."""

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sance_audio.datasets import archives, download, zenodo

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


@dataclass
class Server:
    """What it serves, and how."""

    content: bytes = CONTENT
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers breaks off."""
    ranges: bool = True
    tag: str = '"v1"'
    says: int | None = None
    """The length that it announces; the true one when None."""
    refusals: list[int] = field(default_factory=list)
    """Statuses of the next answers."""
    asked: list[str] = field(default_factory=list)
    """The `Range` of each request."""
    address: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)
    """Cleared: answers do not end."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range", "")
        self.asked.append(wanted)
        if self.refusals:
            handler.send_error(self.refusals.pop(0))
            return
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and self.ranges else 0
        start = start if handler.headers.get("If-Range", self.tag) == self.tag else 0
        handler.send_response(206 if start else 200)
        if self.tag:
            handler.send_header("ETag", self.tag)
        n = len(self.content)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{n - 1}/{n}")
        if self.says != -1:
            handler.send_header("Content-Length", str((self.says or n) - start))
        handler.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else n
        handler.wfile.write(self.content[start:end])
        self.stalled.wait(30)
        handler.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(download, "PATIENCE", 5.0)
    monkeypatch.setattr(download, "BLOCK", 1000)
    served = Server()
    served.stalled.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.answer(self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        served.address = f"http://127.0.0.1:{http.server_port}/a.zip"
        yield served
        http.shutdown()


def md5(content: bytes) -> str:
    return "md5:" + hashlib.md5(content).hexdigest()


def alone(path: Path) -> bool:
    return [p.name for p in path.parent.iterdir()] == [path.name]


def cut_off(server: Server, file: Path, monkeypatch) -> int:
    """Leave a part of the file behind: its size."""
    server.cuts, server.asked = [100_000], []
    with monkeypatch.context() as patch:
        patch.setattr(download, "TRIES", 1)
        with pytest.raises(ValueError, match=r"100\.0 kB of 300\.0 kB are there"):
            download.download(server.address, file)
    server.asked = []
    return file.with_name("a.zip.part").stat().st_size


def test_a_file_arrives_whole_and_alone(server, tmp_path):
    file = tmp_path / "deep" / "a.zip"
    for checksum in (md5(CONTENT), hashlib.sha256(CONTENT).hexdigest(), None):
        file.unlink(missing_ok=True)
        assert download.download(server.address, file, checksum, len(CONTENT)) == file
        assert file.read_bytes() == CONTENT
        assert alone(file)
    before = list(server.asked)
    download.download(server.address, file, md5(CONTENT))
    assert server.asked == before, "what is there is not asked for"


def test_a_cut_transfer_goes_on_by_itself(server, tmp_path):
    server.cuts = [50_000, 1_000, 100_000]
    file = download.download(server.address, tmp_path / "a.zip", md5(CONTENT))
    assert file.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=50000-", "bytes=51000-", "bytes=151000-"]
    assert alone(file)


def test_a_transfer_goes_on_next_time(server, tmp_path, monkeypatch):
    file = tmp_path / "a.zip"
    n = cut_off(server, file, monkeypatch)
    assert not file.exists(), "half a file has no name"
    assert download.download(server.address, file).read_bytes() == CONTENT
    assert server.asked == [f"bytes={n}-"]
    assert alone(file)


def test_a_process_killed_within_a_transfer_leaves_what_can_be_gone_on_from(server, tmp_path):
    server.cuts = [200_000]
    server.stalled.clear()
    file = tmp_path / "a.zip"
    code = "from pathlib import Path; from sance_audio.datasets.download import download as d; "
    code += f"d({server.address!r}, Path({str(file)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code])
    part = file.with_name("a.zip.part")
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    server.stalled.set()
    n = part.stat().st_size
    assert 0 < n <= 200_000
    assert not file.exists()
    assert download.download(server.address, file).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={n}-"


def test_bytes_that_a_kill_kept_from_the_disk_are_fetched_again(server, tmp_path, monkeypatch):
    file = tmp_path / "a.zip"
    cut_off(server, file, monkeypatch)
    part = file.with_name("a.zip.part")
    part.write_bytes(part.read_bytes()[:777])
    assert download.download(server.address, file).read_bytes() == CONTENT
    assert server.asked == ["bytes=777-"]


@pytest.mark.parametrize("validator", [5, ["x"], "a\r\nb: c", "\u2603", " x"])
def test_what_cannot_be_sent_back_is_not_gone_on_with(server, tmp_path, validator):
    file = tmp_path / "a.zip"
    file.with_name("a.zip.part").write_bytes(b"x" * 1000)
    about = {"url": server.address, "validator": validator, "size": len(CONTENT)}
    file.with_name("a.zip.part.json").write_text(json.dumps(about))
    download.download(server.address, file)
    assert file.read_bytes() == CONTENT
    assert server.asked == [""]
    assert alone(file)


def test_a_whole_part_needs_no_request(server, tmp_path, monkeypatch):
    """Killed between the last byte and the name."""
    file = tmp_path / "a.zip"
    cut_off(server, file, monkeypatch)
    file.with_name("a.zip.part").write_bytes(CONTENT)
    assert download.download(server.address, file, md5(CONTENT)).read_bytes() == CONTENT
    assert server.asked == []


def test_a_server_without_parts_starts_again(server, tmp_path, monkeypatch):
    server.ranges = False
    file = tmp_path / "a.zip"
    cut_off(server, file, monkeypatch)
    assert download.download(server.address, file, md5(CONTENT)).read_bytes() == CONTENT
    assert alone(file)


@pytest.mark.parametrize("length", [300_000, 200_000, 90_000])
def test_a_file_that_changed_between_tries_is_fetched_anew(server, tmp_path, monkeypatch, length):
    file = tmp_path / "a.zip"
    cut_off(server, file, monkeypatch)
    server.content, server.tag = OTHER[:length], '"v2"'
    assert download.download(server.address, file).read_bytes() == OTHER[:length]
    assert alone(file)


@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_without_a_name_for_the_content_only_a_checksum_lets_it_go_on(server, tmp_path, tag):
    server.tag = tag
    for checksum, second in ((None, ""), (md5(CONTENT), "bytes=50000-")):
        server.cuts, server.asked = [50_000], []
        file = download.download(server.address, tmp_path / "a.zip", checksum)
        assert file.read_bytes() == CONTENT
        assert server.asked == ["", second]
        file.unlink()


def test_two_files_that_met_are_fetched_once_more(server, tmp_path):
    """The server does not say that the file changed; the checksum does."""
    server.tag, server.cuts = "", [50_000]
    file = tmp_path / "a.zip"
    part = file.with_name("a.zip.part")
    part.write_bytes(OTHER[:50_000])
    about = {"url": server.address, "validator": "", "size": len(CONTENT)}
    file.with_name("a.zip.part.json").write_text(json.dumps(about))
    assert download.download(server.address, file, md5(CONTENT)).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    file = tmp_path / "a.zip"
    with pytest.raises(ValueError, match=r"expected the md5 .* found .* was deleted"):
        download.download(server.address, file, md5(OTHER))
    assert list(tmp_path.iterdir()) == []
    for checksum in ("md5:12", "crc:12345678", "", "sha256:" + 64 * "x"):
        with pytest.raises(ValueError, match="expected one of md5"):
            download.download(server.address, file, checksum)


def test_a_truncated_body_is_not_taken_for_the_file(server, tmp_path):
    server.says, server.cuts = 400_000, []
    with pytest.raises(ValueError, match=r"of 400\.0 kB are there"):
        download.download(server.address, tmp_path / "a.zip")
    server.says = -1  # says nothing of its length, and ends early each time
    server.tag, server.cuts = "", [1000] * 9
    with pytest.raises(ValueError, match="ended after 1000 of 300000"):
        download.download(server.address, tmp_path / "b.zip", size=300_000)
    assert not (tmp_path / "a.zip").exists()
    assert not (tmp_path / "b.zip").exists()


def test_another_size_than_published_is_refused_before_it_is_fetched(server, tmp_path):
    with pytest.raises(ValueError, match="expected 5 bytes, the server has 300000"):
        download.download(server.address, tmp_path / "a.zip", size=5)
    assert list(tmp_path.iterdir()) == []


def test_answers_that_pass_and_answers_that_do_not(server, tmp_path):
    server.refusals = [503, 429]
    assert download.download(server.address, tmp_path / "a.zip").read_bytes() == CONTENT
    server.refusals, server.asked = [404], []
    with pytest.raises(ValueError, match="answered 404"):
        download.download(server.address, tmp_path / "b.zip")
    assert len(server.asked) == 1, "asked once"
    server.refusals = [503] * 9
    with pytest.raises(ValueError, match="answered 503"):
        download.download(server.address, tmp_path / "b.zip")
    for url in ("file:///etc/passwd", "nowhere", "http://127.0.0.1:1/a.zip"):
        with pytest.raises(ValueError, match="could not download"):
            download.download(url, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_room_is_looked_for_first(server, tmp_path, monkeypatch):
    file = tmp_path / "a.zip"
    cut_off(server, file, monkeypatch)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=199_999))
    with pytest.raises(ValueError, match=r"room for 200\.0 kB more .* found 200\.0 kB free"):
        download.download(server.address, file)
    with pytest.raises(ValueError, match=r"room for 300\.0 kB more"):
        download.download(server.address, tmp_path / "b.zip")
    assert not list(tmp_path.glob("b.zip*"))
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
    assert download.download(server.address, file).read_bytes() == CONTENT, "room for the rest"


def test_a_full_disk_says_so(server, tmp_path, monkeypatch):
    class Full:
        def update(self, _):
            raise OSError(28, "No space left on device")

        __enter__ = __exit__ = lambda self, *_: self if not _ else None

    monkeypatch.setattr(download, "_progress", lambda *_: Full())
    with pytest.raises(OSError, match="the disk is full"):
        download.download(server.address, tmp_path / "a.zip")


def test_an_archive_goes_on_too_and_is_unpacked(server, tmp_path, monkeypatch):
    import zipfile

    with zipfile.ZipFile(tmp_path / "made.zip", "w") as made:
        made.writestr("a.wav", CONTENT)
    server.content = (tmp_path / "made.zip").read_bytes()
    server.cuts = [100_000]
    folder = archives.fetch(server.address, tmp_path / "cache", "a", md5(server.content))
    assert (folder / "a.wav").read_bytes() == CONTENT
    server.refusals = [404]
    with pytest.raises(ValueError, match="pass --data DIR"):
        archives.fetch(server.address, tmp_path / "cache", "b")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"<html>", "found another answer"),
        (b"[]", "found another answer"),
        (b'{"files": []}', "expected plain names"),
        (b'{"files": [{"key": "a.zip", "size": "x"}]}', "found another answer"),
        (b'{"files": [{"key": "../a.zip", "size": 1, "checksum": ""}]}', "expected plain names"),
    ],
)
def test_a_record_that_says_something_else(server, monkeypatch, answer, words):
    monkeypatch.setattr(zenodo, "SITE", server.address)
    server.content = answer
    with pytest.raises(ValueError, match=words):
        zenodo.published(1)
    server.refusals = [504]
    with pytest.raises(ValueError, match=r"could not ask .*records/1.*504"):
        zenodo.published(1)
