import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.sources import open_source
from schemas.errors import SourceError
from tests.unit.infra.reading import COLUMNS, keys, refusal


def test_folder__what_is_no_file_is_no_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(open_source(str(folder), COLUMNS))
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    monkeypatch.chdir(folder)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        source = open_source(str(folder), COLUMNS)
        assert keys(source) == before
    # A plan that somebody else wrote may name them all the same; nothing waits for a pipe.
    assert refusal(source, "pipe.jpg") == "is no regular file"
    assert "leads out of the data set" in refusal(source, "device.jpg")
    assert refusal(source, "folder.jpg") == "is no longer in the data set"


def test_folder__links_to_files_inside_are_pictures(folder: Path) -> None:
    (folder / "link.jpg").symlink_to("cats/b.JPEG")
    (folder / "dogs" / "up.jpg").symlink_to("../a.jpg")
    source = open_source(str(folder), COLUMNS)
    found = {entry.key: entry for entry in source.entries()}
    assert source.read("link.jpg") == b"cats/b.JPEG"
    assert source.read("dogs/up.jpg") == b"a.jpg"
    # Size and time are those of the file itself: a changed one is found through every name.
    assert (found["link.jpg"].size, found["link.jpg"].etag) == (
        found["cats/b.JPEG"].size,
        found["cats/b.JPEG"].etag,
    )


def test_folder__links_to_folders_are_not_followed(folder: Path, tmp_path: Path) -> None:
    before = keys(open_source(str(folder), COLUMNS))
    (folder / "round").symlink_to(".")
    (folder / "out").symlink_to(tmp_path)
    assert keys(open_source(str(folder), COLUMNS)) == before


def test_folder__what_leads_out_of_it_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (folder / "out").symlink_to(tmp_path)
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "first.jpg").symlink_to("link.jpg")
    source = open_source(str(folder), COLUMNS)
    assert {"first.jpg", "link.jpg"} < set(keys(source))  # rows with a reason, and no gap
    for key in (
        "link.jpg",
        "first.jpg",
        "../secret.jpg",
        "cats/../../secret.jpg",
        "out/secret.jpg",
    ):
        assert "leads out of the data set" in refusal(source, key)
    assert "not one of a file" in refusal(source, "a\0.jpg")
    assert refusal(source, str(tmp_path / "secret.jpg")) == "is no longer in the data set"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    source = open_source(f"{tmp_path}/plain/*.jpg", COLUMNS)
    assert keys(source) == ["link.jpg"]
    assert "leads out of the data set" in refusal(source, "link.jpg")


def test_folder__may_be_reached_by_a_link_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder.name)
    source = open_source(str(tmp_path / "current"), COLUMNS)
    assert source.read(keys(source)[0]) == b"a.jpg"


def test_folder__a_huge_file_is_refused_before_it_is_read(folder: Path) -> None:
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate(10 << 30)
    source = open_source(str(folder), COLUMNS)
    assert next(e for e in source.entries() if e.key == "huge.jpg").size == 10 << 30
    assert refusal(source, "huge.jpg").startswith("10737418240 bytes are more than the 268435456")
    small = open_source(str(folder), COLUMNS, max_bytes=5)
    assert small.read("a.jpg") == b"a.jpg"
    assert refusal(small, "dogs/d.webp").startswith("11 bytes are more than the 5 allowed")


def test_folder__a_file_that_grows_is_not_half_a_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(folder), COLUMNS)
    mode = (folder / "a.jpg").stat().st_mode
    facts = SimpleNamespace(st_mode=mode, st_size=3)
    monkeypatch.setattr("infra.local_files.os.fstat", lambda descriptor: facts)
    assert "grew while it was read" in refusal(source, "a.jpg")


def test_folder__what_may_not_be_read_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(folder), COLUMNS)

    def refuse(*arguments: object, **options: object) -> int:
        raise PermissionError(13, "Permission denied")

    # Not by chmod: whoever runs the tests may be root.
    with monkeypatch.context() as patch:
        patch.setattr("infra.local_files.os.open", refuse)
        assert refusal(source, "a.jpg") == "cannot be read: Permission denied"
    monkeypatch.setattr("infra.local_files.os.listdir", refuse)
    with pytest.raises(SourceError, match=r"listing failed: .*Permission denied.*run again"):
        keys(source)
