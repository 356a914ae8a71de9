import contextlib

import pyarrow as pa
import pytest

from schemas.errors import DamageError
from schemas.names import BLOCK_ROWS
from schemas.tables import (
    BAD,
    OK,
    PLAN,
    ROWS_PER_PLAN_GROUP,
    SNAPSHOT,
    Blocks,
    blocks_to_parquet,
    cls_schema,
    from_parquet,
    joined,
    to_parquet,
)


def plan_table(rows: int = 40) -> pa.Table:
    draw = [None if row % 2 == 0 else row / 64 for row in range(rows)]
    columns = {"key": [f"class/{row:04d}.jpg" for row in range(rows)], "size": range(rows)}
    columns |= {"etag": [str(row) for row in range(rows)], "view": [row % 2 for row in range(rows)]}
    columns |= {name: draw for name in PLAN.names if name.startswith("draw_")}
    return pa.table({name: list(columns[name]) for name in PLAN.names}, schema=PLAN)


def test_parquet__round_trip() -> None:
    table = plan_table()
    assert from_parquet(to_parquet(table), "plan/0", PLAN).equals(table)


def test_parquet__round_trip_of_vectors_with_a_bad_row() -> None:
    schema = cls_schema(3)
    good = dict.fromkeys(schema.names) | {"row": 0, "key": "a", "view": 0, "status": OK}
    rows = [good | {"cls": [0.5, -1.0, 2.0]}, good | {"row": 1, "status": "bad", "reason": "empty"}]
    table = pa.Table.from_pylist(rows, schema=schema)
    assert from_parquet(to_parquet(table), "cls/0", schema).equals(table)


def cls_table(rows: int) -> pa.Table:
    """Every third row is bad."""
    schema = cls_schema(3)
    lines = [
        dict.fromkeys(schema.names)
        | {"row": row, "key": f"{row // 2}", "view": row % 2}
        | ({"status": OK, "cls": [row, -1.0, 2.0]} if row % 3 else {"status": BAD, "reason": "x"})
        for row in range(rows)
    ]
    return pa.Table.from_pylist(lines, schema=schema)


@pytest.mark.parametrize("rows", [1, 32, 33, 100])
def test_blocks__are_the_rows_of_the_whole(rows: int) -> None:
    table = cls_table(rows)
    data = blocks_to_parquet(table)
    assert from_parquet(data, "cls/0", table.schema).equals(table)
    blocks = Blocks(data, "cls/0", table.schema)
    for number, first in enumerate(range(0, rows, BLOCK_ROWS)):
        some = blocks.block(number, ["view", "cls", "no such column"])
        assert some.equals(table.select(["view", "cls"]).slice(first, BLOCK_ROWS))
        assert blocks.block(number, table.column_names).equals(table.slice(first, BLOCK_ROWS))
    with pytest.raises(DamageError, match="cls/0: not readable as Parquet"):
        blocks.block(-(-rows // BLOCK_ROWS), [])


def test_blocks__a_flipped_byte_of_a_page_is_found_or_changes_nothing() -> None:
    table = cls_table(40)
    data = blocks_to_parquet(table)
    found = 0
    for position in range(footer_start(data)):
        blocks = Blocks(damaged(data, position), "cls/0", table.schema)
        try:
            read = pa.concat_tables(blocks.block(n, table.column_names) for n in range(2))
        except DamageError:
            found += 1
        else:
            assert read.equals(table), position
    assert found > 0.6 * footer_start(data)


def test_blocks__other_columns_are_refused() -> None:
    with pytest.raises(DamageError, match="columns are not those of this format"):
        Blocks(blocks_to_parquet(cls_table(3)), "cls/0", cls_schema(4))
    with pytest.raises(DamageError, match="cls/0: not readable as Parquet"):
        Blocks(b"PAR1", "cls/0", cls_schema(3))
    with pytest.raises(DamageError, match="cls/0: its row groups are not blocks of 32 rows"):
        Blocks(to_parquet(cls_table(40)), "cls/0", cls_schema(3))


def test_parquet__no_rows() -> None:
    empty = SNAPSHOT.empty_table()
    assert from_parquet(to_parquet(empty), "snapshots/1", SNAPSHOT).equals(empty)


def test_joined__is_what_one_table_would_be() -> None:
    table = plan_table(ROWS_PER_PLAN_GROUP * 2 + 5)
    pieces = (table.slice(first, ROWS_PER_PLAN_GROUP) for first in range(0, len(table), 2048))
    assert joined(pieces, PLAN) == to_parquet(table)


def footer_start(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def damaged(data: bytes, position: int, bits: int = 0x10) -> bytes:
    return data[:position] + bytes([data[position] ^ bits]) + data[position + 1 :]


def test_from_parquet__a_flipped_byte_of_a_page_is_found_or_changes_nothing() -> None:
    table = plan_table()
    data = to_parquet(table)
    found = 0
    for position in range(footer_start(data)):
        try:
            read = from_parquet(damaged(data, position), "plan/0", PLAN)
        except DamageError:
            found += 1
        else:
            assert read.equals(table), position
    # The rest are bytes of page headers that no reader uses.
    assert found > 0.6 * footer_start(data)


def test_from_parquet__a_flipped_byte_of_the_footer_is_never_another_error() -> None:
    """The footer has no checksum of its own; the sha256 that commits name covers it."""
    data = to_parquet(plan_table())
    for position in range(footer_start(data), len(data)):
        for bits in (0x10, 0x80):  # the latter makes text that is not UTF-8
            with contextlib.suppress(DamageError):
                from_parquet(damaged(data, position, bits), "plan/0", PLAN)


@pytest.mark.parametrize("length", [0, 4, 11, -1, -8])
def test_from_parquet__truncated(length: int) -> None:
    with pytest.raises(DamageError, match="plan/0: not readable as Parquet"):
        from_parquet(to_parquet(plan_table())[:length], "plan/0", PLAN)


def test_from_parquet__other_columns_are_refused() -> None:
    data = to_parquet(plan_table())
    with pytest.raises(DamageError, match="columns are not those of this format"):
        from_parquet(data, "plan/0", SNAPSHOT)
    with pytest.raises(DamageError):
        from_parquet(to_parquet(plan_table().drop_columns(["view"])), "plan/0", PLAN)
