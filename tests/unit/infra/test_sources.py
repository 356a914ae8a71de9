import os
import socket
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.sources import Source, open_source
from schemas.errors import ConfigError, ImageError, SourceError
from schemas.extract_config import Columns
from tests.builders import photograph_bytes

COLUMNS = Columns()


def keys(source: Source) -> list[str]:
    return [entry.key for entry in source.entries()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos [2024]"
    for name in (
        "a.jpg",
        "cats/b.JPEG",
        "cats/deep/c.Png",
        "dogs/d.webp",
        "dogs/notes.txt",
        "README",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def test_folder__recursive_by_suffix_in_any_case(folder: Path) -> None:
    source = open_source(str(folder), COLUMNS)
    entries = {entry.key: entry for entry in source.entries()}
    assert list(entries) == ["a.jpg", "cats/b.JPEG", "cats/deep/c.Png", "dogs/d.webp"]
    assert entries["cats/b.JPEG"].label == "cats"
    assert entries["dogs/d.webp"].label == "dogs"
    assert [source.read(key).decode() for key in entries] == list(entries)
    assert [entry.size for entry in entries.values()] == [len(key) for key in entries]


def test_folder__a_relative_path_means_the_same_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(folder.name, COLUMNS)
    assert source.url == str(folder)
    monkeypatch.chdir("/")
    assert len(keys(source)) == 4


def test_folder__a_changed_file_has_another_etag(folder: Path) -> None:
    source = open_source(str(folder), COLUMNS)
    before = next(source.entries())
    os.utime(folder / "a.jpg", ns=(1, 1))
    after = next(source.entries())
    assert (before.key, before.size) == (after.key, after.size)
    assert before.etag != after.etag


def test_folder__a_vanished_file_is_a_reason(folder: Path) -> None:
    with pytest.raises(ImageError, match="no longer in the data set"):
        open_source(str(folder), COLUMNS).read("gone.jpg")


def test_folder__empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert keys(open_source(str(tmp_path / "empty"), COLUMNS)) == []


@pytest.mark.parametrize("name", ["nowhere", "nowhere.parquet", "s4://bucket/x"])
def test_open_source__nothing_there(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"images .*(no picture, Parquet file or folder|Protocol not known)"
    ):
        open_source(name, COLUMNS)


def test_glob__keys_are_relative_to_its_fixed_part(tmp_path: Path) -> None:
    for name in ("x/1/a.jpg", "x/2/b.jpg", "x/2/c.png", "y/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = open_source(f"{tmp_path}/x/*/*.jpg", COLUMNS)
    assert keys(source) == ["1/a.jpg", "2/b.jpg"]
    assert source.read("2/b.jpg") == b"x/2/b.jpg"
    assert keys(open_source(f"{tmp_path}/x/**", COLUMNS)) == ["1/a.jpg", "2/b.jpg", "2/c.png"]
    assert keys(open_source(f"{tmp_path}/x/*.gif", COLUMNS)) == []


IMAGES = [photograph_bytes(seed, 16, 16) for seed in range(5)]
TYPES = {"bytes": IMAGES, "struct": [{"bytes": data, "path": None} for data in IMAGES]}


def write(path: Path, kind: str, first: int = 0, **more: list[object]) -> Path:
    columns = {"image": TYPES[kind], "path": [f"{first + n}.jpg" for n in range(5)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**columns, **more}), path, row_group_size=2)
    return path


@pytest.mark.parametrize("kind", TYPES)
def test_parquet__bytes_and_structs(tmp_path: Path, kind: str) -> None:
    source = open_source(str(write(tmp_path / "a.parquet", kind, label=[3, 1, 4, 1, 5])), COLUMNS)
    entries = list(source.entries())
    assert [entry.key for entry in entries] == [f"{n}.jpg" for n in range(5)]
    assert [entry.label for entry in entries] == ["3", "1", "4", "1", "5"]
    assert [entry.size for entry in entries] == [len(data) for data in IMAGES]
    for number in (4, 0, 3, 3, 1, 2):
        assert source.read(f"{number}.jpg") == IMAGES[number]


def test_parquet__without_labels(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "a.parquet", "bytes")), COLUMNS)
    assert {entry.label for entry in source.entries()} == {None}


@pytest.mark.parametrize("name", ["", "*.parquet", "part-?.PARQUET"])
def test_parquet__many_files(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data.parquet"  # as Spark names its folders
    for part in range(2):
        suffix = "PARQUET" if "PARQUET" in name else "parquet"
        write(root / f"part-{part}.{suffix}", "struct", first=5 * part)
    source = open_source(str(root / name), COLUMNS)
    assert keys(source) == [f"{n}.jpg" for n in range(10)]
    assert source.read("7.jpg") == IMAGES[2]


def test_parquet__no_picture_in_a_row(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([None, b"x"], pa.binary()), "path": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), COLUMNS)
    assert [(entry.key, entry.size) for entry in source.entries()] == [("a", 0), ("b", 1)]
    assert source.read("a") == b""


def test_parquet__no_rows(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "path": pa.array([], pa.string())}),
        tmp_path / "a.parquet",
    )
    assert keys(open_source(str(tmp_path / "a.parquet"), COLUMNS)) == []


def test_parquet__missing_column_names_what_is_there(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "a.parquet", "bytes")), Columns(image="jpeg"))
    with pytest.raises(ConfigError) as caught:
        keys(source)
    assert "has no column 'jpeg'; it has image, path. Set images.columns" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" * 20])
def test_parquet__another_file_of_that_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.parquet: "):
        keys(open_source(str(tmp_path / "a.parquet"), COLUMNS))


def test_parquet__unknown_key_is_a_reason(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "a.parquet", "bytes")), COLUMNS)
    with pytest.raises(ImageError, match="no longer in the data set"):
        source.read("9.jpg")


def test_open_source__parquet_beside_pictures_is_not_the_data_set(folder: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), folder / "meta.parquet")
    assert len(keys(open_source(str(folder), COLUMNS))) == 4


def test_open_source__parquet_in_folders(tmp_path: Path) -> None:
    part = tmp_path / "data" / "year=2026" / "part.parquet"
    part.parent.mkdir(parents=True)
    pq.write_table(pa.table({"path": ["k"], "image": [b"bytes"]}), part)
    assert keys(open_source(str(tmp_path / "data"), COLUMNS)) == ["k"]


def test_open_source__one_picture(folder: Path) -> None:
    source = open_source(str(folder / "cats" / "b.JPEG"), COLUMNS)
    assert keys(source) == ["b.JPEG"]
    assert source.read("b.JPEG") == b"cats/b.JPEG"


def refusal(source: Source, key: str) -> str:
    with pytest.raises(ImageError) as caught:
        source.read(key)
    return str(caught.value)


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
    monkeypatch.setattr("fsspec.implementations.local.os.scandir", refuse)
    with pytest.raises(SourceError, match=r"listing failed: .*Permission denied.*run again"):
        keys(source)


def test_parquet__keys_are_names_and_no_paths(tmp_path: Path) -> None:
    names = ["../../etc/passwd", "/etc/passwd", "a\nb", "", "\x1b[31m", "https://u:p@h/x"]
    table = pa.table({"image": [name.encode() for name in names], "path": names})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), COLUMNS)
    assert keys(source) == names
    assert [source.read(name).decode() for name in names] == names


def test_parquet__a_picture_of_too_many_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", "bytes")
    assert "bytes are more than the 10 allowed" in refusal(
        open_source(str(path), COLUMNS, max_bytes=10), "0.jpg"
    )


def test_folder__a_vanished_file_is_told_from_a_fault_that_passes(folder: Path) -> None:
    source = open_source(str(folder), COLUMNS)
    with pytest.raises(ImageError) as gone:
        source.read("gone.jpg")
    assert gone.value.__dict__["missing"]
    os.symlink("loop.jpg", folder / "loop.jpg")
    with pytest.raises(SourceError, match=r"reading loop\.jpg failed.*run again"):
        source.read("loop.jpg")


def test_parquet__damage_is_never_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"path": ["k"] * 99, "image": [os.urandom(99)] * 99}), path)
    whole = path.read_bytes()
    for place in range(4, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        # Nothing but our own errors: a flip may also hit what is not read, or a picture's bytes.
        with suppress(ConfigError, SourceError, ImageError):
            source = open_source(str(path), COLUMNS)
            for key in keys(source):
                source.read(key)


def test_parquet__a_row_without_key(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["k", None], "image": [b"1", b"2"]}), tmp_path / "d.parquet")
    with pytest.raises(ConfigError, match="every picture needs a key"):
        keys(open_source(str(tmp_path / "d.parquet"), COLUMNS))
