"""Caches that are compared with their teachers, and caches that lie consistently: rows rewritten
together with every checksum of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.command import Outcome
from infra.store import LocalStore
from pipeline import verify
from schemas import layout, shard, tables
from schemas.layout import SetPath
from schemas.options import VerifyOptions
from schemas.records import ObjectRecord, ShardCommit, SnapshotCommit, TeacherRecord
from schemas.sealed import digest, seal, unseal
from tests.caches import CNN, VIT, Array, Quiet, config_of, extract_here, read_table, verify_here

Change = Callable[[Array, pa.Table], tuple[Array, pa.Table]]
"""(tokens [rows, tokens, channels], CLS table) of a shard -> what is to stand there."""
VIEWS = 3
ALL = 1000
"""More rows than any of these caches has."""


class Extracted:
    """A tiny cache of two teachers at two grids, and its pictures."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.cache, self.source = folder / "cache", folder / "pictures"
        self.said = Quiet()
        self.asked: dict[str, Any] = {
            "views": {"per_image": VIEWS},
            "grids": [1, 2],
            "teachers": {"vit": VIT, "cnn": CNN},
            "tolerate_bad_images": 1,
            **changes,
        }

    def extract(self, **changes: Any) -> None:
        self.asked |= changes
        extract_here(config_of(self.cache, self.source, **self.asked))

    def verify(self, count: int = ALL) -> Outcome:
        self.said = Quiet()
        return verify.run(VerifyOptions(cache=str(self.cache), against_teacher=count), self.said)

    @property
    def sets(self) -> set[str]:
        """All that the newest snapshot has, of earlier teachers too."""
        coverage = verify_here(self.cache).result["coverage"]
        assert isinstance(coverage, dict)
        return set(coverage)

    def set_of(self, model: str, grid: int) -> str:
        (path,) = (
            path
            for path in self.sets
            if self.teacher_of(path).model == model and SetPath.parse(path).grid == grid
        )
        return path

    def teacher_of(self, path: str) -> TeacherRecord:
        key = layout.teacher(SetPath.parse(path).fingerprint12)
        return unseal(LocalStore(self.cache).get(key), TeacherRecord, key)


def compared(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """What `verify` found of each set."""
    found = outcome.result["against_teacher"]
    assert isinstance(found, dict)
    json.dumps(found, allow_nan=False)
    return found


def rewrite(folder: Path, key: str, data: bytes) -> ObjectRecord:
    """Put other bytes in an object's place; returns what a commit says of them."""
    (folder / key).write_bytes(data)
    return ObjectRecord(key=key, size=len(data), sha256=digest(data))


def forge(cache: Path, path: str, change: Change) -> None:
    """Change the rows of a set's first shard, all of them good, and whatever has a checksum of
    them up to snapshot 1."""
    store = LocalStore(cache)
    snapshot_key = layout.snapshot_commit(1)
    snapshot = unseal(store.get(snapshot_key), SnapshotCommit, snapshot_key)
    commit_key = SetPath.parse(path).commit(0, 0)
    commit = unseal(store.get(commit_key), ShardCommit, commit_key)
    metadata = store.get(SetPath.parse(path).array(0))
    rows_per_shard, (_, form) = shard.rows_per_shard_of(metadata), shard.form_of(metadata)
    held = store.get(commit.tokens.key)
    rows = shard.decode(held, commit.tokens.key, form, rows_per_shard)[: commit.rows]
    rows, told = change(rows, read_table(store, commit.cls.key))
    data = bytes(shard.encode(rows, [True] * commit.rows, rows_per_shard))
    checksums = shard.checksums(data, commit.tokens.key, rows_per_shard)[: commit.rows]
    told = with_column(told, "tokens_crc32c", pa.array(checksums, pa.uint32()))
    commit = commit.model_copy(
        update={
            "tokens": rewrite(cache, commit.tokens.key, data),
            "cls": rewrite(cache, commit.cls.key, tables.blocks_to_parquet(told)),
        }
    )
    rewrite(cache, commit_key, seal(commit))
    lines = read_table(store, snapshot.table.key).to_pylist()
    (line,) = (each for each in lines if each["set"] == path and each["shard"] == 0)
    for kind, record in (("tokens", commit.tokens), ("cls", commit.cls)):
        line |= {f"{kind}_{name}": value for name, value in record.model_dump().items()}
    line["commit_sha256"] = digest(seal(commit))
    table = tables.to_parquet(pa.Table.from_pylist(lines, schema=tables.SNAPSHOT))
    record = rewrite(cache, snapshot.table.key, table)
    rewrite(cache, snapshot_key, seal(snapshot.model_copy(update={"table": record})))


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The table with a column replaced."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), values)
