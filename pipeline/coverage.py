"""How much of the plan each feature set of a snapshot has."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infra.catalog import Snapshot
from schemas.layout import SetPath
from schemas.records import PlanCommit


@dataclass(frozen=True)
class Coverage:
    """Rows that count: those that no later generation replaces."""

    planned: int
    rows: int
    """That at least one set has."""
    sets: dict[str, dict[str, object]]
    """By set: its teacher's name (None where no name means it any more), grid, rows, shards."""


def coverage(
    snapshot: Snapshot, generations: Sequence[PlanCommit], superseded: npt.NDArray[np.int64]
) -> Coverage:
    """What a snapshot covers of the plan's generations."""
    planned = sum(plan.rows for plan in generations) - len(superseded)
    first_rows = np.array([plan.first_row for plan in generations], np.int64)
    table = snapshot.table
    begin = first_rows[np.asarray(table["generation"])] + np.asarray(table["first_row"])
    end = begin + np.asarray(table["rows"])
    counted = _count(begin, end, superseded)
    names = {fp12: name for name, fp12 in snapshot.commit.teachers.items()}
    sets: dict[str, dict[str, object]] = {}
    texts = np.asarray(table["set"].to_pylist())
    for text in sorted(set(texts.tolist())):
        path, mine = SetPath.parse(text), texts == text
        sets[text] = {
            "teacher": names.get(path.fingerprint12),
            "grid": path.grid,
            "rows": int(counted[mine].sum()),
            "of": planned,
            "shards": int(mine.sum()),
        }
    return Coverage(planned, int(_count(*_union(begin, end), superseded).sum()), sets)


def _count(
    begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64], superseded: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Rows of each interval that are not superseded."""
    lost = np.searchsorted(superseded, end) - np.searchsorted(superseded, begin)
    return np.asarray(end - begin - lost)


def _union(
    begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Disjoint intervals that cover the same rows."""
    order = np.argsort(begin, kind="stable")
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    is_start = np.ones(len(begin), bool)
    is_start[1:] = begin[1:] > reach[:-1]
    return begin[is_start], reach[np.roll(is_start, -1)]
