from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.names import BLOCK_ROWS
from trainer.order import BlockTable, EpochOrder, OrderKey, draw, draw_evenly, split

KEY = bytes(range(16))
SIZES = st.lists(st.integers(0, BLOCK_ROWS), min_size=1, max_size=43)
SEEDS = st.integers(0, 2**40)
EPOCHS = st.integers(0, 5)
KEYS = st.builds(
    OrderKey,
    lanes=st.sampled_from([1, 2, 3, 32]),
    window_blocks=st.sampled_from([1, 2, 5]),
    key=st.just(KEY),
    seed=SEEDS,
)
PLAIN = OrderKey(4, 2, KEY, 0)


def table(sizes: list[int]) -> BlockTable:
    """Blocks as they lie in a plan, whatever is served of them."""
    return BlockTable(np.arange(len(sizes)) * BLOCK_ROWS, np.array(sizes, np.int64))


def sequence(
    blocks: BlockTable,
    key: OrderKey = PLAIN,
    epoch: int = 0,
    start: int = 0,
    batch: int = 64,
    world: int = 1,
) -> list[tuple[int, int]]:
    """(first row of the block, row of the block) from the epoch's `start`-th row on."""
    orders = [EpochOrder(blocks, key, epoch) for _ in range(world)]
    rows: list[tuple[int, int]] = []
    for first in range(start, orders[0].rows, batch):
        for rank, order in enumerate(orders):
            taken = order.take(first, batch, rank, world)
            rows += zip(blocks.first_row[taken.blocks].tolist(), taken.places.tolist())
    return rows


@given(SIZES, KEYS, EPOCHS)
def test_take__gives_every_row_once(sizes: list[int], key: OrderKey, epoch: int) -> None:
    rows = sequence(table(sizes), key, epoch)
    assert sorted(rows) == [
        (block * BLOCK_ROWS, row) for block, size in enumerate(sizes) for row in range(size)
    ]


@given(SIZES, KEYS, st.integers(1, 70), st.data())
def test_take__from_any_cursor_in_any_batches_is_the_tail(
    sizes: list[int], key: OrderKey, batch: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, sum(sizes)))
    whole = sequence(table(sizes), key)
    assert sequence(table(sizes), key, start=start, batch=batch) == whole[start:]


def test_take__every_cursor_of_a_prime_table() -> None:
    blocks = table([32, 1, 31, 7, 1, 1, 29, 32, 13, 1, 0, 3])
    assert blocks.rows == 151
    whole = sequence(blocks, epoch=1)
    for start in range(blocks.rows + 1):
        assert sequence(blocks, epoch=1, start=start, batch=5) == whole[start:]


@given(SIZES, KEYS, st.integers(1, 7), st.integers(1, 70))
def test_take__ranks_share_each_batch(
    sizes: list[int], key: OrderKey, world: int, batch: int
) -> None:
    blocks = table(sizes)
    alone, together = sequence(blocks, key), sequence(blocks, key, batch=batch, world=world)
    for first in range(0, blocks.rows, batch):
        end = first + batch
        assert sorted(together[first:end]) == sorted(alone[first:end])


@pytest.mark.parametrize("world", [2, 4, 8])
def test_take__ranks_read_hardly_a_block_twice(world: int) -> None:
    """Batches that are a multiple of the lanes, lanes a multiple of the ranks."""
    blocks, key = table([32] * 640), OrderKey(32, 1, KEY, 3)
    orders = [EpochOrder(blocks, key, 0) for _ in range(world)]
    seen = [
        {block for first in range(0, blocks.rows, 64) for block in taken(order, first, rank, world)}
        for rank, order in enumerate(orders)
    ]
    assert set.union(*seen) == set(range(640))
    assert sum(map(len, seen)) <= 640 + key.lanes - 1


def taken(order: EpochOrder, first: int, rank: int, world: int) -> set[int]:
    return set(order.take(first, 64, rank, world).blocks.tolist())


