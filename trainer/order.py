"""The order of rows: a pure function of (snapshot, plan constants, seed, epoch).

An epoch permutes the blocks by a keyed hash. Their rows, one after the other, are cut into `lanes`
stretches of equal length, and rows are dealt from the lanes in turn; inside a lane the rows of each
`window_blocks` blocks stand in the order of another keyed hash. So a batch mixes rows of as many
blocks as there are lanes, and ranks that share a batch by lanes hardly read a block twice. Threads,
ranks, batch size and prefetching do not enter, and any place is found without walking to it: a
cursor is all the state there is.

Where blocks have one of several teacher grids (stage `multires`) each choice has an order and a
cursor of its own; which of them gives the next batch is drawn by what is left of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.keyed_hash import mix, permutation, subkey

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BlockTable:
    """The blocks that an epoch serves."""

    first_row: Ints
    """Plan row of each block's first row; distinct, and what identifies the block."""
    sizes: Ints
    """Rows served of each block."""

    @property
    def rows(self) -> int:
        return int(self.sizes.sum())


@dataclass(frozen=True)
class OrderKey:
    """What an order is a function of, beside the blocks."""

    lanes: int
    window_blocks: int
    key: bytes
    seed: int

    def subkey(self, purpose: str, *parts: int) -> int:
        return subkey(self.key, purpose, self.seed, *parts)


@dataclass(frozen=True)
class Rows:
    """Rows of a batch, in the order of the epoch."""

    blocks: Ints
    """Indices into the block table."""
    places: Ints
    """Which of that block's served rows."""

    def __len__(self) -> int:
        return len(self.blocks)


class EpochOrder:
    """The sequence of the rows of a table in one epoch, read forward from a cursor."""

    def __init__(self, table: BlockTable, key: OrderKey, epoch: int, choice: int = 0) -> None:
        self._table, self._key = table, key
        self._row_key = key.subkey("rows", epoch, choice)
        order = permutation(table.first_row, key.subkey("blocks", epoch, choice))
        self._blocks = order[table.sizes[order] > 0]
        self._ends = np.cumsum(table.sizes[self._blocks])
        self.rows = int(self._ends[-1]) if len(self._ends) else 0
        # The window that each lane was last read from: where it begins, and its rows.
        most = key.window_blocks * int(table.sizes.max(initial=0))
        self._first, self._length = np.zeros((2, key.lanes), np.int64)
        self._open_blocks, self._open_places = np.zeros((2, key.lanes, most), np.int64)

    def take(self, start: int, count: int, rank: int = 0, world: int = 1) -> Rows:
        """This rank's part of the rows [start, start + count) of the epoch."""
        wanted = np.arange(start, min(start + count, self.rows))
        if world > 1:  # by lanes first, so that ranks share as few blocks as can be
            by_lane = np.argsort(wanted % self._key.lanes, kind="stable")
            wanted = np.sort(wanted[np.array_split(by_lane, world)[rank]])
        position, lane = np.divmod(wanted, self._key.lanes)
        blocks, places = np.empty((2, len(wanted)), np.int64)
        left = np.arange(len(wanted))
        while len(left):
            inside = position[left] - self._first[lane[left]]
            is_here = (inside >= 0) & (inside < self._length[lane[left]])
            here, inside = left[is_here], inside[is_here]
            blocks[here] = self._open_blocks[lane[here], inside]
            places[here] = self._open_places[lane[here], inside]
            left = left[~is_here]
            for index in left[np.unique(lane[left], return_index=True)[1]].tolist():
                self._open(int(lane[index]), int(position[index]))
        return Rows(blocks, places)

    def open_blocks(self) -> Ints:
        """Blocks of the windows that were last read from: those after them are not far."""
        is_open = np.arange(self._open_blocks.shape[1]) < self._length[:, None]
        return np.unique(self._open_blocks[is_open])

    def _open(self, lane: int, position: int) -> None:
        """Turn to the window of a lane that holds a position."""
        self._first[lane], rows = self._window(lane, position)
        self._length[lane] = len(rows)
        self._open_blocks[lane, : len(rows)] = rows.blocks
        self._open_places[lane, : len(rows)] = rows.places

    def when(self) -> Ints:
        """[blocks of the table]: the place in its lane at which each is first read; the end of the
        epoch for one of which nothing is served."""
        length, longer = divmod(self.rows, self._key.lanes)
        first = self._ends - self._table.sizes[self._blocks]
        rest = first - longer * (length + 1)
        when = np.full(len(self._table.first_row), self.rows)
        when[self._blocks] = np.where(rest < 0, first % (length + 1), rest % max(1, length))
        return when

    def _window(self, number: int, position: int) -> tuple[int, Rows]:
        """The window of a lane that holds a position, and the position it begins at."""
        length, longer = divmod(self.rows, self._key.lanes)
        begin = number * length + min(number, longer)
        end = begin + length + (number < longer)
        window_blocks = self._key.window_blocks
        lane_block = self._block_at(begin)
        block = self._block_at(begin + position)
        block -= (block - lane_block) % window_blocks
        last = min(block + window_blocks, len(self._blocks)) - 1
        first_row = int(self._ends[block - 1]) if block else 0
        numbers = self._blocks[block : last + 1]
        sizes = self._table.sizes[numbers]
        blocks, places = np.repeat(numbers, sizes), concatenated_ranges(sizes)
        inside = slice(max(0, begin - first_row), min(int(self._ends[last]), end) - first_row)
        blocks, places = blocks[inside], places[inside]
        order = permutation(self._table.first_row[blocks] + places, self._row_key)
        return max(first_row - begin, 0), Rows(blocks[order], places[order])

    def _block_at(self, row: int) -> int:
        """Which block of the permuted ones holds a row of their sequence."""
        return int(np.searchsorted(self._ends, row, side="right"))


def split(table: BlockTable, key: OrderKey, epoch: int, choices: int) -> list[Ints]:
    """Indices of the blocks of each choice in one epoch, by a keyed hash of the block."""
    if choices == 1:
        return [np.arange(len(table.first_row))]
    chosen = mix(table.first_row, key.subkey("choices", epoch)) % np.uint64(choices)
    return [np.flatnonzero(chosen == number) for number in range(choices)]


def draw(left: Sequence[int], key: OrderKey, epoch: int, row: int) -> int:
    """Which choice gives the batch that begins at an epoch's `row`-th row: each by the rows that
    are left of it, so that all end together."""
    if len(left) == 1:
        return 0
    word = int(mix(np.array([row]), key.subkey("draw", epoch))[0])
    ends = np.cumsum(left)
    return int(np.searchsorted(ends, word % int(ends[-1]), side="right"))


def draw_evenly(count: int, key: OrderKey, epoch: int, row: int) -> int:
    """One of `count` things for the batch that begins at an epoch's `row`-th row."""
    if count == 1:
        return 0
    word = int(mix(np.array([row]), key.subkey("draw evenly", epoch))[0])
    return word % count


def concatenated_ranges(sizes: Ints) -> Ints:
    """0..sizes[0]-1, 0..sizes[1]-1, ..."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - sizes, sizes)
