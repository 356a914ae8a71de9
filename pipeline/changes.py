"""Which pictures are not what they were: others by their bytes, or bad when they were computed.

A size or time stamp that differs is a suspicion only; what decides is the sha256 that stands beside
the features. A picture that nothing was computed from yet has not changed.
"""

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.catalog import Catalog, Snapshot
from infra.sources import Source
from infra.terminal import Terminal
from pipeline.bad_rows import bad_rows, cls_table, sets_named
from pipeline.checks import Line
from pipeline.listing import Listing, Standing
from pipeline.publish import Place, committed_places, lines_of, places, read_commit
from schemas.errors import ImageError
from schemas.spans import images_and_views, rows_of

READERS = 16


def changed_places(
    catalog: Catalog,
    standing: Sequence[Standing],
    listing: Listing,
    source: Source,
    terminal: Terminal,
    damaged: Collection[Place],
) -> set[int]:
    """Places in the listing of pictures whose bytes are others than features were computed from.

    Raises:
        SourceError: a suspect cannot be read for a reason that may pass.
    """
    suspects = _suspects(standing, len(listing.keys))
    if not suspects.any():
        return set()
    seen = _digests_seen(catalog, _committed_lines(catalog, damaged), standing, suspects)
    changed: set[int] = set()
    with (
        ThreadPoolExecutor(READERS) as pool,
        terminal.progress("compare", len(seen), "pictures of another time stamp") as meter,
    ):
        suspected = sorted(seen)
        digests = pool.map(lambda place: _digest_now(source, listing.keys[place]), suspected)
        for place, now in zip(suspected, digests):
            meter.advance(1)
            if now is not None and seen[place] != {now}:
                changed.add(place)
    return changed


def places_to_retry(
    catalog: Catalog, standing: Sequence[Standing], damaged: Collection[Place]
) -> set[int]:
    """Places in the listing of images that have a bad row in a set that a name means."""
    number = catalog.latest_snapshot()
    if number is None:
        return set()
    snapshot = _without(catalog.snapshot(number), damaged)
    rows = np.array(sorted(bad_rows(catalog.store, snapshot, set(sets_named(snapshot)))), np.int64)
    found: set[int] = set()
    for generation in standing:
        plan = generation.plan
        mine = rows[(rows >= plan.first_row) & (rows < plan.first_row + plan.rows)]
        images, _ = images_and_views(plan, mine - plan.first_row)
        found.update(generation.places[images[generation.images_asked[images]]].tolist())
    return found


def _suspects(standing: Sequence[Standing], count: int) -> npt.NDArray[np.bool_]:
    """[count] pictures of the listing that differ from what was planned of them, ever."""
    suspects = np.zeros(count, bool)
    for generation in standing:
        here = generation.present
        suspects[generation.places[here]] |= generation.stamp_differs[here]
    return suspects


def _without(snapshot: Snapshot, damaged: Collection[Place]) -> Snapshot:
    """The snapshot less these shards."""
    keep = [place not in damaged for place in places(snapshot.table)]
    return replace(snapshot, table=snapshot.table.filter(pa.array(keep, pa.bool_())))


def _committed_lines(catalog: Catalog, damaged: Collection[Place]) -> dict[int, list[Line]]:
    """Lines as of a snapshot, by generation, of every committed shard: a job that died may have
    left some that no snapshot has."""
    number = catalog.latest_snapshot()
    snapshot = None if number is None else _without(catalog.snapshot(number), damaged)
    known = set(damaged) if snapshot is None else {*places(snapshot.table), *damaged}
    left = [
        read_commit(catalog.store, place)
        for place in committed_places(catalog.store)
        if place not in known
    ]
    lines = lines_of(left).to_pylist() + ([] if snapshot is None else snapshot.table.to_pylist())
    by_generation: dict[int, list[Line]] = {}
    for line in lines:
        by_generation.setdefault(line["generation"], []).append(line)
    return by_generation


def _digests_seen(
    catalog: Catalog,
    lines: dict[int, list[Line]],
    standing: Sequence[Standing],
    suspects: npt.NDArray[np.bool_],
) -> dict[int, set[bytes]]:
    """What the suspects' features were computed from: place -> sha256 of the encoded picture; an
    empty set where it could not be read. Those that nothing was computed from are left out."""
    seen: dict[int, set[bytes]] = {}
    for generation in standing:
        images = np.flatnonzero(generation.present)
        images = images[suspects[generation.places[images]]]
        by_row = {
            int(row): int(place)
            for rows, place in zip(rows_of(generation.plan, images), generation.places[images])
            for row in rows
        }
        rows_here = np.sort(np.fromiter(by_row, np.int64, len(by_row)))
        for line in lines.get(generation.plan.generation, ()):
            begin, end = np.searchsorted(
                rows_here, [line["first_row"], line["first_row"] + line["rows"]]
            )
            if begin == end:
                continue
            digests = cls_table(catalog.store, line)["image_sha256"]
            for row in rows_here[begin:end].tolist():
                digest = digests[row - line["first_row"]].as_py()
                seen.setdefault(by_row[row], set()).update([] if digest is None else [digest])
    return seen


def _digest_now(source: Source, key: str) -> bytes | None:
    try:
        return hashlib.sha256(source.read(key)).digest()
    except ImageError:
        return None  # what stands is all there is of it
