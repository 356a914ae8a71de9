"""One feature set of a pinned snapshot: a block of rows in one ranged read, every byte checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

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
from trainer.disk_cache import WHOLE, DiskCache
from trainer.shard_rows import COLUMNS, KNOWN_BYTES, BlockRows, Halves, Held, unpack
from trainer.teacher_info import Statistics

Value = TypeVar("Value")
HELD_SHARDS = 512
"""Whose indices, and lines of the snapshot, are held at a time."""
HELD_BYTES = 64 << 20
"""Of CLS tables, and as much of what they say of blocks: all of a small cache, for its epochs to
come."""


@dataclass(frozen=True)
class SetBlock:
    """What one set says of a block's rows, beside their tokens."""

    cls: Halves | None
    """[rows, cls_width], standardised; zeros in bad rows."""
    ok: npt.NDArray[np.bool_]
    image_sha256: list[bytes | None]
    pixels_sha256: list[bytes | None]
    pixels: int
    """Side of the squares that `pixels_sha256` is of."""


class SetReader:
    """One feature set within a snapshot.

    Args:
        disk: the store, where it keeps what is read. Blocks are then read in one piece, whatever of
            them is wanted.
    """

    def __init__(
        self, store: ObjectStore, path: SetPath, table: pa.Table, disk: DiskCache | None
    ) -> None:
        self._store, self.path, self._disk = store, path, disk
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
        self._tables: Held[tables.Blocks] = Held(HELD_BYTES, lambda table: table.bytes)
        self._rows: Held[BlockRows] = Held(HELD_BYTES, lambda rows: rows.bytes)

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

    def rows(self, count: int) -> shard.Rows:
        """Room for the tokens of as many rows [count, height, width]."""
        form = self._form
        rows: shard.Rows = np.empty((count, form.height, form.width), form.dtype)
        return rows

    def read(
        self,
        generation: int,
        plan_first_row: int,
        first: int,
        plan: pa.Table,
        into: Mapping[int, shard.Rows],
    ) -> SetBlock:
        """Rows [first, first + len(plan)) of a generation, checked against the plan's keys; the
        tokens of some of them, counted from `first`, go where `into` says."""
        number, inside = divmod(first, self._shard_rows[generation])
        place = (generation, number)
        line = self._lines.get(place, lambda: self._line(*place))
        rows = self._rows.get((generation, first), lambda: self._rows_of(place, line, inside))
        if not rows.are_of_plan(plan_first_row + first, plan):
            raise self._damage(
                line["cls_key"],
                f"its rows from {plan_first_row + first} on are not those of the plan",
            )
        index = self._indices.get(place, lambda: self._index(line, generation))
        self._read_tokens(line, index, inside, rows.ok, rows.checksums, into)
        return SetBlock(
            cls=rows.cls,
            ok=rows.ok,
            image_sha256=rows.image_sha256,
            pixels_sha256=rows.pixels_sha256,
            pixels=self._pixels,
        )

    def _read_tokens(
        self,
        line: dict[str, Any],
        index: npt.NDArray[np.uint64],
        inside: int,
        ok: npt.NDArray[np.bool_],
        checksums: list[int | None],
        into: Mapping[int, shard.Rows],
    ) -> None:
        """Some of the rows [inside, inside + len(ok)) of a shard, in one ranged read; each must be
        the one whose checksum the CLS table names, not merely sound."""
        key = line["tokens_key"]
        entries = index[inside : inside + len(ok)]
        if not np.array_equal(shard.is_absent(entries), ~ok):
            raise self._damage(key, "its index and its CLS table disagree on which rows are good")
        good = [row for row in into if ok[row]]
        for row in into.keys() - set(good):
            into[row][...] = 0
        if not good:
            return
        there = np.flatnonzero(ok)
        if self._disk is None:
            there = there[(there >= min(good)) & (there <= max(good))]
        size = self._form.bytes + shard.CRC_BYTES
        start = int(entries[there[0], 0])
        if not np.array_equal(entries[there, 0], start + size * np.arange(len(there), dtype="u8")):
            raise self._damage(key, "its rows do not follow one another")
        # Rows between them that nobody wants are read as well: two reads cost more than one.
        bodies = [into[row] if row in into else self.rows(1)[0] for row in there.tolist()]
        ends = np.zeros(len(bodies), "<u4")
        buffers = [part for i, body in enumerate(bodies) for part in (body, ends[i : i + 1])]

        def read() -> None:
            try:
                count = self._store.fill(key, start, buffers)
            except NotFound:
                raise self._damage(key, "is missing") from None
            for place, (row, body, end) in enumerate(zip(there.tolist(), bodies, ends.tolist())):
                if count < size * (place + 1) or crc32c(body.data) != end:
                    raise self._damage(key, f"row {inside + row} of the shard is damaged")
                if end != checksums[row]:
                    raise self._damage(key, f"row {inside + row} of the shard is of another row")

        self._unless_kept(read, key, start, start + size * len(there))

    def _unless_kept(self, read: Callable[[], Value], key: str, start: int, end: int) -> Value:
        """What is kept on a disk may have been damaged when it was read, or repaired since."""
        try:
            return read()
        except DamageError:
            if self._disk is None or not self._disk.forget(key, start, end):
                raise
            return read()

    def _line(self, generation: int, number: int) -> dict[str, Any]:
        begin, end = np.searchsorted(self._generations, [generation, generation + 1])
        return self._line_at(int(begin + np.searchsorted(self._numbers[begin:end], number)))

    def _line_at(self, place: int) -> dict[str, Any]:
        found: dict[str, Any] = self._shards.slice(place, 1).to_pylist()[0]
        return found

    def _index(self, line: dict[str, Any], generation: int) -> npt.NDArray[np.uint64]:
        rows, key = self._shard_rows[generation], line["tokens_key"]
        end = shard.index_bytes(rows)

        def read() -> npt.NDArray[np.uint64]:
            try:
                data = self._store.get_range(key, 0, end)
            except NotFound:
                raise self._damage(key, "is missing") from None
            return shard.decode_index(data, f"{self._store.url}: {key}", rows)

        return self._unless_kept(read, key, 0, end)

    def _rows_of(self, place: tuple[int, int], line: dict[str, Any], inside: int) -> BlockRows:
        table = self._tables.get(place, lambda: self._table(line))
        return unpack(table.block(inside // BLOCK_ROWS, COLUMNS), self.record.cls_width)

    def _table(self, line: dict[str, Any]) -> tables.Blocks:
        record = ObjectRecord(key=line["cls_key"], size=line["cls_size"], sha256=line["cls_sha256"])
        return self._unless_kept(
            lambda: tables.Blocks(get_checked(self._store, record), record.key, self._schema),
            record.key,
            *WHOLE,
        )

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
