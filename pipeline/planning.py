"""The plan: which rows exist, in which order. Written once a generation, never changed.

Images stand in the order of a keyed hash of their keys, so that any stretch of rows is a random
sample. A span is a power of two of consecutive images; its rows are view-major, so that a shard
holds one view. The generation's last span may be short; its rows follow on without a gap.
"""

import hashlib
import uuid
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa

from infra.catalog import Catalog
from infra.pixels.views import draw, draw_columns
from infra.sources import Source
from infra.store import ObjectStore
from infra.terminal import Terminal
from pipeline.growth import Growth, growths
from pipeline.listing import Listing, Standing, list_images, standings
from pipeline.publish import Place
from schemas import layout, tables
from schemas.errors import AlreadyExists, ConfigError, StoreError
from schemas.extract_config import ExtractConfig
from schemas.limits import Limits
from schemas.names import BLOCK_ROWS, MAX_SPAN_IMAGES
from schemas.records import CacheRecord, ObjectRecord, PlanCommit
from schemas.sealed import digest, seal
from schemas.spans import images_and_views

LANES, WINDOW_BLOCKS = 32, 1
"""A trainer holds a block of each lane: 32 of 32 rows mix as many rows as it is worth holding."""
SPANS_WANTED = 16
"""A data set of fewer full spans than this gets smaller ones, so that workers are not idle."""


def order_key(seed: int) -> bytes:
    return hashlib.sha256(f"teachonce order {seed}".encode()).digest()[:16]


def open_or_create_cache(store: ObjectStore, config: ExtractConfig) -> Catalog:
    """The cache at `store`, made if there is none.

    Raises:
        CacheError: one of another format is there. ConfigError: none can be made there.
    """
    record = CacheRecord(
        name=store.url.rstrip("/").rpartition("/")[2] or "cache",
        lanes=LANES,
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
    catalog: Catalog,
    config: ExtractConfig,
    source: Source,
    terminal: Terminal,
    damaged: Collection[Place] = (),
) -> list[Standing]:
    """Give every picture and view that is asked for a row; returns all generations.

    Args:
        damaged: shards that nothing is to be read from.

    Raises:
        ConfigError: as `standings`. SourceError: as `growths`.
    """
    listing = list_images(source, bytes.fromhex(catalog.record.order_key), config.images.limit)
    while True:
        generations = catalog.generations()
        standing = standings(catalog, generations, listing, config, source)
        lacking = growths(catalog, standing, listing, config, source, terminal, damaged)
        if not lacking:
            return standing
        try:
            for growth in lacking:
                commit = _write_generation(catalog, generations, listing, growth, config, source)
                generations.append(commit)
                terminal.decide(
                    "plan",
                    f"{commit.rows:,} new rows",
                    f"{growth.why}; generation {commit.generation}, spans of {commit.span_images}",
                )
        except AlreadyExists:
            continue  # another job planned this generation first: look again
        return standings(catalog, generations, listing, config, source)


def span_images(images: int) -> int:
    """The span of a generation of so many images."""
    span = MAX_SPAN_IMAGES
    while span > BLOCK_ROWS and images < span * SPANS_WANTED:
        span //= 2
    return span


def draft_generation(
    generations: Sequence[PlanCommit], growth: Growth, config: ExtractConfig, source: Source
) -> PlanCommit:
    """The generation that follows, without its objects."""
    return PlanCommit(
        generation=len(generations),
        first_row=sum(commit.rows for commit in generations),
        images=len(growth.places),
        first_view=growth.first_view,
        views=config.views,
        span_images=span_images(len(growth.places)),
        source=source.url,
        columns=config.images.columns,
        limits=Limits(max_pixels=config.images.max_pixels, max_bytes=config.images.max_bytes),
        parts=(),
        superseded=None,
    )


def _write_generation(
    catalog: Catalog,
    generations: list[PlanCommit],
    listing: Listing,
    growth: Growth,
    config: ExtractConfig,
    source: Source,
) -> PlanCommit:
    number = len(generations)
    attempt = uuid.uuid4().hex[:12]
    draft = draft_generation(generations, growth, config, source)

    def create(key: str, data: bytes) -> ObjectRecord:
        catalog.store.create(key, data)
        return ObjectRecord(key=key, size=len(data), sha256=digest(data))

    parts = [
        create(layout.plan_part(number, part, attempt), tables.joined(pieces, tables.PLAN))
        for part, pieces in enumerate(_parts(draft, listing, growth))
    ]
    superseded = None
    if len(growth.superseded):
        rows = pa.table({"row": growth.superseded}, schema=tables.SUPERSEDED)
        superseded = create(layout.plan_superseded(number, attempt), tables.to_parquet(rows))
    commit = draft.model_copy(update={"parts": tuple(parts), "superseded": superseded})
    catalog.store.create(layout.plan_commit(number), seal(commit))
    return commit


def _parts(commit: PlanCommit, listing: Listing, growth: Growth) -> Iterator[Iterator[pa.Table]]:
    """The tables that each part is written from, one after the other."""
    for first in range(0, commit.rows, tables.ROWS_PER_PLAN_PART):
        end = min(first + tables.ROWS_PER_PLAN_PART, commit.rows)
        starts = range(first, end, tables.ROWS_PER_PLAN_GROUP)
        yield (
            _rows(commit, listing, growth, start, min(start + tables.ROWS_PER_PLAN_GROUP, end))
            for start in starts
        )


def _rows(commit: PlanCommit, listing: Listing, growth: Growth, first: int, end: int) -> pa.Table:
    """Few enough for the objects that they are made of: those of a whole part take a gigabyte."""
    images, views = images_and_views(commit, np.arange(first, end))
    places = growth.places[images].tolist()
    keys = [listing.keys[place] for place in places]
    draws = [draw(key, view, commit.views) for key, view in zip(keys, views.tolist())]
    columns: dict[str, object] = {
        "key": keys,
        "size": [listing.sizes[place] for place in places],
        "etag": [listing.etags[place] for place in places],
        "view": views,
        **draw_columns(draws),
    }
    return pa.table(columns, schema=tables.PLAN)
