"""What a data set holds now, and what of it a cache has not planned yet."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.catalog import Catalog, PlanReader
from infra.sources import Source
from schemas.errors import ConfigError
from schemas.extract_config import Views
from schemas.keyed_hash import Words, hash_texts
from schemas.records import PlanCommit


@dataclass(frozen=True)
class Listing:
    """Pictures of a source in hash order."""

    keys: list[str]
    sizes: list[int]
    etags: list[str]


def list_images(source: Source, key: bytes, limit: int | None) -> Listing:
    """The source's pictures in hash order, at most `limit`.

    Raises:
        ConfigError: two pictures have the same key.
    """
    entries = list(source.entries())
    hashes = hash_texts((entry.key for entry in entries), key)
    order = sorted(range(len(entries)), key=lambda index: (hashes[index], entries[index].key))
    chosen = [entries[index] for index in order]
    for one, other in pairwise(chosen):
        if one.key == other.key:
            raise ConfigError(
                f"images {source.url}: the key {one.key!r} stands twice; keys must be unique "
                "(Parquet: set images.columns.key)"
            )
    chosen = chosen[:limit]
    return Listing(
        [entry.key for entry in chosen],
        [entry.size for entry in chosen],
        [entry.etag for entry in chosen],
    )


def unplanned(
    catalog: Catalog,
    generations: list[PlanCommit],
    listing: Listing,
    views: Views,
    source: Source,
) -> Listing:
    """The pictures of a listing that have no row yet.

    Raises:
        ConfigError: the cache was planned with other views, holds another data set, or pictures
            have changed since they were planned.
    """
    hashes = hash_texts(listing.keys, bytes.fromhex(catalog.record.order_key))
    known = np.zeros(len(hashes), bool)
    changed: list[str] = []
    for commit in generations:
        _refuse_other_views(catalog.store.url, commit, views)
        for table in PlanReader(catalog.store, commit).batches():
            rows = table.filter(pc.equal(table["view"], 0)).select(["key", "size"])
            for key, size, place in _places_in(listing, hashes, rows, catalog):
                known[place] = True
                if size != listing.sizes[place]:
                    changed.append(f"{key} (planned {size} bytes, now {listing.sizes[place]})")
    if generations and not known.any():
        raise ConfigError(
            f"{catalog.store.url}: holds the pictures of {generations[0].source}; none of them is "
            f"in {source.url}. Bring them back, or give another `cache` for another data set"
        )
    if changed:
        raise ConfigError(
            f"{source.url}: {len(changed)} pictures have changed since they were planned, such as "
            f"{changed[0]}; restore them, or give another `cache`"
        )
    keep = np.flatnonzero(~known).tolist()
    return Listing(
        [listing.keys[index] for index in keep],
        [listing.sizes[index] for index in keep],
        [listing.etags[index] for index in keep],
    )


def _places_in(
    listing: Listing, hashes: Words, rows: pa.Table, catalog: Catalog
) -> Iterator[tuple[str, int, int]]:
    """(key, planned size, index in the listing) of planned pictures that are listed. The listing
    stands in hash order; a hash finds the place, the key itself confirms it."""
    keys = rows["key"].to_pylist()
    wanted = hash_texts(keys, bytes.fromhex(catalog.record.order_key))
    starts = np.searchsorted(hashes, wanted).tolist()
    for key, size, code, place in zip(keys, rows["size"].to_pylist(), wanted, starts):
        while place < len(hashes) and hashes[place] == code:
            if listing.keys[place] == key:
                yield key, size, place
                break
            place += 1


def _refuse_other_views(url: str, commit: PlanCommit, views: Views) -> None:
    asked, planned = views.model_dump(), commit.views.model_dump()
    different = [
        f"  views.{name}: planned {planned[name]}, now {asked[name]}"
        for name in planned
        if planned[name] != asked[name]
    ]
    if different:
        raise ConfigError(
            "\n".join([f"{url}: was planned with other views", *different])
            + "\nset them back, or give another `cache`"
        )
