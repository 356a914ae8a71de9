"""`teachonce snapshots`: what snapshots there are; name them; forget old ones; leave old teachers
out."""

from contextlib import suppress

import pyarrow as pa

from infra.catalog import Catalog
from infra.command import Outcome
from infra.store import open_store
from infra.terminal import Terminal
from pipeline.lease import lease
from pipeline.publish import write_snapshot
from schemas import layout
from schemas.errors import AlreadyExists, ConfigError, NotFound
from schemas.layout import SetPath
from schemas.options import SnapshotsOptions
from schemas.records import Forgotten, Tag
from schemas.sealed import seal


def run(options: SnapshotsOptions, terminal: Terminal) -> Outcome:
    """Raises CacheError where there is no cache; ConfigError where a snapshot or tag is not there,
    a tag names another snapshot, or a snapshot is the newest or has a tag and so cannot be
    forgotten."""
    catalog = Catalog(open_store(options.cache, options.store))
    if options.prune:
        # As a job at work, so that no gc takes the new snapshot's table before its record stands.
        with lease(catalog.store, "extract"):
            _prune(catalog, terminal)
    for name in options.untag:
        catalog.store.delete(layout.tag(name))
    for text in options.tag:
        number_text, _, name = text.partition("=")
        _tag(catalog, int(number_text), name)
    newest = catalog.latest_snapshot() or 0
    for number in options.forget:
        _forget(catalog, number, newest)
    return Outcome({"snapshots": _tell(catalog, newest, terminal)})


def _tag(catalog: Catalog, number: int, name: str) -> None:
    catalog.snapshot_commit(number)
    _refuse_forgotten(catalog, number)
    try:
        catalog.store.create(layout.tag(name), seal(Tag(name=name, number=number)))
    except AlreadyExists:
        known = catalog.snapshot_named(name)
        if known != number:
            raise ConfigError(
                f"{catalog.store.url}: the tag {name} is snapshot {known}, not {number}; tags do "
                f"not move: take another name, or take this one away first (--untag {name})"
            ) from None
        return
    try:
        _refuse_forgotten(catalog, number)  # by somebody who looked before the tag was there
    except ConfigError:
        catalog.store.delete(layout.tag(name))
        raise


def _refuse_forgotten(catalog: Catalog, number: int) -> None:
    try:
        catalog.store.size(layout.forgotten(number))
    except NotFound:
        return
    raise ConfigError(
        f"{catalog.store.url}: snapshot {number} was forgotten, and what it had may be gone"
    )


def _forget(catalog: Catalog, number: int, newest: int) -> None:
    if not 1 <= number < newest:
        raise ConfigError(
            f"{catalog.store.url}: snapshot {number} cannot be forgotten; there are 1 to "
            f"{newest}, and the newest stays"
        )
    for name, named in catalog.tags().items():
        if named == number:
            raise ConfigError(
                f"{catalog.store.url}: snapshot {number} has the tag {name}, which keeps it; take "
                f"that away first (--untag {name})"
            )
    with suppress(AlreadyExists):
        catalog.store.create(layout.forgotten(number), seal(Forgotten(number=number)))


def _tell(catalog: Catalog, newest: int, terminal: Terminal) -> list[dict[str, object]]:
    forgotten, tags = catalog.forgotten(), catalog.tags()
    told: list[dict[str, object]] = []
    for number in range(1, newest + 1):
        commit = catalog.snapshot_commit(number)
        mine = [name for name, named in tags.items() if named == number]
        state = {"forgotten": number in forgotten, "tags": mine}
        told.append({**commit.model_dump(exclude={"table"}), **state})
        names = ", ".join(f"{name}@{fp12}" for name, fp12 in commit.teachers.items())
        words = ["forgotten"] * (number in forgotten) + [f"tag {name}" for name in mine]
        said = "  ".join([f"{number}", f"{commit.shards:,} shards", names, *words])
        terminal.say(f"snapshot     {said}")
    return told


def _prune(catalog: Catalog, terminal: Terminal) -> None:
    """A new snapshot of the sets alone whose teacher a name means now."""
    while True:
        number = catalog.latest_snapshot()
        if number is None:
            raise ConfigError(f"{catalog.store.url}: has no snapshot yet; let extract finish first")
        newest = catalog.snapshot(number)
        sets = newest.table["set"].to_pylist()
        meant = set(newest.commit.teachers.values())
        keep = [SetPath.parse(text).fingerprint12 in meant for text in sets]
        if all(keep):
            terminal.say("prune        nothing: every set is of a teacher that a name means")
            return
        lines, generations = newest.table.filter(pa.array(keep)), newest.commit.generations
        teachers = newest.commit.teachers
        try:
            write_snapshot(catalog, number + 1, None, teachers, lines, generations, sum(keep))
        except AlreadyExists:
            continue  # a job published meanwhile: prune its snapshot
        terminal.say(
            f"prune        snapshot {number + 1} is without {len(keep) - sum(keep):,} shards of "
            "earlier teachers; forget the older ones, and gc can remove them"
        )
        return
