import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from infra.sources import open_source
from schemas.errors import ConfigError, ImageError, SourceError
from tests.unit.infra.archives import member, tar_bytes, write_tar
from tests.unit.infra.reading import COLUMNS, keys, refusal
from tests.unit.infra.web import Web

LONG = "a" * 120 + "/" + "b" * 130 + ".png"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tar__every_picture_once_in_every_format(tmp_path: Path, format: int) -> None:
    long = LONG[60:200] + ".png" if format == tarfile.USTAR_FORMAT else LONG
    path = write_tar(
        tmp_path / "train.tar",
        ("cats/0.jpg", b"cat"),
        ("notes.txt", b"no picture"),
        ("./dogs/1.JPEG", b"dog"),
        (long, b"long" * 400),
        ("2.png", b""),
        format=format,
    )
    source = open_source(str(path), COLUMNS)
    entries = {entry.key: entry for entry in source.entries()}
    read = {key: source.read(key) for key in entries}
    assert read == {
        "train.tar/cats/0.jpg": b"cat",
        "train.tar/dogs/1.JPEG": b"dog",
        f"train.tar/{long}": b"long" * 400,
        "train.tar/2.png": b"",
    }
    assert [entry.size for entry in entries.values()] == [len(data) for data in read.values()]
    assert len({entry.etag for entry in entries.values()} - {""}) == 1
    assert (source.url, source.location) == (str(path), str(path))


def test_tar__a_label_is_the_text_beside_it_or_the_folder(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        ("x/001.cls", b"7\n"),
        ("x/001.jpg", b"1"),
        ("x/002.left.jpg", b"2"),
        ("x/002.CLS", "käfer".encode()),
        ("x/003.jpg", b"3"),
        ("004.jpg", b"4"),
    )
    labels = {entry.key: entry.label for entry in open_source(str(path), COLUMNS).entries()}
    assert labels == {
        "a.tar/x/001.jpg": "7",
        "a.tar/x/002.left.jpg": "käfer",
        "a.tar/x/003.jpg": "x",
        "a.tar/004.jpg": None,
    }


@pytest.mark.parametrize("what", ["", "*.tar", "**", "*/*.[Tt][Aa][Rr]"])
def test_tar__a_further_archive_renames_no_key(tmp_path: Path, what: str) -> None:
    nested = "*/" in what
    root = tmp_path / "data"
    folder = root / "part" if nested else root
    first = write_tar(folder / "000.tar", ("a.jpg", b"1"))
    before = keys(open_source(str(first), COLUMNS))
    assert before == ["000.tar/a.jpg"]
    write_tar(folder / "001.TAR" if what != "*.tar" else folder / "001.tar", ("a.jpg", b"2"))
    source = open_source(f"{root}/{what}" if what else str(root), COLUMNS)
    inside = "part/" if nested else ""
    found = keys(source)
    assert found[0] == f"{inside}{before[0]}"
    assert [source.read(key) for key in found] == [b"1", b"2"]


def test_tar__whoever_has_not_listed_indexes_by_itself_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in range(2):
        members = [(f"{n}.jpg", b"%d %d" % (part, n)) for n in range(50)]
        write_tar(tmp_path / f"d/{part}.tar", *members)
    listed = []
    real = tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda tar: listed.append(1) or real(tar))
    source = open_source(str(tmp_path / "d"), COLUMNS)
    assert listed == []
    assert source.read("1.tar/49.jpg") == b"1 49"
    headers = len(listed)
    assert source.read("1.tar/0.jpg") == b"1 0"
    assert refusal(source, "1.tar/50.jpg") == "is no longer in the data set"
    assert len(listed) == headers
    for key in ("2.tar/0.jpg", "1.tar", "", "1.tar/", "../d/1.tar/0.jpg", "\ud800/0.jpg"):
        assert refusal(source, key) == "is no longer in the data set"


def test_tar__an_archive_in_a_folder_that_is_named_like_one(tmp_path: Path) -> None:
    write_tar(tmp_path / "d/a.tar/b.tar", ("c.tar/x.jpg", b"1"))
    write_tar(tmp_path / "d/a.tar/c.tar", ("x.jpg", b"2"))
    source = open_source(str(tmp_path / "d"), COLUMNS)
    assert {key: source.read(key) for key in keys(source)} == {
        "a.tar/b.tar/c.tar/x.jpg": b"1",
        "a.tar/c.tar/x.jpg": b"2",
    }


def test_tar__written_anew_has_another_stamp(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("x.jpg", b"1"))
    source = open_source(str(path), COLUMNS)
    before = next(iter(source.entries()))
    os.utime(path, ns=(1, 1))
    after = next(iter(source.entries()))
    assert (before.key, before.size) == (after.key, after.size)
    assert before.etag != after.etag


def test_tar__pictures_are_neither_read_too_large_nor_half(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("x.jpg", b"123456"), ("y.jpg", b"1" * 30_000))
    source = open_source(str(path), COLUMNS, max_bytes=5)
    assert refusal(source, "a.tar/x.jpg").startswith("6 bytes are more than the 5 allowed")
    source = open_source(str(path), COLUMNS)
    assert len(keys(source)) == 2
    os.truncate(path, 4096)
    with pytest.raises(SourceError, match=r"gave \d+ bytes and not 30000: the archive has changed"):
        source.read("a.tar/y.jpg")
    path.unlink()
    with pytest.raises(ImageError, match="no longer in the data set") as gone:
        source.read("a.tar/x.jpg")
    assert gone.value.__dict__["missing"]


