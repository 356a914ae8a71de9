"""Data sets of pictures: a folder, a glob, or Parquet with a column of encoded images.

Both sides read them: extraction lists and reads, training reads again by key, evaluation reads
labels too. Whatever fsspec opens works (a path, s3://, https://).
"""

import glob
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import ConfigError, ImageError, SourceError
from schemas.extract_config import Columns

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".jp2", ".avif", ".ico", ".tga"}
)
PARQUET_BYTES_HELD = 256 << 20
"""Decoded row groups that a Parquet source keeps for reading by key, in bytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of a source: its key, and what tells whether it has changed."""

    key: str
    size: int
    etag: str
    label: str | None = None


class Source(Protocol):
    url: str

    def entries(self) -> Iterator[Entry]:
        """Every picture once; labels where the source has them."""

    def read(self, key: str) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: it is gone (`missing`), or may not be read: a fact about this picture.
            SourceError: reading failed for another reason, which may pass.
        """


def open_source(url: str, columns: Columns) -> Source:
    """The data set at a path or URL; a local path is made absolute, so that it means the same to
    every worker and to a later training run.

    Raises:
        ConfigError: nothing is there.
    """
    url = url if "://" in url else os.path.abspath(os.path.expanduser(url))
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"images {url}: {error}") from None
    # What is there comes before what looks like a pattern: names may have brackets in them.
    if filesystem.isfile(path) and _is_parquet(path):
        return ParquetSource(url, filesystem, [path], columns)
    if filesystem.isfile(path) and _is_picture(path):
        return FolderSource(url, filesystem, path.rpartition("/")[0], [path])
    if filesystem.isdir(path):
        names = _parquet_alone(filesystem, path)
        if names:
            return ParquetSource(url, filesystem, names, columns)
        return FolderSource(url, filesystem, path, None)
    if glob.has_magic(path):
        names = sorted(name for name in filesystem.glob(path) if filesystem.isfile(name))
        if names and all(map(_is_parquet, names)):
            return ParquetSource(url, filesystem, names, columns)
        return FolderSource(url, filesystem, _fixed_part(path), names)
    raise ConfigError(
        f"images {url}: no picture, Parquet file or folder is there; give a folder of pictures, a "
        "glob, or a .parquet file"
    )


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def _is_picture(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def _parquet_alone(filesystem: Any, folder: str) -> list[str]:
    """The Parquet files below a folder, if there are no pictures beside them."""
    names: list[str] = []
    for path, _, files in filesystem.walk(folder):
        if any(map(_is_picture, files)):
            return []
        names += [f"{path}/{name}" for name in files if _is_parquet(name)]
    return sorted(names)


class FolderSource:
    """Files with a picture's suffix. A file's label is the name of the folder it lies in."""

    def __init__(self, url: str, filesystem: Any, root: str, names: list[str] | None) -> None:
        self.url = url
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._names = names

    def entries(self) -> Iterator[Entry]:
        if self._names is None:
            found = self._filesystem.find(self._root, detail=True)
        else:
            found = {name: self._filesystem.info(name) for name in self._names}
        for name, info in sorted(found.items()):
            # Neither pipes nor devices: reading one may never end.
            if not _is_picture(name) or info["type"] != "file":
                continue
            stamp = info.get("ETag") or info.get("etag") or info.get("mtime") or ""
            key = name[len(self._root) :].lstrip("/")
            try:
                key.encode()
            except UnicodeEncodeError:
                raise ConfigError(
                    f"images {self.url}: the file name {key!r} is not UTF-8; rename it"
                ) from None
            yield Entry(key, int(info["size"] or 0), str(stamp), PurePosixPath(name).parent.name)

    def read(self, key: str) -> bytes:
        try:
            return bytes(self._filesystem.cat_file(f"{self._root}/{key}"))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ImageError("is no longer in the data set", missing=True) from None
        except PermissionError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}") from None
        except OSError as error:
            raise SourceError(
                f"images {self.url}: reading {key} failed: {error.strerror or error}; what was "
                "committed stays, run again when the data set can be read"
            ) from None


class ParquetSource:
    """Rows of Parquet files; an image is bytes, or a struct that has them under `bytes`."""

    def __init__(self, url: str, filesystem: Any, names: list[str], columns: Columns) -> None:
        self.url = url
        self._filesystem = filesystem
        self._names = names
        self._columns = columns
        self._places: dict[str, tuple[int, int, int]] | None = None
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._files: dict[int, pq.ParquetFile] = {}
        self._lock = threading.Lock()

    def entries(self) -> Iterator[Entry]:
        for number, name in enumerate(self._names):
            file = self._open(number)
            present = file.schema_arrow.names
            for column in (self._columns.image, self._columns.key):
                if column not in present:
                    raise ConfigError(
                        f"images {self.url}: {name} has no column {column!r}; it has "
                        f"{', '.join(present)}. Set images.columns"
                    )
            wanted = [self._columns.key, self._columns.image]
            has_label = self._columns.label in present
            for group in range(file.num_row_groups):
                table = self._read(number, group, wanted + [self._columns.label] * has_label)
                keys = table[self._columns.key].to_pylist()
                images = _binary(table[self._columns.image])
                labels = table[self._columns.label].to_pylist() if has_label else None
                for index, key in enumerate(keys):
                    if key is None:
                        raise ConfigError(
                            f"images {self.url}: a row of {name} has no {self._columns.key!r}; "
                            "every picture needs a key"
                        )
                    data = images[index].as_buffer() or b""
                    label = None if labels is None or labels[index] is None else str(labels[index])
                    # It is in memory; files have a time stamp instead.
                    yield Entry(str(key), len(data), f"{zlib.crc32(data):08x}", label)

    def read(self, key: str) -> bytes:
        with self._lock:
            if self._places is None:
                self._places = self._index()
            if key not in self._places:
                raise ImageError("is no longer in the data set", missing=True)
            number, group, row = self._places[key]
            images = self._group(number, group)
        return bytes(images[row].as_py() or b"")

    def _index(self) -> dict[str, tuple[int, int, int]]:
        places: dict[str, tuple[int, int, int]] = {}
        for number in range(len(self._names)):
            for group in range(self._open(number).num_row_groups):
                column = self._read(number, group, [self._columns.key])[self._columns.key]
                for row, key in enumerate(column.to_pylist()):
                    places[str(key)] = (number, group, row)
        return places

    def _group(self, number: int, group: int) -> pa.ChunkedArray:
        place = (number, group)
        if place not in self._groups:
            table = self._read(number, group, [self._columns.image])
            self._groups[place] = _binary(table[self._columns.image])
            while len(self._groups) > 1 and self._bytes_held() > PARQUET_BYTES_HELD:
                self._groups.popitem(last=False)
        self._groups.move_to_end(place)
        return self._groups[place]

    def _bytes_held(self) -> int:
        return sum(images.nbytes for images in self._groups.values())

    def _read(self, number: int, group: int, columns: list[str]) -> pa.Table:
        try:
            return self._open(number).read_row_group(group, columns)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"images {self._names[number]}: row group {group} cannot be read: {error}; restore "
                "the file and run again"
            ) from None

    def _open(self, number: int) -> pq.ParquetFile:
        if number not in self._files:
            try:
                self._files[number] = pq.ParquetFile(self._filesystem.open(self._names[number]))
            except (pa.ArrowException, OSError) as error:
                raise ConfigError(f"images {self._names[number]}: {error}") from None
        return self._files[number]


def _binary(images: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bytes of an image column. Raises ConfigError where it is neither bytes nor such a struct."""
    kind = images.type
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not is_struct and not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ConfigError(
            f"images: the image column is of type {kind}; encoded pictures as bytes, or a struct "
            "with a field `bytes`, are expected. Set images.columns.image"
        )
    if is_struct:
        return pa.chunked_array([chunk.field("bytes") for chunk in images.chunks])
    return images


def _fixed_part(pattern: str) -> str:
    """The folders of a glob before its first wildcard: keys are relative to it."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first])
