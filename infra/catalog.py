"""What a cache says of itself: its constants, its plan, its snapshots. Read by both sides.

Nothing here trusts a listing: a generation or a snapshot exists if and only if its record does.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.store import ObjectStore
from schemas import layout, tables
from schemas.errors import CacheError, ConfigError, DamageError, NotFound, StoreError
from schemas.fingerprint import fingerprint
from schemas.names import FORMAT_VERSION
from schemas.records import (
    CacheRecord,
    ObjectRecord,
    PlanCommit,
    SnapshotCommit,
    Tag,
    TeacherRecord,
)
from schemas.sealed import digest, unseal


@dataclass(frozen=True)
class Snapshot:
    """A numbered, fixed set of shards."""

    commit: SnapshotCommit
    table: pa.Table
    """One line a shard (tables.SNAPSHOT), those of its parents included."""


class Catalog:
    """The records of one cache.

    Raises:
        CacheError: there is no cache here, or one of another format version.
        ConfigError: the store cannot be read: no such bucket, no right to, nobody answers.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        try:
            data = store.get(layout.CACHE)
        except NotFound:
            raise CacheError(f"{store.url}: no cache here (it has no {layout.CACHE})") from None
        except StoreError as error:
            # The first thing that any command asks of its store: nothing was started.
            raise ConfigError(f"cache {error}") from None
        self._refuse_other_version(data)
        self.record = unseal(data, CacheRecord, layout.CACHE)

    def generations(self, at_least: int = 0) -> list[PlanCommit]:
        """Every generation of the plan, in order. Raises DamageError if there are fewer than a
        snapshot has counted."""
        found: list[PlanCommit] = []
        while True:
            key = layout.plan_commit(len(found))
            try:
                commit = unseal(self.store.get(key), PlanCommit, key)
            except NotFound:
                break
            self._refuse_other_number(key, len(found), commit.generation)
            found.append(commit)
        if len(found) < at_least:
            raise DamageError(f"{self.store.url}: {key} is missing", key=key)
        return found

    def superseded(self, generations: Sequence[PlanCommit]) -> npt.NDArray[np.int64]:
        """Plan rows, ascending, whose images stand anew in a later one of the generations."""
        parts = [np.empty(0, np.int64)]
        for commit in generations:
            if commit.superseded is not None:
                data = get_checked(self.store, commit.superseded)
                table = tables.from_parquet(data, commit.superseded.key, tables.SUPERSEDED)
                parts.append(np.asarray(table["row"], np.int64))
        return np.sort(np.concatenate(parts))

    def latest_snapshot(self) -> int | None:
        """The newest snapshot's number: a listing's, then probed forward."""
        number = max(layout.numbers(self.store.keys(layout.SNAPSHOT_COMMITS)), default=0)
        while True:
            try:
                self.store.size(layout.snapshot_commit(number + 1))
            except NotFound:
                return number or None
            number += 1

    def snapshot_commit(self, number: int) -> SnapshotCommit:
        try:
            return self._snapshot_commit(number)
        except NotFound:
            latest = self.latest_snapshot()
            raise CacheError(
                f"{self.store.url}: no snapshot {number}; "
                + (f"the newest is {latest}" if latest else "there is none yet: run extract")
            ) from None

    def forgotten(self) -> set[int]:
        """Snapshots that nobody needs any more."""
        numbers = layout.numbers(self.store.keys(layout.FORGOTTEN))
        # Looked at afterwards: whoever tags one first makes its tag, then looks here.
        return numbers - set(self.tags().values()) if numbers else numbers

    def tags(self) -> dict[str, int]:
        """The snapshot that each tag names. Raises DamageError."""
        found = {}
        for key in sorted(self.store.keys(layout.TAGS)):
            with suppress(NotFound):  # taken away meanwhile
                record = self._tag(key)
                found[record.name] = record.number
        return found

    def snapshot_named(self, tag: str) -> int:
        """The snapshot that has a tag. Raises CacheError, DamageError."""
        with suppress(NotFound):
            return self._tag(layout.tag(tag)).number
        known = ", ".join(f"{name} ({number})" for name, number in self.tags().items())
        raise CacheError(
            f"{self.store.url}: no snapshot has the tag {tag!r}; "
            + (f"the tags are {known}" if known else "none has a tag")
        )

    def _tag(self, key: str) -> Tag:
        record = unseal(self.store.get(key), Tag, key)
        if key != layout.tag(record.name):
            raise DamageError(f"{self.store.url}: {key} is the record of another tag", key=key)
        return record

    def snapshot(self, number: int) -> Snapshot:
        """A snapshot with its parents' shards. Raises CacheError, DamageError."""
        commit = self.snapshot_commit(number)
        parts = [self._snapshot_table(commit)]
        parent = commit.parent
        while parent is not None:
            try:
                earlier = self._snapshot_commit(parent)
            except NotFound:
                key = layout.snapshot_commit(parent)
                raise DamageError(f"{self.store.url}: {key} is missing", key=key) from None
            parts.append(self._snapshot_table(earlier))
            parent = earlier.parent
        return Snapshot(commit, _newest_lines(pa.concat_tables(reversed(parts))))

    def _snapshot_commit(self, number: int) -> SnapshotCommit:
        key = layout.snapshot_commit(number)
        commit = unseal(self.store.get(key), SnapshotCommit, key)
        self._refuse_other_number(key, number, commit.number)
        return commit

    def _refuse_other_number(self, key: str, expected: int, found: int) -> None:
        if found != expected:
            raise DamageError(f"{self.store.url}: {key} is the record of number {found}", key=key)

    def _snapshot_table(self, commit: SnapshotCommit) -> pa.Table:
        data = get_checked(self.store, commit.table)
        return tables.from_parquet(data, commit.table.key, tables.SNAPSHOT)

    def _refuse_other_version(self, data: bytes) -> None:
        try:
            version = json.loads(data).get("format_version")
        except (ValueError, AttributeError):
            raise DamageError(
                f"{self.store.url}: {layout.CACHE} is damaged", key=layout.CACHE
            ) from None
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{self.store.url}: a cache of format version {version}, this is version "
                f"{FORMAT_VERSION}; extract it again into a new folder"
            )


