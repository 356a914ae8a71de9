"""Some rows of a feature set: chosen by a keyed hash, however many there are, and read alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.catalog import is_superseded
from infra.pixels.views import Draws, draws_of_row
from infra.plan_reader import PlanReader
from infra.store import ObjectStore
from pipeline.bad_rows import cls_table
from pipeline.checks import Line
from pipeline.encode import Halves
from schemas import shard, tables
from schemas.errors import DamageError
from schemas.keyed_hash import mix
from schemas.layout import SetPath
from schemas.sealed import digest
from schemas.spans import Whole

Chosen = list[tuple[Line, Whole]]
"""Lines of a snapshot, each with places among those of its rows that count."""


@dataclass(frozen=True)
class StoredRow:
    """What a cache holds of one row of a set."""

    row: int
    """Of the plan."""
    generation: int
    key: str
    view: int
    draws: Draws | None
    image_sha256: bytes
    pixels_sha256: bytes
    tokens: shard.Rows
    """[height, width], as they lie in their shard."""
    cls: Halves | None
    """[channels], standardised."""

    def __str__(self) -> str:
        return f"row {self.row} ({self.key}, view {self.view})"


def choose(
    store: ObjectStore,
    lines: pa.Table,
    plans: Sequence[PlanReader],
    superseded: Whole,
    count: int,
    key: int,
) -> Chosen:
    """`count` of a set's rows that count, or all where there are not as many: one of each of as
    many equal stretches. Rows count that are good and stand anew in no later generation. Memory
    goes with the lines and with `count`, not with the rows.

    Args:
        lines: of the set, in a snapshot (tables.SNAPSHOT).
        superseded: rows of the plan, ascending.
        key: of the hash that chooses.
    """
    counted = _counted(store, lines, plans, superseded)
    ends = np.cumsum(counted)
    total = int(ends[-1])
    if total == 0:
        return []
    count = min(count, total)
    stretches = np.arange(count)
    length, longer = divmod(total, count)
    lengths = (length + (stretches < longer)).astype(np.uint64)
    first = stretches * length + np.minimum(stretches, longer)
    ranks = first + (mix(stretches, key) % lengths).astype(np.int64)
    line_of = np.searchsorted(ends, ranks, side="right")
    places = ranks - (ends - counted)[line_of]
    numbers, starts = np.unique(line_of, return_index=True)
    return list(zip(lines.take(numbers).to_pylist(), np.split(places, starts[1:])))


def _counted(
    store: ObjectStore, lines: pa.Table, plans: Sequence[PlanReader], superseded: Whole
) -> Whole:
    """[lines] rows of each line that count."""
    first_rows = np.array([plan.commit.first_row for plan in plans], np.int64)
    ok, bad = (np.asarray(lines[name], np.int64) for name in ("ok", "bad"))
    begin = first_rows[np.asarray(lines["generation"])] + np.asarray(lines["first_row"])
    lost = np.searchsorted(superseded, begin + ok + bad) - np.searchsorted(superseded, begin)
    counted: Whole = ok - lost
    # Only where some rows are bad and some superseded must a table tell which are both.
    for number in np.flatnonzero((lost > 0) & (bad > 0)).tolist():
        try:
            told = cls_table(store, lines.slice(number, 1).to_pylist()[0])
            counted[number] = len(_counting(told, superseded))
        except DamageError:
            counted[number] = 0  # named when all tables are checked
    return counted


def _counting(told: pa.Table, superseded: Whole) -> Whole:
    """Places in a CLS table of the rows that count."""
    rows = np.asarray(told["row"])
    good = np.asarray(pc.equal(told["status"], tables.OK))
    return np.flatnonzero(good & ~is_superseded(superseded, rows))


def read_rows(
    store: ObjectStore, plan: PlanReader, line: Line, places: Whole, superseded: Whole
) -> list[StoredRow]:
    """Rows of one shard, each token chunk by a ranged read of its own.

    Args:
        plan: of the line's generation.
        places: of the rows, among those of the line that count.

    Raises:
        DamageError, NotFound: an object is missing or damaged, or its rows are not the plan's.
    """
    told = cls_table(store, line)
    inside = _counting(told, superseded)
    if len(inside) <= places.max():
        raise DamageError(f"{line['cls_key']}: has fewer good rows than its commit says")
    inside = inside[places]
    planned = plan.rows(line["first_row"], line["rows"]).take(inside).to_pylist()
    tokens = _tokens(store, line, inside, told["tokens_crc32c"].take(inside).to_pylist())
    rows = []
    for place, here, there, stored in zip(
        inside.tolist(), told.take(inside).to_pylist(), planned, tokens
    ):
        row = plan.commit.first_row + line["first_row"] + place
        expected = (row, there["key"], there["view"])
        if (here["row"], here["key"], here["view"]) != expected:
            raise DamageError(f"{line['cls_key']}: row {row} is not the plan's")
        rows.append(
            StoredRow(
                row=row,
                generation=plan.commit.generation,
                key=here["key"],
                view=here["view"],
                draws=draws_of_row(there),
                image_sha256=here["image_sha256"],
                pixels_sha256=here["pixels_sha256"],
                tokens=stored,
                cls=np.array(here["cls"], np.float16) if "cls" in here else None,
            )
        )
    return rows


def _tokens(
    store: ObjectStore, line: Line, inside: Whole, checksums: list[int]
) -> list[shard.Rows]:
    """[height, width] of rows of a shard, each the one whose checksum the CLS table names."""
    array, key = SetPath.parse(line["set"]).array(line["generation"]), line["tokens_key"]
    metadata = store.get(array)
    if digest(metadata) != line["array_sha256"]:
        raise DamageError(f"{array}: is not what the commits name", key=array)
    _, form = shard.form_of(metadata)
    rows_per_shard = shard.rows_per_shard_of(metadata)
    head = store.get_range(key, 0, shard.index_bytes(rows_per_shard))
    index = shard.decode_index(head, key, rows_per_shard)
    found = []
    for place, checksum in zip(inside.tolist(), checksums):
        offset, length = (int(value) for value in index[place])
        if length != form.bytes + shard.CRC_BYTES:
            raise DamageError(f"{key}: row {place} of the shard is not there", key=key)
        chunk = store.get_range(key, offset, offset + length)
        body = shard.check_chunk(chunk, key, place)
        if shard.stored_checksum(chunk) != checksum:
            raise DamageError(f"{key}: row {place} of the shard is of another row", key=key)
        found.append(shard.rows_from(body, form)[0])
    return found