def test_tar__links_devices_and_folders_are_no_pictures(tmp_path: Path) -> None:
    kinds = {"sym": b"2", "hard": b"1", "char": b"3", "block": b"4", "folder": b"5", "pipe": b"6"}
    path = write_tar(
        tmp_path / "a.tar",
        *((member(f"{kind}.jpg", type=kinds[kind], linkname="/etc/passwd"), b"") for kind in kinds),
        ("real.jpg", b"1"),
    )
    source = open_source(str(path), COLUMNS)
    assert keys(source) == ["a.tar/real.jpg"]
    assert refusal(source, "a.tar/sym.jpg") == "is no longer in the data set"


def test_tar__names_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    names = ["../secret.jpg", f"{tmp_path}/secret.jpg", "x/../../secret.jpg", "\x1b[31m.jpg"]
    path = write_tar(tmp_path / "d/a.tar", *((name, b"inside") for name in names))
    source = open_source(str(path), COLUMNS)
    found = keys(source)
    assert found == [f"a.tar/{name}" for name in names]
    assert {source.read(key) for key in found} == {b"inside"}
    assert not (tmp_path / "d/secret.jpg").exists()


def test_tar__beside_pictures_is_not_the_data_set(folder: Path) -> None:
    write_tar(folder / "backup.tar", ("x.jpg", b"1"))
    assert len(keys(open_source(str(folder), COLUMNS))) == 4


def test_tar__with_parquet_one_must_say_which(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("x.jpg", b"1"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="holds Parquet files and tar archives; give a glob"):
        open_source(str(tmp_path), COLUMNS)
    assert keys(open_source(f"{tmp_path}/*.tar", COLUMNS)) == ["a.tar/x.jpg"]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.zst"])
@pytest.mark.parametrize("how", ["file", "folder", "glob"])
def test_tar__compressed_is_refused(tmp_path: Path, name: str, how: str) -> None:
    write_tar(tmp_path / name, ("x.jpg", b"1"))
    where = {"file": tmp_path / name, "folder": tmp_path, "glob": tmp_path / "a*"}[how]
    with pytest.raises(ConfigError, match=r"is compressed.*decompress it to \.tar"):
        open_source(str(where), COLUMNS)


def test_tar__a_pipe_of_that_name_is_not_waited_for(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("x.jpg", b"1"))
    os.mkfifo(tmp_path / "b.tar")
    assert keys(open_source(str(tmp_path), COLUMNS)) == ["a.tar/x.jpg"]


class Counting(MemoryFileSystem):
    """Counts the bytes of every range that it is asked for, as a remote file system sends them."""

    protocol = "counting"
    sent: list[int] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("counting://").strip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **options)
        return Ranged(self, path, mode, size=self.store[path].size, **options)

    def cat_file(self, path: str, start: int = 0, end: int = 0, **options: Any) -> bytes:
        self.sent.append(end - start)
        return bytes(self.store[path].getvalue()[start:end])


class Ranged(fsspec.spec.AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end))


def test_tar__listing_a_remote_one_passes_over_the_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fsspec.register_implementation("counting", Counting, clobber=True)
    monkeypatch.setattr(Counting, "store", {})
    files = fsspec.filesystem("counting")
    pictures = [(f"{n}.jpg", os.urandom(1 << 20)) for n in range(20)]
    files.pipe("/d/a.tar", tar_bytes(*pictures))
    source = open_source("counting://d/a.tar", COLUMNS)
    monkeypatch.setattr(Counting, "sent", [])
    assert len(keys(source)) == 20
    assert len(Counting.sent) <= 25
    assert sum(Counting.sent) < 2 << 20
    Counting.sent.clear()
    assert source.read("a.tar/7.jpg") == pictures[7][1]
    assert Counting.sent == [1 << 20]
    small = [(f"{n}.jpg", b"1" * 900) for n in range(1000)]
    files.pipe("/d/b.tar", tar_bytes(*small))
    source = open_source("counting://d/b.tar", COLUMNS)
    Counting.sent.clear()
    assert len(keys(source)) == 1000
    assert len(Counting.sent) < 40


def test_tar__on_the_web(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Web.files["/d/a.tar"] = tar_bytes(("x/1.jpg", b"one" * 999), ("2.jpg", b"two"))
    source = open_source(f"{web}/d/a.tar?sig=s1gn4ture", COLUMNS)
    assert source.url == f"{web}/d/a.tar"
    assert keys(source) == ["a.tar/x/1.jpg", "a.tar/2.jpg"]
    assert source.read("a.tar/2.jpg") == b"two"
    monkeypatch.setattr(Web, "gives_parts", False)
    with pytest.raises(SourceError, match="gives no parts of a file; run again, or download it"):
        source.read("a.tar/2.jpg")
    Web.files["/d/a.tar"] += bytes(1 << 18)
    with pytest.raises(ConfigError, match=r"a\.tar"):
        keys(open_source(f"{web}/d/a.tar", COLUMNS))
