"""Pictures in Parquet files, read by row group and held by key."""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.entry import Entry
from infra.local_files import too_large
from infra.redact import harmless, printable, public_url
from infra.source_errors import listing, reading
from schemas.errors import ConfigError, ImageError, SourceError
from schemas.extract_config import Columns

PARQUET_BYTES_HELD = 256 << 20
"""Decoded row groups that a Parquet source keeps for reading by key, in bytes."""


class ParquetSource:
    """Rows of Parquet files; an image is bytes, or a struct that has them under `bytes`."""

    def __init__(
        self, url: str, filesystem: Any, names: list[str], columns: Columns, max_bytes: int
    ) -> None:
        self.url, self.location = public_url(url), url
        self._filesystem = filesystem
        self._names = names
        self._columns = columns
        self._max_bytes = max_bytes
        self._places: dict[str, tuple[int, int, int]] | None = None
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._files: dict[int, pq.ParquetFile] = {}
        self._lock = threading.Lock()

    def entries(self) -> Iterator[Entry]:
        with listing(self.url):
            yield from self._entries()

    def _entries(self) -> Iterator[Entry]:
        for number in range(len(self._names)):
            file = self._open(number)
            name = self._shown(number)
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
                keys = self._texts(table, self._columns.key)
                images = _binary(table[self._columns.image])
                labels = self._texts(table, self._columns.label) if has_label else None
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
        with reading(self.url, key), self._lock:
            if self._places is None:
                self._places = self._index()
            if key not in self._places:
                raise ImageError("is no longer in the data set", missing=True)
            number, group, row = self._places[key]
            picture = self._group(number, group)[row].as_buffer()
        if picture is not None and picture.size > self._max_bytes:
            raise ImageError(too_large(picture.size, self._max_bytes))
        return b"" if picture is None else picture.to_pybytes()

    def _index(self) -> dict[str, tuple[int, int, int]]:
        places: dict[str, tuple[int, int, int]] = {}
        for number in range(len(self._names)):
            for group in range(self._open(number).num_row_groups):
                table = self._read(number, group, [self._columns.key])
                for row, key in enumerate(self._texts(table, self._columns.key)):
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

    def _texts(self, table: pa.Table, column: str) -> list[Any]:
        try:
            values: list[Any] = table[column].to_pylist()
        except UnicodeDecodeError:
            raise ConfigError(
                f"images {self.url}: the column {column!r} holds text that is not UTF-8; write the "
                "file anew"
            ) from None
        return values

    def _shown(self, number: int) -> str:
        return printable(PurePosixPath(public_url(self._names[number])).name)

    def _bytes_held(self) -> int:
        return sum(images.nbytes for images in self._groups.values())

    def _read(self, number: int, group: int, columns: list[str]) -> pa.Table:
        try:
            return self._open(number).read_row_group(group, columns)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"images {self.url}: row group {group} of {self._shown(number)} cannot be read: "
                f"{harmless(str(error))}; restore the file and run again"
            ) from None

    def _open(self, number: int) -> pq.ParquetFile:
        if number not in self._files:
            try:
                self._files[number] = pq.ParquetFile(self._filesystem.open(self._names[number]))
            except (pa.ArrowException, OSError) as error:
                raise ConfigError(
                    f"images {self.url}: {self._shown(number)}: {harmless(str(error))}"
                ) from None
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
