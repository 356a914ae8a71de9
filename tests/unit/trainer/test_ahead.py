"""What is read for the batches to come: over a plan of 120,000 rows, of which no byte exists."""

import gc
import weakref
from collections import Counter
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import trainer.ahead
from schemas.names import BLOCK_ROWS
from schemas.shard import RowForm, Rows
from trainer.ahead import Ahead, Planned
from trainer.cache import Block, CacheReader
from trainer.epochs import Epochs
from trainer.order import OrderKey
from trainer.room import Room
from trainer.serving import Serving, ViewChoice
from trainer.set_reader import SetBlock

IMAGES, VIEWS, SPAN = 40_007, 3, 512
KEY = OrderKey(32, 1, bytes(16), 5)
GRIDS = (4, 6, 8)


class Unwritten:
    """A reader that counts what would be read, and says of each row which it is."""

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
        codec = SimpleNamespace(row_form=lambda tokens: RowForm("float16", tokens, 1))
        info = SimpleNamespace(cls_width=None, codecs=dict.fromkeys(GRIDS, codec))
        self.teachers = {"t": info}
        self.reads: Counter[tuple[int, int]] = Counter()
        self.rows = 0

    def covered(self, plan: Any) -> Any:
        return np.ones(-(-plan.rows // BLOCK_ROWS), bool)

    def served(self, plan: Any, rows: Any) -> Any:
        return np.ones(len(rows), bool)

    def block_bytes(self, grids: Mapping[str, int]) -> int:
        return grids["t"]

    def read_into(
        self,
        generation: int,
        block: int,
        into: Mapping[str, Mapping[int, Rows]],
        grids: Mapping[str, int],
    ) -> Block:
        self.reads[block, grids["t"]] += 1
        for row, tokens in into["t"].items():
            assert tokens.shape == (grids["t"] ** 2, 1)
            tokens[...] = (block * BLOCK_ROWS + row) % 2048
            self.rows += 1
        ok = np.ones(BLOCK_ROWS, bool)
        return Block(block * BLOCK_ROWS, None, {"t": SetBlock(None, ok, [], [], 0)})


def begun(
    reader: Unwritten,
    pool: ThreadPoolExecutor,
    views: ViewChoice,
    grids: tuple[int, ...],
    state: dict[str, Any],
    rank: tuple[int, int] = (0, 1),
    batch_size: int = 128,
) -> Generator[Planned, None, None]:
    """The batches of an epoch, or what a state leaves of it."""
    serving = Serving(cast("CacheReader", reader), views, KEY)
    epochs = Epochs(serving, KEY, (len(grids), 1), *rank)
    choices = [{"t": grid} for grid in grids]
    ahead = Ahead(pool, cast("CacheReader", reader), serving, epochs, choices, [0])
    with closing(ahead.begun(state, batch_size)) as batches:
        for batch in batches:
            is_last = batch.drawn.state["epoch"] != state["epoch"]
            yield batch
            if is_last:
                return


def check(batch: Planned) -> list[int]:
    """The rows of a batch; each tensor holds what belongs to it."""
    for reading, _ in batch.rows:
        reading.block()
    assert batch.room is not None
    made = batch.room.batch(batch.drawn, {})
    tokens = made.targets["t"].tokens
    if batch.rows:
        assert made.weight.all()
        assert (tokens == (made.rows % 2048)[:, None, None]).all()
    return [row for row in made.rows.tolist() if row >= 0]


@pytest.mark.parametrize("views", ["all", "random", [1]])
@pytest.mark.parametrize("world", [1, 4])
def test_begun__an_epoch_reads_its_rows_and_nothing_else(views: ViewChoice, world: int) -> None:
    rows: list[int] = []
    readers = [Unwritten() for _ in range(world)]
    with ThreadPoolExecutor(1) as pool:
        for rank, reader in enumerate(readers):
            state = {"epoch": 2, "cursors": [0] * 3}
            for batch in begun(reader, pool, views, GRIDS, state, (rank, world)):
                rows += check(batch)
    assert len(set(rows)) == len(rows) == sum(reader.rows for reader in readers)
    assert len(rows) == IMAGES * VIEWS if views == "all" else len(rows) > 0.99 * IMAGES
    # Where two lanes, or two ranks, share a block, each reads its part of it.
    reads, blocks = sum(reader.reads.total() for reader in readers), len(rows) / BLOCK_ROWS
    assert reads <= 1.1 * blocks


@pytest.mark.parametrize("batch_size", [1, 48, 3000])
def test_begun__from_the_middle_of_an_epoch(batch_size: int) -> None:
    state = {"epoch": 0, "cursors": [IMAGES * VIEWS - 5_003]}
    reader = Unwritten()
    with ThreadPoolExecutor(3) as pool:
        batches = begun(reader, pool, "all", (4,), state, batch_size=batch_size)
        rows = [row for batch in batches for row in check(batch)]
    assert len(set(rows)) == len(rows) == reader.rows == 5_003


def test_begun__waits_for_no_more_batches_than_a_block_goes_to() -> None:
    """Memory is what is drawn ahead: a window of each lane, not the epoch."""
    reader = Unwritten()
    planned: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        batches = begun(reader, pool, "all", (4,), {"epoch": 0, "cursors": [0]}, batch_size=64)
        for batch in batches:
            check(batch)
            planned.append(reader.rows)
            if len(planned) == 200:
                break
    ahead = max(rows - 64 * (number + 1) for number, rows in enumerate(planned))
    assert ahead <= KEY.lanes * BLOCK_ROWS


def test_begun__closed_leaves_no_batch_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is large; what refers to it in a circle stays until many small things were made."""
    rooms: weakref.WeakSet[Room] = weakref.WeakSet()

    def tracked(*args: Any) -> Room:
        room = Room(*args)
        rooms.add(room)
        return room

    monkeypatch.setattr(trainer.ahead, "Room", tracked)
    gc.disable()
    try:
        with ThreadPoolExecutor(1) as pool:
            batches = begun(Unwritten(), pool, "all", (4,), {"epoch": 0, "cursors": [0]})
            for _ in range(20):
                check(next(batches))
            assert len(rooms) > 1
            batches.close()
        assert len(rooms) == 0
    finally:
        gc.enable()
