"""Archives: unpacked whole or not at all; those that would write where they must not, or more than
they may. Corpora that are fetched as archives, from a server on this machine.
"""

import io
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sance_audio.datasets import archives, fsdd


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, name: str, content: bytes = b"x", link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        if link:
            member.type, member.linkname = tarfile.SYMTYPE, link
        else:
            member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../evil.wav", "/tmp/evil.wav", "a/../../evil.wav", "..\\evil"])
def test_a_path_that_leads_outside_is_refused(tmp_path, name):
    (tmp_path / "in").mkdir()
    for archive in (
        zipped(tmp_path / "a.zip", {"good.wav": b"x", name: b"x"}),
        tarred(tmp_path / "a.tar.gz", name),
    ):
        with pytest.raises(ValueError, match="outside its folder"):
            archives.unpack(archive, tmp_path / "in" / "corpus")
        assert list((tmp_path / "in").iterdir()) == [], "nothing was unpacked"
    assert not (tmp_path / "evil.wav").exists()
    assert not Path("/tmp/evil.wav").exists()


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    for path in (tmp_path / "a.zip", tarred(tmp_path / "a.tar.gz", "link", link="/etc/passwd")):
        with pytest.raises(ValueError, match="no plain file"):
            archives.unpack(path, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_good_archives_are_unpacked_and_damaged_ones_are_not(tmp_path):
    good = zipped(tmp_path / "a.zip", {"deep/in/a.txt": b"1", "b.txt": b"2"})
    archives.unpack(good, tmp_path / "zip")
    assert (tmp_path / "zip" / "deep" / "in" / "a.txt").read_bytes() == b"1"
    archives.unpack(tarred(tmp_path / "a.tar.gz", "c.txt", b"3"), tmp_path / "tar")
    assert (tmp_path / "tar" / "c.txt").read_bytes() == b"3"
    broken = tmp_path / "broken.zip"
    broken.write_bytes(good.read_bytes()[:-30])
    with pytest.raises(ValueError, match="damaged archive"):
        archives.unpack(broken, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_digits_are_downloaded_once_and_counted(served, tmp_path, monkeypatch):
    folder, address = served
    names = [f"{d}_ann_{i}.wav" for d in range(10) for i in range(3)]
    zipped(folder / "v1.zip", {f"fsdd-1/recordings/{n}": b"sound" for n in names})
    monkeypatch.setattr(fsdd, "ARCHIVE", f"{address}/v1.zip")
    with pytest.raises(ValueError, match="expected 3000 recordings below it, found 30"):
        fsdd.prepare(cache=tmp_path / "cache")
    monkeypatch.setattr(fsdd, "CLIPS", 30)
    corpus = fsdd.prepare(cache=tmp_path / "cache")
    assert len(corpus.clips) == 30
    (folder / "v1.zip").unlink()
    assert len(fsdd.prepare(cache=tmp_path / "cache").clips) == 30, "kept"


def test_a_download_that_fails_names_the_way_out(served, tmp_path, monkeypatch):
    folder, address = served
    monkeypatch.setattr(fsdd, "ARCHIVE", f"{address}/gone.zip")
    with pytest.raises(ValueError, match="pass --data DIR"):
        fsdd.prepare(cache=tmp_path / "cache")
    zipped(folder / "v1.zip", {"a": b"1"})
    with pytest.raises(ValueError, match="could not download"):
        archives.fetch(f"{address}/v1.zip", tmp_path / "cache", "a", "sha256:" + 64 * "0")
    assert not (tmp_path / "cache" / "a").exists()


def test_a_damaged_stream_is_one_clear_error(tmp_path):
    """The list of members is whole, what they hold is not."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(range(256)) * 400)
    content = bytearray(path.read_bytes())
    content[60:120] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged archive"):
        archives.unpack(path, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_an_archive_of_a_folder_as_it_stands(tmp_path):
    """As `tar czf x.tar.gz -C folder .` writes it: its first member is the folder itself."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("1")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "folder", ".")
    archives.unpack(tmp_path / "a.tar.gz", tmp_path / "corpus")
    assert (tmp_path / "corpus" / "a.txt").read_text() == "1"


def test_a_bomb_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FLOOR", 2**16)
    zeros = bytes(2**22)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.wav", zeros)
    for path in (tmp_path / "a.zip", tarred(tmp_path / "a.tar.gz", "zeros.wav", zeros)):
        monkeypatch.setattr(archives, "_extract", lambda *_: pytest.fail("written"))
        with pytest.raises(ValueError, match=r"at most .* found 4\.2 MB; nothing was unpacked"):
            archives.unpack(path, tmp_path / "corpus")
        monkeypatch.undo()
        archives.unpack(path, tmp_path / "corpus", most=2**22)
        with pytest.raises(ValueError, match="Do not trust"):
            archives.unpack(path, tmp_path / "other", most=2**22 - 1)
        assert not (tmp_path / "other").exists()
        monkeypatch.setattr(archives, "FLOOR", 2**16)


def test_many_files_are_a_bomb_too(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBERS", 3)
    zipped(tmp_path / "a.zip", {f"{i}.wav": b"" for i in range(4)})
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(5):
            archive.addfile(tarfile.TarInfo(f"{i}.wav"))
    for path in (tmp_path / "a.zip", tmp_path / "a.tar"):
        with pytest.raises(ValueError, match="at most 3 files"):
            archives.unpack(path, tmp_path / "corpus")


def test_bytes_are_counted_whatever_an_archive_says(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", {"a.wav": bytes(100), "b.wav": bytes(100)})
    monkeypatch.setattr(archives, "_refuse_bombs", lambda *_: None)
    with pytest.raises(ValueError, match="found more than it announces"):
        archives.unpack(path, tmp_path / "corpus", most=150)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"], "nothing is left behind"


def test_a_zip_that_lies_of_its_sizes_is_damaged(tmp_path):
    """Its directory announces one byte of a thousand."""
    path = zipped(tmp_path / "a.zip", {"a.wav": bytes(1000)})
    content = path.read_bytes()
    assert content.count((1000).to_bytes(4, "little") * 2) == 2
    path.write_bytes(content.replace((1000).to_bytes(4, "little") * 2, b"\1\0\0\0" * 2))
    with pytest.raises(ValueError, match="damaged archive"):
        archives.unpack(path, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_words_on_a_member_are_a_bomb_too(tmp_path, monkeypatch):
    """A name of a megabyte, which tar would read into memory before it has a member."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a" * 2**20))
    monkeypatch.setattr(archives, "WORDS", 2**19)
    with pytest.raises(ValueError, match=r"more than 524\.3 kB of words"):
        archives.unpack(tmp_path / "a.tar.gz", tmp_path / "corpus")


def test_a_tar_that_is_damaged_or_cut_anywhere_is_not_unpacked(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(3):
            member = tarfile.TarInfo(f"{i}.wav")
            member.size = 512
            archive.addfile(member, io.BytesIO(bytes(range(256)) * 2))
    whole = path.read_bytes()
    broken = [whole[:cut] for cut in range(1, 6 * 512 + 1, 128)]
    broken += [whole[:at] + b"\xff" + whole[at + 1 :] for at in (0, 1024, 2048)]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged archive"):
            archives.unpack(path, tmp_path / "corpus")
    path.write_bytes(whole)
    archives.unpack(path, tmp_path / "corpus")


def test_a_member_without_a_name_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", {"abc": b"1"})
    content = path.read_bytes()
    for name in (b"\0bc", b"./."):
        path.write_bytes(content.replace(b"abc", name))
        with pytest.raises(ValueError, match=r"a\.zip: holds .* no plain file"):
            archives.unpack(path, tmp_path / "corpus")


def test_an_archive_that_finds_no_room_is_not_begun(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", {"a.wav": bytes(1000)})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(ValueError, match=r"room for 1\.0 kB, found 999 bytes free"):
        archives.unpack(path, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_file_where_a_folder_must_be(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a": b"1", "a/b.wav": b"2"})
    with pytest.raises(ValueError, match="cannot be unpacked"):
        archives.unpack(path, tmp_path / "corpus")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        archives.unpack(tmp_path / "gone.zip", tmp_path / "corpus")


def test_what_is_half_there_is_never_unpacked(served, tmp_path):
    """An archive is fetched anew where only a part of it came, and deleted where that is asked."""
    folder, address = served
    zipped(folder / "v1.zip", {"a": b"1"})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.zip.part").write_bytes(b"half")
    found = archives.fetch(f"{address}/v1.zip?download=1", tmp_path / "cache", "a", keep=False)
    assert (found / "a").read_bytes() == b"1"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["a"]
