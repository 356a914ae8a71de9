"""Which rows of a snapshot a stream serves, block by block, without a list of rows.

Nearly every block is served whole or not at all; which, follows from arithmetic. Only blocks that
mix views (in a generation's short last span) or that hold superseded rows are looked at by row.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.keyed_hash import mix
from schemas.names import BLOCK_ROWS
from schemas.records import PlanCommit
from schemas.spans import Whole, images_and_views
from trainer.cache import CacheReader
from trainer.order import BlockTable, OrderKey

Mask = npt.NDArray[np.bool_]
ViewChoice = Literal["all", "random"] | Sequence[int]


class Place(NamedTuple):
    """Where a block lies."""

    generation: int
    block: int
    """Within the generation."""


class Serving:
    """The rows of a snapshot that all sets cover, in the views asked for.

    `random` serves one view of each image and generation in an epoch; 32 images that lie together
    take the same one, so that blocks are read whole or not at all.
    """

    def __init__(self, reader: CacheReader, views: ViewChoice, key: OrderKey) -> None:
        self._reader, self._views, self._key = reader, views, key
        self._blocks = [np.flatnonzero(reader.covered(plan)) for plan in reader.generations]
        starts = [len(blocks) for blocks in self._blocks]
        self._starts = np.concatenate([[0], np.cumsum(starts)]).astype(np.int64)
        first_rows = [
            plan.first_row + blocks * BLOCK_ROWS
            for plan, blocks in zip(reader.generations, self._blocks)
        ]
        self._first_row = np.concatenate(first_rows).astype(np.int64)
        self._fixed = None if views == "random" else self._make(0)

    def table(self, epoch: int) -> BlockTable:
        """The blocks of an epoch; those of which nothing is served have no rows."""
        return self._make(epoch) if self._fixed is None else self._fixed

    def place(self, index: int) -> Place:
        """Where a block of the table lies."""
        generation = int(np.searchsorted(self._starts, index, side="right")) - 1
        return Place(generation, int(self._blocks[generation][index - self._starts[generation]]))

    def rows(self, place: Place, epoch: int) -> Whole:
        """Which rows of a block are served: numbers from 0 to 31."""
        plan = self._reader.generations[place.generation]
        first = place.block * BLOCK_ROWS
        rows = np.arange(first, min(first + BLOCK_ROWS, plan.rows))
        return np.flatnonzero(self._is_served(plan, rows, epoch))

    def _make(self, epoch: int) -> BlockTable:
        pairs = zip(self._reader.generations, self._blocks)
        return BlockTable(
            self._first_row,
            np.concatenate([self._sizes(plan, blocks, epoch) for plan, blocks in pairs]),
        )

    def _sizes(self, plan: PlanCommit, blocks: Whole, epoch: int) -> Whole:
        first = blocks * BLOCK_ROWS
        last = np.minimum(first + BLOCK_ROWS, plan.rows) - 1
        sizes = np.where(self._is_wanted(plan, first, epoch), last + 1 - first, 0)
        for index in np.flatnonzero(self._is_mixed(plan, first, last)).tolist():
            rows = np.arange(first[index], last[index] + 1)
            sizes[index] = np.count_nonzero(self._is_served(plan, rows, epoch))
        return sizes

    def _is_mixed(self, plan: PlanCommit, first: Whole, last: Whole) -> Mask:
        """Of which blocks not all rows share their fate."""
        one, other = images_and_views(plan, first), images_and_views(plan, last)
        mixed = (one[1] != other[1]) | (one[0] // BLOCK_ROWS != other[0] // BLOCK_ROWS)
        gone = self._reader.superseded - plan.first_row
        touched = np.unique(gone[(gone >= 0) & (gone < plan.rows)] // BLOCK_ROWS)
        return np.asarray(mixed | np.isin(first // BLOCK_ROWS, touched))

    def _is_served(self, plan: PlanCommit, rows: Whole, epoch: int) -> Mask:
        served = self._reader.served(plan, rows)
        return np.asarray(served & self._is_wanted(plan, rows, epoch))

    def _is_wanted(self, plan: PlanCommit, rows: Whole, epoch: int) -> Mask:
        """Which rows are of the views asked for."""
        if self._views == "all":
            return np.ones(len(rows), bool)
        images, views = images_and_views(plan, rows)
        if self._views != "random":
            return np.isin(views, sorted(self._views))
        key = self._key.subkey("views", epoch, plan.generation)
        turn = mix(images // BLOCK_ROWS, key) % np.uint64(plan.view_count)
        return np.asarray(views - plan.first_view == turn.astype(np.int64))
