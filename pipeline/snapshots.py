"""`teachonce snapshots`: what snapshots there are; forget old ones; leave old teachers out."""

import pyarrow as pa

from infra.catalog import Catalog
from infra.command import Outcome
from infra.store import open_store
from infra.terminal import Terminal
from pipeline.publish import write_snapshot
from schemas import layout
from schemas.errors import AlreadyExists, ConfigError
from schemas.layout import SetPath
from schemas.options import SnapshotsOptions
from schemas.records import Forgotten
from schemas.sealed import seal


def run(options: SnapshotsOptions, terminal: Terminal) -> Outcome:
    """Raises CacheError where there is no cache; ConfigError where a snapshot is not there, or is
    the newest and so cannot be forgotten."""
    catalog = Catalog(open_store(options.cache, options.store))
    if options.prune:
        _prune(catalog, terminal)
    newest = catalog.latest_snapshot() or 0
    for number in options.forget:
        if not 1 <= number < newest:
            raise ConfigError(
                f"{catalog.store.url}: snapshot {number} cannot be forgotten; there are 1 to "
                f"{newest}, and the newest stays"
            )
        try:
            catalog.store.create(layout.forgotten(number), seal(Forgotten(number=number)))
        except AlreadyExists:
            continue
    forgotten = catalog.forgotten()
    told: list[dict[str, object]] = []
    for number in range(1, newest + 1):
        commit = catalog.snapshot_commit(number)
        told.append({**commit.model_dump(exclude={"table"}), "forgotten": number in forgotten})
        names = ", ".join(f"{name}@{fp12}" for name, fp12 in commit.teachers.items())
        state = "  forgotten" if number in forgotten else ""
        terminal.say(f"snapshot     {number}  {commit.shards:,} shards  {names}{state}")
    return Outcome({"snapshots": told})


def _prune(catalog: Catalog, terminal: Terminal) -> None:
    """A new snapshot of the sets alone whose teacher a name means now."""
    number = catalog.latest_snapshot()
    if number is None:
        raise ConfigError(f"{catalog.store.url}: has no snapshot yet; let extract finish first")
    newest = catalog.snapshot(number)
    meant = set(newest.commit.teachers.values())
    keep = [SetPath.parse(text).fingerprint12 in meant for text in newest.table["set"].to_pylist()]
    if all(keep):
        terminal.say("prune        nothing: every set is of a teacher that a name means")
        return
    try:
        write_snapshot(
            catalog,
            number + 1,
            None,
            newest.commit.teachers,
            newest.table.filter(pa.array(keep)),
            newest.commit.generations,
            sum(keep),
        )
    except AlreadyExists:
        raise ConfigError(
            f"{catalog.store.url}: a job has published meanwhile; run again"
        ) from None
    terminal.say(
        f"prune        snapshot {number + 1} is without {len(keep) - sum(keep):,} shards of "
        "earlier teachers; forget the older ones, and gc can remove them"
    )
