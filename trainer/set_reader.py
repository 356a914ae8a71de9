"""One feature set of a pinned snapshot: a block of rows in one ranged read, every byte checked."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from crc32c import crc32c

from infra.catalog import get_checked, read_teacher
from infra.codec.codec import TokenCodec, open_codec
from infra.store import ObjectStore
from schemas import shard, tables
from schemas.errors import DamageError, NotFound
from schemas.layout import SetPath
from schemas.measured import CodecRecord
from schemas.names import BLOCK_ROWS
from schemas.records import ObjectRecord
from schemas.sealed import digest, unseal
from trainer.shard_rows import Halves, Held, ShardRows, unpack

Floats = npt.NDArray[np.float32]
KNOWN_BYTES = 512
"""Key, draws, checksums and hashes of one row, roughly: they outweigh the smallest features."""
HELD_SHARDS = 512
"""Shard indices, and CLS tables, held at a time."""


@dataclass(frozen=True)
class Statistics:
    """What a set's features are standardised by, float32; raw = mean + std x stored."""

    tokens_mean: Floats
    """[patch_width], as tokens_std."""
    tokens_std: Floats
    cls_mean: Floats | None
    """[cls_width], as cls_std; None without a CLS."""
    cls_std: Floats | None


@dataclass(frozen=True)
class TeacherInfo:
    """What a training run needs to know of a cached teacher."""

    fingerprint: str
    grids: tuple[int, ...]
    patch_width: int
    cls_width: int | None
    statistics: dict[int, Statistics]
    """By grid."""
    codecs: dict[int, TokenCodec]
    """By grid."""


