"""How often blocks are read: over a plan of 120,000 rows, of which no byte exists."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from schemas.names import BLOCK_ROWS
from trainer.cache import CacheReader
from trainer.epochs import Epochs
from trainer.held_blocks import HeldBlocks
from trainer.order import OrderKey
from trainer.serving import Serving, ViewChoice

IMAGES, VIEWS, SPAN = 40_007, 3, 512
KEY = OrderKey(32, 1, bytes(16), 5)
BYTES = {4: 16_000, 6: 36_000, 8: 64_000}
"""Of a block, by grid."""


class Unwritten:
    """A reader that counts what would be read."""

    superseded = np.empty(0, np.int64)
    disk = None

    def __init__(self) -> None:
        plan = SimpleNamespace(
            generation=0,
            first_row=0,
            first_view=0,
            images=IMAGES,
            rows=IMAGES * VIEWS,
            view_count=VIEWS,
            span_images=SPAN,
        )
        self.generations = [plan]
        self.reads: Counter[tuple[int, int]] = Counter()

    def covered(self, plan: Any) -> Any:
        return np.ones(-(-plan.rows // BLOCK_ROWS), bool)

    def served(self, plan: Any, rows: Any) -> Any:
        return np.ones(len(rows), bool)

    def block_bytes(self, grids: Mapping[str, int]) -> int:
        return BYTES[grids["t"]]

    def read_block(self, generation: int, block: int, grids: Mapping[str, int]) -> None:
        self.reads[block, grids["t"]] += 1

    @property
    def bytes(self) -> int:
        return sum(BYTES[grid] * count for (_, grid), count in self.reads.items())


@pytest.mark.parametrize("views", ["all", "random", [1]])
@pytest.mark.parametrize("world", [1, 4])
def test_read__an_epoch_costs_hardly_more_than_what_is_used(views: ViewChoice, world: int) -> None:
    readers, used = [Unwritten() for _ in range(world)], 0.0
    for rank, reader in enumerate(readers):
        serving = Serving(cast("CacheReader", reader), views, KEY)
        epochs = Epochs(serving, KEY, (3, 1), rank, world)
        with ThreadPoolExecutor(1) as pool:
            grids = [{"t": grid} for grid in BYTES]
            blocks = HeldBlocks(
                pool, cast("CacheReader", reader), serving, epochs, grids, 1_000_000
            )
            state = {"epoch": 2, "cursors": [0] * 3}
            for drawn in epochs.batches(state, 128):
                if drawn.epoch > 2:
                    break
                blocks.read(drawn)
                used += len(drawn.rows) * BYTES[grids[drawn.choice]["t"]] / BLOCK_ROWS
    assert used > 0
    assert sum(reader.bytes for reader in readers) <= 1.1 * used


def test_read__what_fits_is_read_once_in_all() -> None:
    reader = Unwritten()
    serving = Serving(cast("CacheReader", reader), "all", KEY)
    with ThreadPoolExecutor(1) as pool:
        epochs = Epochs(serving, KEY, (1, 1), 0, 1)
        blocks = HeldBlocks(pool, cast("CacheReader", reader), serving, epochs, [{"t": 4}], 1 << 40)
        for drawn in epochs.batches({"epoch": 0, "cursors": [0]}, 500):
            if drawn.epoch == 2:
                break
            blocks.read(drawn)
    assert set(reader.reads.values()) == {1}
    assert len(reader.reads) == -(-IMAGES * VIEWS // BLOCK_ROWS)
