from typing import Any

import numpy as np
import pyarrow as pa

from infra.plan_reader import PlanReader
from infra.store import MemoryStore
from pipeline.sample import choose
from schemas import tables
from schemas.spans import Whole
from tests.unit.pipeline.fixtures import plan

NONE = np.empty(0, np.int64)
STORE = MemoryStore()


def lines_of(rows: list[int] | Whole) -> pa.Table:
    """Lines of a snapshot, one behind the other, whose rows are all good."""
    rows = np.asarray(rows)
    columns: dict[str, Any] = {
        field.name: [""] * len(rows) if field.type == pa.string() else np.zeros(len(rows), int)
        for field in tables.SNAPSHOT
    }
    columns |= {"first_row": np.cumsum(rows) - rows, "rows": rows, "ok": rows}
    return pa.table(columns, schema=tables.SNAPSHOT)


def chosen(
    lines: pa.Table, count: int, superseded: Whole = NONE, key: int = 1, first_row: int = 0
) -> list[int]:
    """(line's first row + place) of what is chosen."""
    plans = [PlanReader(STORE, plan(1, first_row=first_row))]
    found = choose(STORE, lines, plans, superseded, count, key)
    return [line["first_row"] + place for line, places in found for place in places.tolist()]


def test_choose__takes_all_rows_where_there_are_not_more() -> None:
    lines = lines_of([32, 1, 7])
    assert chosen(lines, 40) == chosen(lines, 10**15) == list(range(40))


def test_choose__takes_one_row_of_each_stretch() -> None:
    lines = lines_of([512] * 100)
    rows = chosen(lines, 64)
    assert [row // 800 for row in rows] == list(range(64))
    assert rows == chosen(lines, 64)
    assert rows != chosen(lines, 64, key=2)
    inside = [row % 800 for row in rows]
    assert len(set(inside)) > 50
    assert 300 < np.mean(inside) < 500


def test_choose__stretches_of_uneven_length_overlap_nowhere() -> None:
    lines = lines_of([5, 3, 9])
    for count in range(1, 18):
        rows = chosen(lines, count)
        assert len(set(rows)) == count
        assert set(rows) <= set(range(17))


def test_choose__every_row_is_chosen_by_some_key() -> None:
    lines = lines_of([5, 3, 9])
    assert {row for key in range(200) for row in chosen(lines, 4, key=key)} == set(range(17))


def test_choose__works_with_more_rows_than_fit_in_memory() -> None:
    rows = chosen(lines_of(np.full(10_000, 1 << 17)), 1000)
    assert len(set(rows)) == 1000
    assert 1.2e9 < max(rows) < 10_000 << 17


def test_choose__passes_over_what_is_superseded() -> None:
    """Of a generation that begins at plan row 100; its first line is superseded as a whole."""
    lines = lines_of([4, 6])
    superseded = np.array([2, 100, 101, 102, 103, 105, 200])
    places = chosen(lines, 10, superseded, first_row=100)
    assert places == [4, 5, 6, 7, 8]  # among those of the second line that count
    assert chosen(lines_of([4]), 10, np.arange(100, 104), first_row=100) == []
