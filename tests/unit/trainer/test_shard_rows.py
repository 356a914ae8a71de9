"""Rows of a block in a CLS table: matched with the plan by key; what is held for the next block."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas import tables
from trainer.shard_rows import Held, unpack

WIDTH = 2


def _cls_table(first_row: int, **changes: Any) -> pa.Table:
    """Four rows, the third of them bad."""
    columns: dict[str, Any] = {
        "row": [first_row + place for place in range(4)],
        "key": ["a", "a", "b", "b"],
        "view": [0, 1, 0, 1],
        "status": [tables.OK, tables.OK, tables.BAD, tables.OK],
        "reason": [None, None, "empty", None],
        "image_sha256": [b"a" * 32, b"a" * 32, None, b"b" * 32],
        "width": [8] * 4,
        "height": [8] * 4,
        "pixels_sha256": [b"p" * 32] * 4,
        "tokens_crc32c": [1, 2, None, 4],
        "relative_rms": [0.0] * 4,
        "cls": [[np.float16(place)] * WIDTH for place in range(4)],
    }
    return pa.table(columns | changes, schema=tables.cls_schema(WIDTH))


def _plan(keys: list[str], views: list[int]) -> pa.Table:
    return pa.table({"key": keys, "view": pa.array(views, pa.int32()), "size": [1] * len(keys)})


def test_unpack__zeros_in_bad_rows() -> None:
    rows = unpack(_cls_table(8), WIDTH)
    assert rows.cls is not None
    assert rows.cls.dtype == np.float16
    assert rows.cls.tolist() == [[0, 0], [1, 1], [0, 0], [3, 3]]
    assert rows.ok.tolist() == [True, True, False, True]
    assert (rows.checksums, rows.image_sha256[2]) == ([1, 2, None, 4], None)


@pytest.mark.parametrize(
    ("first_row", "keys", "views", "fits"),
    [
        (10, ["b", "b"], [0, 1], True),
        (9, ["b", "b"], [0, 1], False),
        (10, ["b", "c"], [0, 1], False),
        (10, ["b", "b"], [1, 0], False),
        (10, ["b"], [0], False),
        (10, ["b", "b", "c"], [0, 1, 0], False),
    ],
)
def test_are_of_plan__row_key_and_view(
    first_row: int, keys: list[str], views: list[int], fits: bool
) -> None:
    rows = unpack(_cls_table(8).slice(2), WIDTH)
    plan = _plan(keys, views).cast(
        pa.schema(
            [tables.PLAN.field("key"), tables.PLAN.field("view"), pa.field("size", pa.int64())]
        )
    )
    assert rows.are_of_plan(first_row, plan) is fits


def test_held__the_least_recently_used_goes() -> None:
    held: Held[int] = Held(2)
    made = []

    def get(key: int) -> int:
        return held.get(key, lambda: made.append(key) or key)

    for key in (1, 2, 1, 3, 1, 2):
        assert get(key) == key
    assert made == [1, 2, 3, 2]


def test_held__no_more_than_fits() -> None:
    held: Held[bytes] = Held(10, len)
    made: list[int] = []

    def get(key: int, size: int) -> bytes:
        return held.get(key, lambda: made.append(key) or bytes(size))

    for key, size in enumerate([4, 4, 4, 11, 1]):
        assert get(key, size) == bytes(size)
    for key in range(5):
        get(key, 1)
    assert made == [0, 1, 2, 3, 4, 0, 1, 2, 3]
