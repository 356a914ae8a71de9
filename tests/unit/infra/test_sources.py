import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.sources import open_source
from schemas.errors import ConfigError, ImageError, SourceError
from tests.unit.infra.reading import COLUMNS, keys


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


def test_folder__a_vanished_file_is_told_from_a_fault_that_passes(folder: Path) -> None:
    source = open_source(str(folder), COLUMNS)
    with pytest.raises(ImageError) as gone:
        source.read("gone.jpg")
    assert gone.value.__dict__["missing"]
    os.symlink("loop.jpg", folder / "loop.jpg")
    with pytest.raises(SourceError, match=r"reading loop\.jpg failed.*run again"):
        source.read("loop.jpg")
