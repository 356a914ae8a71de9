"""A set in another codec, made from what is stored as float16: no picture is read and no teacher
runs. Its bytes are not those of a direct extraction, whose tokens were never rounded to float16
before they were coded, but differ from them by no more than that rounding."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from infra.catalog import Catalog, get_checked
from infra.store import ObjectStore
from infra.terminal import Terminal
from pipeline.checks import Line
from pipeline.encode import encode_standardised
from pipeline.job import FeatureSet, Source, SpanTask
from pipeline.shard_buffer import RowNote, ShardBuffer
from schemas import shard, tables
from schemas.errors import DamageError
from schemas.layout import SetPath
from schemas.names import BLOCK_ROWS
from schemas.records import ObjectRecord

EXACT = "fp16"
KEPT = ("key", "view", "reason", "image_sha256", "width", "height", "pixels_sha256")
"""Of a row's line, whatever its codec."""
Sources = Mapping[tuple[str, int], Sequence[Source]]
"""(set that is to be made, generation) -> shards that it can be made from, in order."""


def sources_of(catalog: Catalog, sets: Sequence[FeatureSet]) -> Sources:
    """What of the newest snapshot the sets can be made from."""
    number = catalog.latest_snapshot()
    if number is None:
        return {}
    table = catalog.snapshot(number).table
    paths = [SetPath.parse(text) for text in pc.unique(table["set"]).to_pylist()]
    exact = {(path.fingerprint12, path.grid): path for path in paths if path.codec_label == EXACT}
    found = {}
    for each in sets:
        path = exact.get((each.path.fingerprint12, each.path.grid))
        if path is None or each.path.codec_label == EXACT:
            continue
        lines = table.filter(pc.equal(table["set"], str(path))).sort_by("first_row")
        for generation in pc.unique(lines["generation"]).to_pylist():
            mine = lines.filter(pc.equal(lines["generation"], generation)).to_pylist()
            size = shard.rows_per_shard_of(catalog.store.get(path.array(generation)))
            found[str(each.path), generation] = [source_of(line, size) for line in mine]
    return found


def source_of(line: Line, rows_per_shard: int) -> Source:
    """A snapshot's line as something to be made from."""
    objects = (
        ObjectRecord(**{name: line[f"{kind}_{name}"] for name in ("key", "size", "sha256")})
        for kind in ("tokens", "cls")
    )
    return Source(line["first_row"], line["rows"], rows_per_shard, *objects)


def covering(sources: Sequence[Source], first_row: int, rows: int) -> tuple[Source, ...]:
    """Those that hold rows of a stretch; none where they do not hold all of it."""
    end = first_row + rows
    begin = bisect_right(sources, first_row, key=lambda each: each.end)
    mine = sources[begin : bisect_left(sources, end, key=lambda each: each.first_row)]
    held = sum(min(each.end, end) - max(each.first_row, first_row) for each in mine)
    return tuple(mine) if held == rows else ()


def tell_derived(terminal: Terminal, sets: Sequence[FeatureSet], tasks: Sequence[SpanTask]) -> None:
    """Print what needs no teacher."""
    rows: Counter[int] = Counter()
    for task in tasks:
        for each in task.shards:
            rows[each.feature_set] += each.rows if each.sources else 0
    for index, count in rows.items():
        if count:
            made = sets[index]
            terminal.say(
                f"no forward   {made.teacher} at grid {made.path.grid}: {count:,} rows of "
                f"{made.path.codec_label} are made from those of {EXACT}"
            )


def derive(buffer: ShardBuffer, store: ObjectStore, device: str) -> None:
    """Fill a shard with the rows of its sources, coded anew.

    Raises:
        DamageError, NotFound: a source is missing or damaged.
    """
    task = buffer.task
    for source in task.sources:
        lines, tokens = _read(store, source, buffer.set)
        first = max(task.first_row, source.first_row)
        end = min(task.first_row + task.rows, source.end)
        for start in range(first, end, BLOCK_ROWS):
            inside = slice(
                start - source.first_row, min(start + BLOCK_ROWS, end) - source.first_row
            )
            _put(buffer, start, lines[inside], tokens[inside], device)


def _read(
    store: ObjectStore, source: Source, target: FeatureSet
) -> tuple[list[dict[str, Any]], shard.Rows]:
    """Lines and tokens of a source's rows, every byte checked."""
    schema = tables.cls_schema(target.record.cls_width)
    table = tables.from_parquet(get_checked(store, source.cls), source.cls.key, schema)
    data = get_checked(store, source.tokens)
    key, size = source.tokens.key, source.rows_per_shard
    if shard.checksums(data, key, size)[: source.rows] != table["tokens_crc32c"].to_pylist():
        raise DamageError(f"{key}: holds other rows than its CLS table names", key=key)
    form = shard.RowForm("float16", target.token_count, target.record.patch_width)
    return table.to_pylist(), shard.decode(data, key, form, size)


def _put(
    buffer: ShardBuffer, first: int, lines: list[dict[str, Any]], tokens: shard.Rows, device: str
) -> None:
    """Rows from `first` on, coded anew; those that were bad stay so."""
    exact = torch.from_numpy(tokens.astype(np.float32)).to(device)
    encoded = encode_standardised(buffer.set.codec, None, exact)
    for index, line in enumerate(lines):
        note = RowNote(**{name: line[name] for name in KEPT})
        if note.reason is not None:
            buffer.put(first + index, note)
            continue
        cls = np.array(line["cls"], np.float16) if "cls" in line else None
        buffer.put_encoded(first + index, note, encoded, index, cls)