@dataclass(frozen=True)
class SetBlock:
    """One set's rows of a block."""

    tokens: shard.Rows
    """[rows, height, width] of the codec's form, as they lie in the cache; zeros in bad rows."""
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
        self.record = read_teacher(store, path.fingerprint12)
        self._pixels = self.record.pixels(path.grid)
        self._schema = tables.cls_schema(self.record.cls_width)
        mine = table.filter(pc.equal(table["set"], str(path)))
        self._shards = mine.sort_by([("generation", "ascending"), ("shard", "ascending")])
        """One line a shard; looked up by bisection, because there may be millions."""
        self._generations = np.asarray(self._shards["generation"], np.int64)
        self._numbers = np.asarray(self._shards["shard"], np.int64)
        self._shard_rows = {
            generation: self._frozen_shard_rows(generation)
            for generation in np.unique(self._generations).tolist()
        }
        self._lines: Held[dict[str, Any]] = Held(HELD_SHARDS)
        self._indices: Held[npt.NDArray[np.uint64]] = Held(HELD_SHARDS)
        self._tables: Held[ShardRows] = Held(HELD_SHARDS)

    @property
    def row_bytes(self) -> int:
        """Of a row's tokens and CLS as they are handed out, and what is known of it beside."""
        return self._form.bytes + 2 * (self.record.cls_width or 0) + KNOWN_BYTES

    @cached_property
    def codec(self) -> TokenCodec:
        key = self.path.codec_json
        record = unseal(self._checked(key, self._line_at(0)["codec_sha256"]), CodecRecord, key)
        return open_codec(self._store, record)

    @cached_property
    def _form(self) -> shard.RowForm:
        return self.codec.row_form(self.path.grid**2)

    @cached_property
    def statistics(self) -> Statistics:
        codec = self.codec.record
        mean, std = (
            np.asarray(values, np.float32) for values in (codec.tokens.mean, codec.tokens.std)
        )
        if codec.cls is None:
            return Statistics(mean, std, None, None)
        cls = (np.asarray(values, np.float32) for values in (codec.cls.mean, codec.cls.std))
        return Statistics(mean, std, *cls)

    def covered(self, generation: int, blocks: int) -> npt.NDArray[np.bool_]:
        mask = np.zeros(blocks, bool)
        if generation in self._shard_rows:
            per_shard = self._shard_rows[generation] // BLOCK_ROWS
            numbers = self._numbers[self._generations == generation]
            inside = (numbers[:, None] * per_shard + np.arange(per_shard)).reshape(-1)
            mask[inside[inside < blocks]] = True
        return mask

    def read(self, generation: int, plan_first_row: int, first: int, plan: pa.Table) -> SetBlock:
        """Rows [first, first + len(plan)) of a generation, checked against the plan's keys."""
        number, inside = divmod(first, self._shard_rows[generation])
        place = (generation, number)
        line = self._lines.get(place, lambda: self._line(*place))
        rows = self._tables.get(place, lambda: self._shard_rows_of(line))
        block = slice(inside, inside + len(plan))
        if not rows.are_of_plan(block, plan_first_row + first, plan):
            raise self._damage(
                line["cls_key"],
                f"its rows from {plan_first_row + first} on are not those of the plan",
            )
        index = self._indices.get(place, lambda: self._index(line, generation))
        return SetBlock(
            tokens=self._tokens(line, index, inside, rows.ok[block], rows.checksums[block]),
            cls=None if rows.cls is None else rows.cls[block],
            ok=rows.ok[block],
            image_sha256=rows.image_sha256[block],
            pixels_sha256=rows.pixels_sha256[block],
            pixels=self._pixels,
        )

    def _tokens(
        self,
        line: dict[str, Any],
        index: npt.NDArray[np.uint64],
        inside: int,
        ok: npt.NDArray[np.bool_],
        checksums: list[int | None],
    ) -> shard.Rows:
        """Rows [inside, inside + len(ok)) of a shard, in one ranged read; each must be the one
        whose checksum the CLS table names, not merely sound."""
        key = line["tokens_key"]
        entries = index[inside : inside + len(ok)]
        if not np.array_equal(shard.is_absent(entries), ~ok):
            raise self._damage(key, "its index and its CLS table disagree on which rows are good")
        form = self._form
        shape = (form.height, form.width)
        if not ok.any():
            return np.zeros((len(ok), *shape), form.dtype)
        size = form.bytes + shard.CRC_BYTES
        start, count = int(entries[ok][0, 0]), int(ok.sum())
        if not np.array_equal(entries[ok][:, 0], start + size * np.arange(count, dtype=np.uint64)):
            raise self._damage(key, "its rows do not follow one another")
        data = self._get_range(key, start, start + size * count)
        self._refuse_other_chunks(key, data, inside, np.flatnonzero(ok).tolist(), checksums)
        # The rows as they lie, without a copy: a view that steps over each one's checksum.
        kind = np.dtype(form.dtype).newbyteorder("<")
        bodies = np.frombuffer(data, np.uint8).reshape(count, size)[:, : form.bytes]
        rows = bodies.view(kind).reshape(count, *shape)
        if ok.all():
            return rows
        tokens = np.zeros((len(ok), *shape), form.dtype)
        tokens[ok] = rows
        return tokens

    def _line(self, generation: int, number: int) -> dict[str, Any]:
        begin, end = np.searchsorted(self._generations, [generation, generation + 1])
        return self._line_at(int(begin + np.searchsorted(self._numbers[begin:end], number)))

    def _line_at(self, place: int) -> dict[str, Any]:
        found: dict[str, Any] = self._shards.slice(place, 1).to_pylist()[0]
        return found

    def _index(self, line: dict[str, Any], generation: int) -> npt.NDArray[np.uint64]:
        rows, key = self._shard_rows[generation], line["tokens_key"]
        data = self._get_range(key, 0, shard.index_bytes(rows))
        return shard.decode_index(data, f"{self._store.url}: {key}", rows)

    def _get_range(self, key: str, start: int, end: int) -> memoryview:
        try:
            return self._store.get_range(key, start, end)
        except NotFound:
            raise self._damage(key, "is missing") from None

    def _refuse_other_chunks(
        self, key: str, data: memoryview, inside: int, rows: list[int], checksums: list[int | None]
    ) -> None:
        """Each chunk read must be whole, sound, and the one that the CLS table names."""
        body = self._form.bytes
        size = body + shard.CRC_BYTES
        if len(data) == size * len(rows):
            ends = np.frombuffer(data, np.uint8).reshape(len(rows), size)[:, body:]
            stored = np.ascontiguousarray(ends).view("<u4")[:, 0].tolist()
            found = [crc32c(data[start : start + body]) for start in range(0, len(data), size)]
            if found == stored == [checksums[row] for row in rows]:
                return
        for place, row in enumerate(rows):
            chunk = data[place * size : (place + 1) * size]
            shard.check_chunk(chunk, f"{self._store.url}: {key}", inside + row)
            if shard.stored_checksum(chunk) != checksums[row]:
                raise self._damage(key, f"row {inside + row} of the shard is of another row")
        raise self._damage(key, "a ranged read gave more bytes than were asked for")

    def _shard_rows_of(self, line: dict[str, Any]) -> ShardRows:
        record = ObjectRecord(key=line["cls_key"], size=line["cls_size"], sha256=line["cls_sha256"])
        table = tables.from_parquet(get_checked(self._store, record), record.key, self._schema)
        return unpack(table, self.record.cls_width)

    def _frozen_shard_rows(self, generation: int) -> int:
        line = self._line_at(int(np.searchsorted(self._generations, generation)))
        return shard.rows_per_shard_of(
            self._checked(self.path.array(generation), line["array_sha256"])
        )

    def _checked(self, key: str, sha256: str) -> bytes:
        try:
            data = self._store.get(key)
        except NotFound:
            raise self._damage(key, "is missing") from None
        if digest(data) != sha256:
            raise self._damage(key, "is not what the commits name")
        return data

    def _damage(self, key: str, what: str) -> DamageError:
        return DamageError(
            f"{self._store.url}: {key}: {what}; `teachonce verify` names all damage", key=key
        )
