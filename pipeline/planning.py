"""The plan: which rows exist, in which order. Written once a generation, never changed.

Images stand in the order of a keyed hash of their keys, so that any stretch of rows is a random
sample. A span is a power of two of consecutive images; its rows are view-major, so that a shard
holds one view. The generation's last span may be short; its rows follow on without a gap.
"""

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.catalog import Catalog, PlanReader
from infra.pixels.views import DRAWS, Draws
from infra.sources import Source
from infra.store import ObjectStore
from infra.terminal import Terminal
from schemas import layout, tables
from schemas.errors import AlreadyExists, ConfigError, StoreError
from schemas.extract_config import ExtractConfig, Views
from schemas.keyed_hash import Words, hash_texts, uniforms
from schemas.names import BLOCK_ROWS, MAX_SPAN_IMAGES
from schemas.records import CacheRecord, ObjectRecord, PlanCommit
from schemas.sealed import digest, seal

WINDOW_BLOCKS = 16
SPANS_WANTED = 16
"""A data set of fewer full spans than this gets smaller ones, so that workers are not idle."""


@dataclass(frozen=True)
class Listing:
    """Pictures of a source in hash order."""

    keys: list[str]
    sizes: list[int]
    etags: list[str]


@dataclass(frozen=True)
class Span:
    """A stretch of a generation's images with all their views."""

    first_image: int
    images: int
    first_row: int
    """Within the generation."""

    def row(self, view: int, image: int) -> int:
        """Row within the generation of the span's `image`-th image."""
        return self.first_row + view * self.images + image


def span_of(commit: PlanCommit, number: int) -> Span:
    first = number * commit.span_images
    return Span(
        first_image=first,
        images=min(commit.span_images, commit.images - first),
        first_row=first * commit.views.per_image,
    )


def span_count(commit: PlanCommit) -> int:
    return -(-commit.images // commit.span_images)


def span_images(images: int) -> int:
    """The span of a generation of so many images."""
    span = MAX_SPAN_IMAGES
    while span > BLOCK_ROWS and images < span * SPANS_WANTED:
        span //= 2
    return span


def order_key(seed: int) -> bytes:
    return hashlib.sha256(f"teachonce order {seed}".encode()).digest()[:16]


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


def open_or_create_cache(store: ObjectStore, config: ExtractConfig) -> Catalog:
    """The cache at `store`, made if there is none.

    Raises:
        CacheError: one of another format is there. ConfigError: none can be made there.
    """
    record = CacheRecord(
        name=store.url.rstrip("/").rpartition("/")[2] or "cache",
        window_blocks=WINDOW_BLOCKS,
        order_key=order_key(config.views.seed).hex(),
    )
    try:
        store.create(layout.CACHE, seal(record))
    except AlreadyExists:
        pass
    except StoreError as error:
        raise ConfigError(f"cache {store.url}: nothing can be written there: {error}") from None
    return Catalog(store)


def grow_plan(
    catalog: Catalog, config: ExtractConfig, source: Source, terminal: Terminal
) -> list[PlanCommit]:
    """Give every picture that no generation has a row in a new one; returns all generations.

    Raises:
        ConfigError: as `unplanned`.
    """
    listing = list_images(source, bytes.fromhex(catalog.record.order_key), config.images.limit)
    while True:
        generations = catalog.generations()
        fresh = unplanned(catalog, generations, listing, config.views, source)
        if not fresh.keys:
            return generations
        try:
            commit = _write_generation(catalog, generations, fresh, config, source)
        except AlreadyExists:
            continue  # another job planned this generation first: look again
        terminal.decide(
            "plan",
            f"{commit.rows:,} new rows",
            f"{commit.images:,} images x {commit.views.per_image} views, "
            f"generation {commit.generation}, spans of {commit.span_images}",
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


def draws_of(key: str, view: int, seed: int) -> Draws | None:
    """The stored draws of a view: functions of key, view and seed, whatever the order."""
    if view == 0:
        return None
    return Draws(*uniforms(f"{view}/{key}", f"teachonce view {seed}".encode(), DRAWS))


def _write_generation(
    catalog: Catalog,
    generations: list[PlanCommit],
    listing: Listing,
    config: ExtractConfig,
    source: Source,
) -> PlanCommit:
    number = len(generations)
    attempt = uuid.uuid4().hex[:12]
    draft = PlanCommit(
        generation=number,
        first_row=sum(commit.rows for commit in generations),
        images=len(listing.keys),
        views=config.views,
        span_images=span_images(len(listing.keys)),
        source=source.url,
        columns=config.images.columns,
        parts=(),
    )
    parts = []
    for part, table in enumerate(_parts(draft, listing)):
        data = tables.to_parquet(table)
        key = layout.plan_part(number, part, attempt)
        catalog.store.create(key, data)
        parts.append(ObjectRecord(key=key, size=len(data), sha256=digest(data)))
    commit = draft.model_copy(update={"parts": tuple(parts)})
    catalog.store.create(layout.plan_commit(number), seal(commit))
    return commit


def _parts(commit: PlanCommit, listing: Listing) -> Iterator[pa.Table]:
    images, views = _row_order(commit)
    for first in range(0, commit.rows, tables.ROWS_PER_PLAN_PART):
        here = slice(first, first + tables.ROWS_PER_PLAN_PART)
        yield _part(commit, listing, images[here], views[here])


def _row_order(commit: PlanCommit) -> tuple[np.ndarray, np.ndarray]:
    """Image and view of every row: spans in order, each view-major."""
    per_image = commit.views.per_image
    images, views = np.empty(commit.rows, np.int64), np.empty(commit.rows, np.int32)
    for number in range(span_count(commit)):
        span = span_of(commit, number)
        rows = slice(span.first_row, span.first_row + span.images * per_image)
        images[rows] = np.tile(
            np.arange(span.first_image, span.first_image + span.images), per_image
        )
        views[rows] = np.repeat(np.arange(per_image, dtype=np.int32), span.images)
    return images, views


def _part(commit: PlanCommit, listing: Listing, images: np.ndarray, views: np.ndarray) -> pa.Table:
    keys = [listing.keys[image] for image in images]
    draws = [draws_of(key, int(view), commit.views.seed) for key, view in zip(keys, views)]
    columns: dict[str, object] = {
        "key": keys,
        "size": [listing.sizes[image] for image in images],
        "etag": [listing.etags[image] for image in images],
        "view": views,
    }
    for name in ("scale", "ratio", "x", "y", "flip"):
        columns[f"draw_{name}"] = [draw and getattr(draw, name) for draw in draws]
    return pa.table(columns, schema=tables.PLAN)


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
