from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.names import BLOCK_ROWS
from trainer.order import BlockTable, EpochOrder

KEY = bytes(range(16))
SIZES = st.lists(st.integers(1, BLOCK_ROWS), min_size=1, max_size=43)
SEEDS = st.integers(0, 2**40)
EPOCHS = st.integers(0, 5)
WINDOWS = st.sampled_from([1, 2, 5, 16])


def table(sizes: list[int]) -> BlockTable:
    """Blocks as they lie in a plan, whatever is served of them."""
    return BlockTable(np.arange(len(sizes)) * BLOCK_ROWS, np.array(sizes, np.int64))


def sequence(
    blocks: BlockTable, seed: int = 0, epoch: int = 0, start: int = 0, window: int = 16
) -> list[tuple[int, int]]:
    """(first row of the block, row of the block) from the epoch's `start`-th row on."""
    rows: list[tuple[int, int]] = []
    for begin, one in EpochOrder(blocks, window, KEY, seed, epoch).windows(start):
        first_rows = blocks.first_row[one.blocks][one.block_of]
        rows += list(zip(first_rows.tolist(), one.row_of.tolist()))[begin:]
    return rows


@given(SIZES, SEEDS, EPOCHS, WINDOWS)
def test_windows__have_every_row_once(sizes: list[int], seed: int, epoch: int, window: int) -> None:
    rows = sequence(table(sizes), seed, epoch, window=window)
    assert sorted(rows) == [
        (block * BLOCK_ROWS, row) for block, size in enumerate(sizes) for row in range(size)
    ]


@given(SIZES, SEEDS, WINDOWS, st.data())
def test_windows__from_any_cursor_are_the_tail(
    sizes: list[int], seed: int, window: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, sum(sizes)))
    whole = sequence(table(sizes), seed, window=window)
    assert sequence(table(sizes), seed, start=start, window=window) == whole[start:]


def test_windows__every_cursor_of_a_prime_table() -> None:
    blocks = table([32, 1, 31, 7, 1, 1, 29, 32, 13, 1])
    whole = sequence(blocks, seed=3, epoch=1, window=3)
    for start in range(blocks.rows + 1):
        assert sequence(blocks, 3, 1, start, 3) == whole[start:]


@given(st.permutations(range(12)), SEEDS)
def test_windows__do_not_depend_on_the_order_of_the_table(order: list[int], seed: int) -> None:
    blocks = table([32, 5, 1, 32, 7, 32, 32, 2, 31, 32, 11, 3])
    shuffled = BlockTable(blocks.first_row[order], blocks.sizes[order])
    assert sequence(shuffled, seed, window=4) == sequence(blocks, seed, window=4)


@given(SEEDS, EPOCHS)
def test_windows__another_epoch_or_seed_is_another_order(seed: int, epoch: int) -> None:
    blocks = table([32] * 20)
    orders = {
        tuple(sequence(blocks, seed, epoch)),
        tuple(sequence(blocks, seed, epoch + 1)),
        tuple(sequence(blocks, seed + 1, epoch)),
    }
    assert len(orders) == 3


def test_windows__mix_the_rows_of_their_blocks_and_no_others() -> None:
    blocks = table([32] * 8)
    rows = sequence(blocks, window=4)
    halves = [{first for first, _ in half} for half in (rows[:128], rows[128:])]
    assert [len(half) for half in halves] == [4, 4]
    changes = sum(one[0] != other[0] for one, other in pairwise(rows))
    assert changes > 150  # 191 expected of a fair shuffle; 7 without one


def test_windows__are_uniform_over_places() -> None:
    """Each row stands in the first quarter of an epoch about every fourth time."""
    blocks = table([8] * 8)
    early = np.zeros(64)
    for epoch in range(400):
        for first, row in sequence(blocks, epoch=epoch, window=8)[:16]:
            early[first // BLOCK_ROWS * 8 + row] += 1
    assert early.sum() == 400 * 16
    assert 60 < early.min() <= early.max() < 145  # 100 expected, deviation 8.7


def test_windows__order_is_what_it_was() -> None:
    """Frozen for ever: a run that is resumed by a later version sees the same rows."""
    blocks = table([4, 1, 3, 2, 4])
    rows = [first // BLOCK_ROWS * 10 + row for first, row in sequence(blocks, 7, 2, window=2)]
    assert rows == [21, 2, 1, 20, 0, 3, 22, 42, 41, 10, 40, 43, 31, 30]
