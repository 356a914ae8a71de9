import os
from pathlib import Path

import fsspec
import pytest

from infra.sources import open_source
from schemas.errors import ConfigError, ImageError, SourceError
from tests.unit.infra.reading import COLUMNS, keys, refusal
from tests.unit.infra.web import Web


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines))
    return str(path)


def test_list__lines_are_keys(folder: Path) -> None:
    text = "\ufeff# the good ones\r\n\r\n  cats/b.JPEG \r\na.jpg\n\n#dogs/d.webp\ncats/gone.jpg"
    (folder / "List.TXT").write_bytes(text.encode())
    source = open_source(str(folder / "List.TXT"), COLUMNS)
    entries = {entry.key: entry for entry in source.entries()}
    assert list(entries) == ["cats/b.JPEG", "a.jpg", "cats/gone.jpg"]
    assert [entry.label for entry in entries.values()] == ["cats", None, "cats"]
    assert [entry.size for entry in entries.values()] == [11, 5, 0]
    assert source.read("cats/b.JPEG") == b"cats/b.JPEG"
    before = entries["a.jpg"].etag
    os.utime(folder / "a.jpg", ns=(1, 1))
    assert before not in ("", next(e for e in source.entries() if e.key == "a.jpg").etag)
    with pytest.raises(ImageError, match="no longer in the data set") as gone:
        source.read("cats/gone.jpg")
    assert gone.value.__dict__["missing"]


def test_list__of_nothing(tmp_path: Path) -> None:
    assert keys(open_source(write(tmp_path / "a.txt", "", "# x"), COLUMNS)) == []


@pytest.mark.parametrize(
    "line",
    [
        *("../secret.jpg", "cats/../../secret.jpg", "/etc/passwd", "~/x.jpg"),
        *("file:///etc/passwd", "FILE:///etc/passwd", "local:///etc/passwd", "memory://x"),
        *("simplecache::file:///etc/passwd", "zip://a::http://host/x.zip", "dir://::/etc"),
    ],
)
def test_list__nothing_of_this_machine_is_reached_by_it(tmp_path: Path, line: str) -> None:
    source = open_source(write(tmp_path / "a.txt", "fine.jpg", line), COLUMNS)
    expected = "leads out of the list's folder|is no URL that a list may have"
    with pytest.raises(ConfigError, match=rf"a\.txt: line 2: .* ({expected})"):
        keys(source)
    with pytest.raises(ImageError, match=expected):
        source.read(line)


def test_list__links_do_not_lead_out_of_its_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    source = open_source(write(folder / "a.txt", "link.jpg"), COLUMNS)
    assert keys(source) == ["link.jpg"]
    assert "leads out of the data set" in refusal(source, "link.jpg")
    assert "not one of a file" in refusal(source, "a\0b.jpg")


def test_list__a_line_that_stands_twice(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.txt", "a.jpg", "", "b.jpg", " a.jpg"), COLUMNS)
    with pytest.raises(ConfigError, match=r"a\.txt: line 4: a\.jpg stands twice; remove one"):
        keys(source)


@pytest.mark.parametrize(
    "line",
    ["https://me:hunter2@host/a.jpg", "https://host/a.jpg?sig=hunter2", "s3://b/a?sig=hunter2"],
)
def test_list__a_secret_is_refused_and_not_told(tmp_path: Path, line: str) -> None:
    source = open_source(write(tmp_path / "a.txt", line), COLUMNS)
    with pytest.raises(ConfigError, match="has a query or a user in it") as caught:
        keys(source)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0" * 99, b"a.jpg\n" + b"x" * 9000])
def test_list__what_is_no_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ConfigError, match="a list has one path or URL a line"):
        keys(open_source(str(tmp_path / "a.txt"), COLUMNS))


def test_list__of_urls_asks_nothing_before_it_reads(tmp_path: Path, web: str) -> None:
    lines = [f"{web}/cats/1.jpg", f"{web}/2", f"{web}/gone.jpg", f"{web}/empty.jpg"]
    source = open_source(write(tmp_path / "a.txt", *lines), COLUMNS, max_bytes=3)
    entries = list(source.entries())
    assert [entry.key for entry in entries] == lines
    assert [(entry.size, entry.etag) for entry in entries] == [(0, "")] * 4
    assert [entry.label for entry in entries[:2]] == ["cats", web.rpartition("/")[2]]
    assert Web.asked == []
    assert [source.read(line) for line in lines[:2]] == [b"one", b"two"]
    assert source.read(lines[3]) == b""
    with pytest.raises(ImageError, match="no longer in the data set") as gone:
        source.read(lines[2])
    assert gone.value.__dict__["missing"]


def test_list__what_the_web_answers(tmp_path: Path, web: str) -> None:
    source = open_source(write(tmp_path / "a.txt", f"{web}/2"), COLUMNS)
    assert "the server answers 403" in refusal(source, f"{web}/status/403.jpg")
    with pytest.raises(ImageError) as gone:
        source.read(f"{web}/status/410.jpg")
    assert gone.value.__dict__["missing"]
    for status in (401, 429, 503):
        with pytest.raises(SourceError, match=rf"reading .*/{status}\.jpg failed: .*run again"):
            source.read(f"{web}/status/{status}.jpg")
    Web.failures[:] = [503, 429]
    assert source.read(f"{web}/2") == b"two"
    with pytest.raises(SourceError, match=r"check the address.*and the network"):
        source.read("http://127.0.0.1:1/a.jpg")
    small = open_source(str(tmp_path / "a.txt"), COLUMNS, max_bytes=2)
    assert "bytes are more than the 2 allowed" in refusal(small, f"{web}/2")


def test_list__that_lies_on_the_web_itself(web: str) -> None:
    Web.files["/d/list.txt"] = b"a.jpg\nsub/b.jpg\n" + f"{web}/2\n".encode()
    Web.files |= {"/d/a.jpg": b"a", "/d/sub/b.jpg": b"b"}
    source = open_source(f"{web}/d/list.txt?sig=s1gn4ture", COLUMNS)
    assert source.url == f"{web}/d/list.txt"
    found = keys(source)
    assert found == ["a.jpg", "sub/b.jpg", f"{web}/2"]
    assert [source.read(key) for key in found] == [b"a", b"b", b"two"]
    assert "leads out of the list's folder" in refusal(source, "../2")
    assert "is no URL" in refusal(source, "file:///etc/passwd")


def test_list__on_another_file_system_may_name_what_lies_there() -> None:
    files = fsspec.filesystem("memory")
    files.pipe({"/photos/list.txt": b"a.jpg\nmemory://photos/b.jpg", "/photos/a.jpg": b"a"})
    files.pipe("/photos/b.jpg", b"b")
    source = open_source("memory://photos/list.txt", COLUMNS)
    assert [source.read(key) for key in keys(source)] == [b"a", b"b"]
