"""Rows that could not be computed, and why."""

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.catalog import Snapshot, get_checked, read_teacher
from infra.redact import printable
from infra.store import ObjectStore
from schemas import tables
from schemas.layout import SetPath
from schemas.records import ObjectRecord


def bad_rows(store: ObjectStore, snapshot: Snapshot, sets: Collection[str]) -> dict[int, str]:
    """Plan row -> key and reason, of rows that are bad in any of the sets; only tables that hold
    some are read. Raises DamageError."""
    bad: dict[int, str] = {}
    lines = snapshot.table.filter(pc.greater(snapshot.table["bad"], 0))
    for line in lines.to_pylist():
        if line["set"] in sets:
            table = cls_table(store, line)
            for row in table.filter(pc.equal(table["status"], tables.BAD)).to_pylist():
                bad.setdefault(row["row"], f"{printable(row['key'])}: {row['reason']}")
    return bad


def cls_table(store: ObjectStore, line: dict[str, Any]) -> pa.Table:
    """The CLS table of one line of a snapshot. Raises DamageError."""
    teacher = read_teacher(store, SetPath.parse(line["set"]).fingerprint12)
    record = ObjectRecord(key=line["cls_key"], size=line["cls_size"], sha256=line["cls_sha256"])
    schema = tables.cls_schema(teacher.cls_width)
    return tables.from_parquet(get_checked(store, record), record.key, schema)


def sets_named(snapshot: Snapshot) -> Iterator[str]:
    """Sets of the snapshot whose teacher a name means."""
    meant = set(snapshot.commit.teachers.values())
    for text in pc.unique(snapshot.table["set"]).to_pylist():
        if SetPath.parse(text).fingerprint12 in meant:
            yield text
