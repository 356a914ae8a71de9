import os
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.sources import open_source
from schemas.errors import ConfigError, ImageError, SourceError
from schemas.extract_config import Columns
from tests.builders import photograph_bytes
from tests.unit.infra.reading import COLUMNS, keys, refusal

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