def test_take__world_may_change_in_mid_epoch() -> None:
    blocks = table([32, 5, 1, 32, 7, 32, 32, 2, 31, 32, 11, 3] * 3)
    whole = sequence(blocks)
    for world, cut in ((1, 17), (3, 100), (5, 371)):
        rest = sequence(blocks, start=cut, batch=30, world=world)
        assert sorted(rest) == sorted(whole[cut:])


@given(st.permutations(range(12)), KEYS)
def test_take__does_not_depend_on_the_order_of_the_table(order: list[int], key: OrderKey) -> None:
    blocks = table([32, 5, 1, 32, 7, 32, 32, 2, 31, 32, 11, 3])
    shuffled = BlockTable(blocks.first_row[order], blocks.sizes[order])
    assert sequence(shuffled, key) == sequence(blocks, key)


@given(SEEDS, EPOCHS)
def test_take__another_epoch_or_seed_is_another_order(seed: int, epoch: int) -> None:
    blocks = table([32] * 20)
    orders = {
        tuple(sequence(blocks, OrderKey(4, 2, KEY, seed), epoch)),
        tuple(sequence(blocks, OrderKey(4, 2, KEY, seed), epoch + 1)),
        tuple(sequence(blocks, OrderKey(4, 2, KEY, seed + 1), epoch)),
    }
    assert len(orders) == 3


def test_take__mixes_rows_of_as_many_blocks_as_there_are_lanes() -> None:
    blocks = table([32] * 128)
    rows = sequence(blocks, OrderKey(32, 1, KEY, 0))
    batches = [{first for first, _ in rows[at : at + 64]} for at in range(0, len(rows), 64)]
    assert min(map(len, batches)) == 32
    assert sum(one[0] == other[0] for one, other in pairwise(rows)) == 0


def test_take__holds_one_window_of_each_lane() -> None:
    blocks, key = table([32] * 200), OrderKey(8, 2, KEY, 0)
    order = EpochOrder(blocks, key, 0)
    for first in range(0, blocks.rows, 48):
        order.take(first, 48)
        assert len(order.open_blocks()) <= 8 * 2


def test_take__is_uniform_over_places() -> None:
    """Each row stands in the first quarter of an epoch about every fourth time."""
    blocks = table([8] * 8)
    early: Counter[tuple[int, int]] = Counter()
    for epoch in range(400):
        early.update(sequence(blocks, OrderKey(2, 2, KEY, 0), epoch)[:16])
    assert early.total() == 400 * 16
    assert len(early) == 64
    assert 60 < min(early.values()) <= max(early.values()) < 145  # 100 expected, deviation 8.7


def test_take__order_is_what_it_was() -> None:
    """Frozen for ever: a run that is resumed by a later version sees the same rows."""
    blocks = table([4, 1, 3, 2, 4])
    order = sequence(blocks, OrderKey(2, 2, KEY, 7), 2)
    rows = [first // BLOCK_ROWS * 10 + row for first, row in order]
    assert rows == [20, 10, 1, 30, 22, 31, 21, 43, 3, 40, 2, 42, 0, 41]


@given(SEEDS, EPOCHS, st.integers(1, 5))
def test_split__gives_every_block_one_choice(seed: int, epoch: int, choices: int) -> None:
    blocks = table([32] * 300)
    key = OrderKey(4, 2, KEY, seed)
    parts = split(blocks, key, epoch, choices)
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))
    assert min(map(len, parts)) > 300 / choices / 2


def test_split__is_another_in_each_epoch() -> None:
    blocks = table([32] * 300)
    first, second = (split(blocks, PLAIN, epoch, 3)[0].tolist() for epoch in (0, 1))
    assert first != second


def test_draw__follows_what_is_left() -> None:
    counts = Counter(draw([10, 0, 30], PLAIN, 0, row) for row in range(4000))
    assert set(counts) == {0, 2}
    assert 850 < counts[0] < 1150


def test_draw_evenly__is_even_and_free_of_the_other_draw() -> None:
    pairs = Counter(
        (draw([1, 1, 1], PLAIN, 1, row), draw_evenly(3, PLAIN, 1, row)) for row in range(0, 9000, 2)
    )
    assert len(pairs) == 9
    assert 400 < min(pairs.values()) <= max(pairs.values()) < 600  # 500 expected, deviation 21
