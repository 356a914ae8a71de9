"""`teachonce gc`: what no snapshot reaches, listed, and with `--delete` removed.

Kept is what any snapshot names that was not forgotten, the newest always; what belongs to the sets
of a job that is at work; and committed shards that no snapshot has had yet, because the next
extraction will use them.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from infra.catalog import Catalog, Snapshot
from infra.command import Outcome
from infra.store import PARTIAL, LocalStore, ObjectStore, open_store
from infra.store_check import CHECKS
from infra.terminal import Terminal, human_bytes
from pipeline.lease import lease, live_jobs, watch
from pipeline.pack import packs
from pipeline.publish import committed_places
from schemas import layout
from schemas.errors import NotFound
from schemas.layout import SetPath
from schemas.measured import Calibration
from schemas.options import GcOptions
from schemas.records import JobRecord, ShardCommit
from schemas.sealed import unseal


def run(options: GcOptions, terminal: Terminal) -> Outcome:
    """Raises CacheError where there is no cache; DamageError where a snapshot cannot be read: then
    nothing is removed, because nobody knows what it reaches."""
    store = open_store(options.cache, options.store)
    catalog = Catalog(store)
    with lease(store, "gc") as mine:
        return _collect(options, catalog, mine, terminal)


def _collect(options: GcOptions, catalog: Catalog, mine: str, terminal: Terminal) -> Outcome:
    store = catalog.store
    jobs = live_jobs(store)
    for job in jobs.values():
        teachers = ", ".join(job.fingerprints12) or "plan and snapshots"
        terminal.decide("kept", teachers, f"a job at work on {job.host}")
    kept = _kept(catalog)
    garbage = [
        key
        for key in store.keys("")
        if key not in kept
        and not key.startswith(layout.job_folder(mine))
        and not _is_of_a_job(key, jobs)
    ]
    sizes: dict[str, int] = {}
    for key in garbage:
        try:
            sizes[key] = store.size(key)
        except NotFound:
            continue
    kinds = Counter(key.partition("/")[0] for key in sizes)
    for kind, count in sorted(kinds.items()):
        size = sum(size for key, size in sizes.items() if key.partition("/")[0] == kind)
        terminal.say(f"garbage      {count:,} objects in {kind}/, {human_bytes(size)}")
    partials = {} if jobs else _partials_left(store)
    if partials:
        size = sum(partials.values())
        terminal.say(f"garbage      {len(partials):,} files in {PARTIAL}/, {human_bytes(size)}")
    if options.delete:
        with terminal.progress("remove", len(sizes), "objects") as meter:
            for key in sorted(sizes, key=_order):
                store.delete(key)
                meter.advance(1)
        if isinstance(store, LocalStore):
            for path in partials:
                store.remove_partial(path)
    elif sizes or partials:
        terminal.say("nothing was removed; --delete removes them")
    return Outcome(
        {
            "objects": len(sizes),
            "partials": len(partials),
            "bytes": sum(sizes.values()) + sum(partials.values()),
            "deleted": len(sizes) if options.delete else 0,
            "jobs": len(jobs),
        }
    )


def _partials_left(store: ObjectStore) -> dict[Path, int]:
    """Files that killed writers left on a local disk, and their bytes; a live one, which no job is
    at work on, is gone in less time than this watches."""
    if not isinstance(store, LocalStore):
        return {}
    before = store.partials()
    if not before:
        return {}
    watch()
    now = store.partials()
    return {path: size for path, size in before.items() if path in now}


def _order(key: str) -> tuple[bool, str]:
    """Commits first: what is left when somebody stops it has no commit, and does not exist."""
    return not key.startswith("commits/"), key


def _is_of_a_job(key: str, jobs: dict[str, JobRecord]) -> bool:
    """Whether a job at work wrote it, or may: plans and snapshots are written by any."""
    parts = key.split("/")
    if not jobs:
        return False
    shared = (
        [CHECKS],
        ["plan"],
        ["snapshots"],
        ["commits", "plan"],
        ["commits", "snapshots"],
        ["jobs"],
        ["images"],
        ["commits", "images"],
    )
    if any(parts[: len(start)] == start for start in shared):
        return True
    working = {fp12 for job in jobs.values() for fp12 in job.fingerprints12}
    return bool(working & set(parts[1:3]))


def _kept(catalog: Catalog) -> set[str]:
    """Every key that somebody may need."""
    store = catalog.store
    kept = {layout.CACHE}
    for commit in catalog.generations():
        kept.add(layout.plan_commit(commit.generation))
        kept.update(part.key for part in commit.parts)
        if commit.superseded is not None:
            kept.add(commit.superseded.key)
    newest = catalog.latest_snapshot() or 0
    forgotten = catalog.forgotten()
    sets: set[str] = set()
    dropped: set[str] = set()
    for number in range(1, newest + 1):
        snapshot = catalog.snapshot(number)
        # The small records stay, forgotten or not: they tell which sets were once in use.
        kept.update({layout.snapshot_commit(number), snapshot.commit.table.key})
        if number in forgotten and number != newest:
            dropped.update(_sets_of(snapshot))
            continue
        sets.update(_sets_of(snapshot))
        kept.update(_keys_of_shards(snapshot))
    kept.update(store.keys(layout.FORGOTTEN))
    kept.update(store.keys(layout.TAGS))
    for pack in packs(store):
        kept.update({layout.pack_commit(pack.generation, pack.number), pack.object.key})
    for path, generation, shard in committed_places(store):
        commit_key = SetPath.parse(path).commit(generation, shard)
        if commit_key not in kept and (path in sets or path not in dropped):
            shard_commit = unseal(store.get(commit_key), ShardCommit, commit_key)
            kept.update({commit_key, shard_commit.tokens.key, shard_commit.cls.key})
            kept.add(SetPath.parse(path).array(generation))
            sets.add(path)
    for text in sets:
        kept.update(keys_beside(store, SetPath.parse(text)))
    return kept


def _sets_of(snapshot: Snapshot) -> set[str]:
    return set(snapshot.table["set"].to_pylist())


def _keys_of_shards(snapshot: Snapshot) -> Iterator[str]:
    for line in snapshot.table.to_pylist():
        path = SetPath.parse(line["set"])
        yield line["tokens_key"]
        yield line["cls_key"]
        yield path.commit(line["generation"], line["shard"], line["revision"])
        yield path.array(line["generation"])


def keys_beside(store: ObjectStore, path: SetPath) -> Iterator[str]:
    """What a set's shards cannot be read or repaired without."""
    key = layout.calibration(path.fingerprint12, path.grid)
    yield from (path.codec_json, key, layout.teacher(path.fingerprint12))
    yield layout.probe(path.fingerprint12, path.grid)
    calibration = unseal(store.get(key), Calibration, key)
    yield calibration.tokens_covariance.key
    yield calibration.tokens_shape.axes.key
    if calibration.cls_covariance is not None:
        yield calibration.cls_covariance.key
