"""The plan: which rows exist, in which order. Written once a generation, never changed.

Images stand in the order of a keyed hash of their keys, so that any stretch of rows is a random
sample. A span is a power of two of consecutive images; its rows are view-major, so that a shard
holds one view. The generation's last span may be short; its rows follow on without a gap.
"""

import hashlib
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from infra.catalog import Catalog
from infra.pixels.views import DRAWS, Draws
from infra.sources import Source
from infra.store import ObjectStore
from infra.terminal import Terminal
from pipeline.listing import Listing, list_images, unplanned
from pipeline.spans import span_count, span_images, span_of
from schemas import layout, tables
from schemas.errors import AlreadyExists, ConfigError, StoreError
from schemas.extract_config import ExtractConfig
from schemas.keyed_hash import uniforms
from schemas.records import CacheRecord, ObjectRecord, PlanCommit
from schemas.sealed import digest, seal

WINDOW_BLOCKS = 16


def order_key(seed: int) -> bytes:
    return hashlib.sha256(f"teachonce order {seed}".encode()).digest()[:16]


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
