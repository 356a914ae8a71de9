"""One feature set of a pinned snapshot: a block of rows in one ranged read, every byte checked."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.catalog import get_checked, read_teacher
from infra.store import ObjectStore
from schemas import shard, tables
from schemas.errors import DamageError, NotFound
from schemas.layout import SetPath
from schemas.names import BLOCK_ROWS
from schemas.records import ObjectRecord
from schemas.sealed import digest

Halves = npt.NDArray[np.float16]
HELD_SHARDS = 512
"""Shard indices, and CLS tables, held at a time."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class TeacherInfo:
    """What a training run needs to know of a cached teacher."""

    fingerprint: str
    grid: int
    patch_width: int
    cls_width: int | None


@dataclass(frozen=True)
class SetBlock:
    """One set's rows of a block."""

    tokens: Halves
    """[rows, tokens, patch_width], standardised; zeros in bad rows."""
    cls: Halves | None
    """[rows, cls_width], standardised; zeros in bad rows."""
    ok: npt.NDArray[np.bool_]
    image_sha256: list[bytes | None]
    pixels_sha256: list[bytes | None]
    pixels: int
    """Side of the squares that `pixels_sha256` is of."""


class SetReader:
    """One feature set within a snapshot."""

    def __init__(self, store: ObjectStore, path: SetPath, table: pa.Table) -> None:
        self._store, self.path = store, path
        record = read_teacher(store, path.fingerprint12)
        self.info = TeacherInfo(record.fingerprint, path.grid, record.patch_width, record.cls_width)
        self._pixels = record.pixels(path.grid)
        self._schema = tables.cls_schema(record.cls_width)
        mine = table.filter(pc.equal(table["set"], str(path)))
        self._lines: dict[tuple[int, int], dict[str, Any]] = {
            (line["generation"], line["shard"]): line for line in mine.to_pylist()
        }
        arrays = {generation: line["array_sha256"] for (generation, _), line in self._lines.items()}
        self._shard_rows = {
            generation: self._frozen_shard_rows(generation, sha256)
            for generation, sha256 in arrays.items()
        }
        self._indices: _Held[npt.NDArray[np.uint64]] = _Held(HELD_SHARDS)
        self._tables: _Held[pa.Table] = _Held(HELD_SHARDS)

    def covered(self, generation: int, blocks: int) -> npt.NDArray[np.bool_]:
        mask = np.zeros(blocks, bool)
        if generation in self._shard_rows:
            per_shard = self._shard_rows[generation] // BLOCK_ROWS
            for number, shard_number in self._lines:
                if number == generation:
                    mask[shard_number * per_shard : (shard_number + 1) * per_shard] = True
        return mask

    def read(self, generation: int, plan_first_row: int, first: int, plan: pa.Table) -> SetBlock:
        """Rows [first, first + len(plan)) of a generation, checked against the plan's keys."""
        number, inside = divmod(first, self._shard_rows[generation])
        line = self._lines[generation, number]
        place = (generation, number)
        rows = self._tables.get(place, lambda: self._cls_table(line)).slice(inside, len(plan))
        self._refuse_other_rows(line, rows, plan_first_row + first, plan)
        ok = np.asarray(pc.equal(rows["status"], tables.OK))
        index = self._indices.get(place, lambda: self._index(line, generation))
        return SetBlock(
            tokens=self._tokens(line, index, inside, ok, rows["tokens_crc32c"].to_pylist()),
            cls=self._cls(rows, ok),
            ok=ok,
            image_sha256=rows["image_sha256"].to_pylist(),
            pixels_sha256=rows["pixels_sha256"].to_pylist(),
            pixels=self._pixels,
        )

    def _tokens(
        self,
        line: dict[str, Any],
        index: npt.NDArray[np.uint64],
        inside: int,
        ok: npt.NDArray[np.bool_],
        checksums: list[int | None],
    ) -> Halves:
        """Rows [inside, inside + len(ok)) of a shard, in one ranged read; each must be the one
        whose checksum the CLS table names, not merely sound."""
        key = line["tokens_key"]
        entries = index[inside : inside + len(ok)]
        if not np.array_equal(shard.is_absent(entries), ~ok):
            raise self._damage(key, "its index and its CLS table disagree on which rows are good")
        shape = (self.info.grid**2, self.info.patch_width)
        if not ok.any():
            return np.zeros((len(ok), *shape), np.float16)
        size = shape[0] * shape[1] * 2 + shard.CRC_BYTES
        start, count = int(entries[ok][0, 0]), int(ok.sum())
        if not np.array_equal(entries[ok][:, 0], start + size * np.arange(count, dtype=np.uint64)):
            raise self._damage(key, "its rows do not follow one another")
        data = self._get_range(key, start, start + size * count)
        for place, row in enumerate(np.flatnonzero(ok).tolist()):
            chunk = data[place * size : (place + 1) * size]
            shard.check_chunk(chunk, f"{self._store.url}: {key}", inside + row)
            if shard.stored_checksum(chunk) != checksums[row]:
                raise self._damage(key, f"row {inside + row} of the shard is of another row")
        # The rows as they lie, without a copy: a view that steps over each one's checksum.
        rows = np.frombuffer(data, "<f2").reshape(count, -1)[:, : shape[0] * shape[1]]
        if ok.all():
            return rows.reshape(count, *shape)
        tokens = np.zeros((len(ok), *shape), np.float16)
        tokens[ok] = rows.reshape(count, *shape)
        return tokens

    def _index(self, line: dict[str, Any], generation: int) -> npt.NDArray[np.uint64]:
        rows, key = self._shard_rows[generation], line["tokens_key"]
        data = self._get_range(key, 0, shard.index_bytes(rows))
        return shard.decode_index(data, f"{self._store.url}: {key}", rows)

    def _get_range(self, key: str, start: int, end: int) -> memoryview:
        try:
            return self._store.get_range(key, start, end)
        except NotFound:
            raise self._damage(key, "is missing") from None

    def _cls_table(self, line: dict[str, Any]) -> pa.Table:
        record = ObjectRecord(key=line["cls_key"], size=line["cls_size"], sha256=line["cls_sha256"])
        return tables.from_parquet(get_checked(self._store, record), record.key, self._schema)

    def _cls(self, rows: pa.Table, ok: npt.NDArray[np.bool_]) -> Halves | None:
        width = self.info.cls_width
        if width is None:
            return None
        column = rows["cls"].combine_chunks()
        values = np.asarray(column.flatten()).astype(np.float16).reshape(len(rows), width)
        return np.where(ok[:, None], values, np.float16(0))

    def _refuse_other_rows(
        self, line: dict[str, Any], rows: pa.Table, first_row: int, plan: pa.Table
    ) -> None:
        """Alignment is checked by key, never by position alone."""
        expected = pa.array(range(first_row, first_row + len(plan)), pa.int64())
        same = (
            len(rows) == len(plan)
            and rows["row"].combine_chunks().equals(expected)
            and rows["key"].combine_chunks().equals(plan["key"].combine_chunks())
            and rows["view"].combine_chunks().equals(plan["view"].combine_chunks())
        )
        if not same:
            raise self._damage(
                line["cls_key"], f"its rows from {first_row} on are not those of the plan"
            )

    def _frozen_shard_rows(self, generation: int, sha256: str) -> int:
        key = self.path.array(generation)
        try:
            data = self._store.get(key)
        except NotFound:
            raise self._damage(key, "is missing") from None
        if digest(data) != sha256:
            raise self._damage(key, "is not what the commits name")
        return shard.rows_per_shard_of(data)

    def _damage(self, key: str, what: str) -> DamageError:
        return DamageError(
            f"{self._store.url}: {key}: {what}; `teachonce verify` names all damage", key=key
        )


class _Held(Generic[Value]):
    """The most recently used values of a slow function, for many threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)
        return value