def _newest_lines(table: pa.Table) -> pa.Table:
    """Without the lines of shards that a later line says were repaired."""
    if not pc.any(pc.greater(table["revision"], 0)).as_py():
        return table
    places = zip(*(table[name].to_pylist() for name in ("set", "generation", "shard")))
    last = {place: index for index, place in enumerate(places)}
    return table.take(sorted(last.values()))


def is_superseded(
    superseded: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which plan rows are among the superseded ones, which ascend."""
    if len(superseded) == 0:
        return np.zeros(len(rows), bool)
    places = np.minimum(np.searchsorted(superseded, rows), len(superseded) - 1)
    return np.equal(superseded[places], rows)


def get_checked(store: ObjectStore, record: ObjectRecord) -> bytes:
    """A whole object, if it is the one its commit names.

    Raises:
        DamageError: it is missing, or its bytes are others.
    """
    try:
        data = store.get(record.key)
    except NotFound:
        raise DamageError(f"{store.url}: {record.key} is missing", key=record.key) from None
    if len(data) != record.size or digest(data) != record.sha256:
        raise DamageError(
            f"{store.url}: {record.key} is damaged: {len(data)} bytes do not match the "
            f"{record.size} bytes and sha256 of its commit",
            key=record.key,
        )
    return data


def read_teacher(store: ObjectStore, fp12: str) -> TeacherRecord:
    """A teacher's record, if it is the one that its folder names. Raises DamageError."""
    key = layout.teacher(fp12)
    try:
        record = unseal(store.get(key), TeacherRecord, key)
    except NotFound:
        raise DamageError(f"{store.url}: {key} is missing", key=key) from None
    if not is_record_of(record, fp12):
        raise DamageError(
            f"{store.url}: {key} is the record of another teacher than {fp12}", key=key
        )
    return record


def is_record_of(record: TeacherRecord, fp12: str) -> bool:
    """Whether what a record says gives the fingerprint that it and its folder have."""
    return record.fingerprint == fingerprint(record.model_dump()) and record.fingerprint12 == fp12
