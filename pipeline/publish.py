"""Snapshots: the numbered sets of shards that a trainer pins."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from infra.catalog import Catalog, Snapshot
from infra.store import ObjectStore
from pipeline.job import FeatureSet
from schemas import layout, tables
from schemas.errors import AlreadyExists, DamageError
from schemas.layout import SetPath
from schemas.records import ObjectRecord, PlanCommit, ShardCommit, SnapshotCommit
from schemas.sealed import digest, seal, unseal

SHARED_COLUMNS = (
    "set",
    "generation",
    "shard",
    "revision",
    "first_row",
    "rows",
    "ok",
    "bad",
    "codec_sha256",
    "array_sha256",
)
"""Of a snapshot's line, as they stand in the shard's commit."""
Place = tuple[str, int, int]
"""(set, generation, shard)."""


def publish(
    catalog: Catalog,
    teachers: Mapping[str, str],
    committed: Iterable[tuple[FeatureSet, PlanCommit, Iterable[int]]],
    reported: Sequence[ShardCommit],
    generations: int,
) -> Snapshot:
    """Add what is committed to the newest snapshot, as a new one unless nothing has changed.

    Args:
        teachers: the fingerprint (12 digits) that each teacher's name means from now on.
        committed: for each set and generation of this job the shards known to be committed.
        reported: commits that are at hand; others are read from the store.
        generations: of the plan that this job knew: those of another job may have no rows yet.
    """
    at_hand = {(commit.set, commit.generation, commit.shard): commit for commit in reported}
    wanted = {
        (str(feature_set.path), plan.generation, shard)
        for feature_set, plan, shards in committed
        for shard in shards
    } | set(at_hand)
    while True:
        number = catalog.latest_snapshot()
        parent = None if number is None else catalog.snapshot(number)
        known = {} if parent is None else dict(zip(places(parent.table), revisions(parent.table)))
        before = parent.commit.teachers.items() if parent else ()
        meant = set(teachers.values())  # a teacher that has another name now has only that
        named = {name: fp12 for name, fp12 in before if fp12 not in meant} | dict(teachers)
        repaired = {
            place
            for place, commit in at_hand.items()
            if place in known and commit.revision > known[place]
        }
        fresh = sorted((wanted - known.keys()) | repaired)
        if parent is not None and not fresh and named == parent.commit.teachers:
            return parent
        commits = [at_hand.get(place) or read_commit(catalog.store, place) for place in fresh]
        try:
            shards = len(known) + len(fresh) - len(repaired)
            counted = max(generations, 0 if parent is None else parent.commit.generations)
            following = (number or 0) + 1
            lines = lines_of(commits)
            write_snapshot(catalog, following, number, named, lines, counted, shards)
        except AlreadyExists:
            continue  # another job published meanwhile: add to its snapshot
        return catalog.snapshot(following)


def places(table: pa.Table) -> Iterable[Place]:
    """(set, generation, shard) of every line of a snapshot."""
    columns = (table[name].to_pylist() for name in ("set", "generation", "shard"))
    return zip(*columns)


def revisions(table: pa.Table) -> list[int]:
    """How often each line's shard was repaired."""
    found: list[int] = table["revision"].to_pylist()
    return found


def committed_places(store: ObjectStore) -> Iterator[Place]:
    """Every shard that a listing of the commits shows."""
    for key in store.keys(layout.SHARD_COMMITS):
        place = layout.place_of_commit(key)
        if place is not None:
            yield place


def read_commit(store: ObjectStore, place: Place, revision: int = 0) -> ShardCommit:
    """The commit of a shard. Raises NotFound, DamageError."""
    path, generation, shard = place
    key = SetPath.parse(path).commit(generation, shard, revision)
    commit = unseal(store.get(key), ShardCommit, key)
    if (commit.set, commit.generation, commit.shard, commit.revision) != (*place, revision):
        raise DamageError(f"{store.url}: {key} is the commit of another shard", key=key)
    return commit


def write_snapshot(
    catalog: Catalog,
    number: int,
    parent: int | None,
    teachers: Mapping[str, str],
    lines: pa.Table,
    generations: int,
    shards: int,
) -> None:
    """Make a snapshot of its parent's shards and these lines. Raises AlreadyExists."""
    data = tables.to_parquet(lines)
    key = layout.snapshot(number, uuid.uuid4().hex[:12])
    catalog.store.create(key, data)
    record = SnapshotCommit(
        number=number,
        parent=parent,
        generations=generations,
        shards=shards,
        teachers=dict(teachers),
        table=ObjectRecord(key=key, size=len(data), sha256=digest(data)),
    )
    catalog.store.create(layout.snapshot_commit(number), seal(record))


def lines_of(commits: list[ShardCommit]) -> pa.Table:
    """The lines of a snapshot (tables.SNAPSHOT) that stand for commits."""
    columns: dict[str, list[object]] = {
        name: [getattr(commit, name) for commit in commits] for name in SHARED_COLUMNS
    }
    for kind in ("tokens", "cls"):
        for name in ("key", "size", "sha256"):
            columns[f"{kind}_{name}"] = [getattr(getattr(commit, kind), name) for commit in commits]
    columns["commit_sha256"] = [digest(seal(commit)) for commit in commits]
    return pa.table(columns, schema=tables.SNAPSHOT)
