"""What a data set holds now, and how the plan stands to it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from infra.catalog import Catalog, is_superseded
from infra.plan_reader import PlanReader
from infra.sources import Source
from pipeline.job import Excused
from schemas.errors import ConfigError
from schemas.extract_config import ExtractConfig, Views
from schemas.keyed_hash import Words, hash_texts
from schemas.records import PlanCommit
from schemas.spans import Whole, images_and_views, rows_of

GONE = -1


@dataclass(frozen=True)
class Listing:
    """Every picture of a source, in hash order."""

    keys: list[str]
    sizes: list[int]
    etags: list[str]
    asked: int
    """The first so many are asked for; `images.limit` may leave out the others."""


def list_images(source: Source, key: bytes, limit: int | None) -> Listing:
    """The source's pictures in hash order.

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
    return Listing(
        [entry.key for entry in chosen],
        [entry.size for entry in chosen],
        [entry.etag for entry in chosen],
        len(chosen) if limit is None else min(limit, len(chosen)),
    )


@dataclass(frozen=True)
class Standing:
    """A generation of the plan beside the data set as it is now."""

    plan: PlanCommit
    places: Whole
    """[images] each image's place in the listing, or GONE."""
    live: npt.NDArray[np.bool_]
    """[images] False where a later generation replaces the image."""
    stamp_differs: npt.NDArray[np.bool_]
    """[images] True where size or time stamp differ from what was planned."""
    asked: int
    """As the listing's."""
    views: int
    """Views of each image that are asked for."""

    @cached_property
    def is_there(self) -> npt.NDArray[np.bool_]:
        """[images] True where the data set still has it."""
        return np.not_equal(self.places, GONE)

    @cached_property
    def present(self) -> npt.NDArray[np.bool_]:
        """[images] True where the image counts and is there."""
        return self.live & self.is_there

    @cached_property
    def images_asked(self) -> npt.NDArray[np.bool_]:
        """[images] True where it is also asked for."""
        return self.present & (self.places < self.asked)

    @property
    def rows_asked(self) -> int:
        views = min(self.views, self.plan.views.per_image) - self.plan.first_view
        return int(self.images_asked.sum()) * max(0, views)

    def asks(self, rows: Whole) -> npt.NDArray[np.bool_]:
        """Which rows of the generation are asked for."""
        images, views = images_and_views(self.plan, rows)
        return np.asarray(self.images_asked[images] & (views < self.views))

    def excused(self, first_image: int, images: int) -> Excused:
        """(image after `first_image`, reason) of those of a stretch that are not to be read."""
        here = slice(first_image, first_image + images)
        replaced = "replaced: it stands anew in a later generation"
        return tuple(
            (image, "is no longer in the data set" if self.live[here][image] else replaced)
            for image in np.flatnonzero(~self.present[here]).tolist()
        )

    def live_rows(self, images: Whole) -> Whole:
        """Plan rows of those of the images that count, in all the generation's views."""
        live = images[self.live[images]]
        return self.plan.first_row + rows_of(self.plan, live).reshape(-1)


def standings(
    catalog: Catalog,
    generations: list[PlanCommit],
    listing: Listing,
    config: ExtractConfig,
    source: Source,
) -> list[Standing]:
    """How each generation stands to the data set.

    Raises:
        ConfigError: the cache was planned with views drawn otherwise, or holds another data set.
    """
    hashes = hash_texts(listing.keys, bytes.fromhex(catalog.record.order_key))
    superseded = catalog.superseded(generations)
    found = []
    for commit in generations:
        _refuse_other_views(catalog.store.url, commit, config.views)
        places = np.full(commit.images, GONE, np.int64)
        stamp_differs = np.zeros(commit.images, bool)
        for image, (place, line) in enumerate(_places(catalog, commit, listing, hashes)):
            places[image] = place
            stamp_differs[image] = place != GONE and (line["size"], line["etag"]) != (
                listing.sizes[place],
                listing.etags[place],
            )
        first_rows = commit.first_row + rows_of(commit, np.arange(commit.images))[:, 0]
        live = ~is_superseded(superseded, first_rows)
        per_image = config.views.per_image
        found.append(Standing(commit, places, live, stamp_differs, listing.asked, per_image))
    if found and not any((standing.places != GONE).any() for standing in found):
        raise ConfigError(
            f"{catalog.store.url}: holds the pictures of {generations[0].source}; none of them is "
            f"in {source.url}. Bring them back, or give another `cache` for another data set"
        )
    return found


def _places(
    catalog: Catalog, commit: PlanCommit, listing: Listing, hashes: Words
) -> Iterator[tuple[int, dict[str, object]]]:
    """For each image of a generation, in order, its place in the listing and its line of the plan.
    The listing stands in hash order; a hash finds the place, the key itself confirms it."""
    key = bytes.fromhex(catalog.record.order_key)
    for table in PlanReader(catalog.store, commit).batches():
        first_view = table.filter(pc.equal(table["view"], commit.first_view))
        lines = first_view.select(["key", "size", "etag"]).to_pylist()
        wanted = hash_texts((line["key"] for line in lines), key)
        starts = np.searchsorted(hashes, wanted).tolist()
        for line, code, place in zip(lines, wanted, starts):
            while place < len(hashes) and hashes[place] == code:
                if listing.keys[place] == line["key"]:
                    break
                place += 1
            else:
                place = GONE
            yield place, line


def _refuse_other_views(url: str, commit: PlanCommit, views: Views) -> None:
    asked, planned = views.model_dump(), commit.views.model_dump()
    different = [
        f"  views.{name}: planned {planned[name]}, now {asked[name]}"
        for name in planned
        if planned[name] != asked[name] and name != "per_image"
    ]
    if different:
        raise ConfigError(
            "\n".join([f"{url}: was planned with views drawn otherwise", *different])
            + "\nset them back, or give another `cache`; only views.per_image may change"
        )
