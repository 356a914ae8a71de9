"""The order of rows: a pure function of (snapshot, plan constants, seed, epoch).

An epoch permutes the blocks by a keyed hash and cuts them into windows of `window_blocks`; inside a
window the rows stand in the order of another keyed hash. Threads, batch size and prefetching do not
enter. Any place in the sequence is found without walking to it: a cursor is all the state there is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.keyed_hash import permutation, subkey

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BlockTable:
    """The blocks of a snapshot that an epoch serves."""

    first_row: Ints
    """Plan row of each block's first row; distinct, and what identifies the block."""
    sizes: Ints
    """Rows served of each block."""

    @property
    def rows(self) -> int:
        return int(self.sizes.sum())


@dataclass(frozen=True)
class Window:
    """Blocks whose rows are mixed, and the order they are mixed in."""

    blocks: Ints
    """Indices into the block table."""
    block_of: Ints
    """For each position in the window: which of `blocks`."""
    row_of: Ints
    """For each position in the window: which of that block's served rows."""


class EpochOrder:
    """The sequence of one epoch."""

    def __init__(
        self, table: BlockTable, window_blocks: int, order_key: bytes, seed: int, epoch: int
    ) -> None:
        self._table, self._window_blocks = table, window_blocks
        self._row_key = subkey(order_key, "rows", seed, epoch)
        self._blocks = permutation(table.first_row, subkey(order_key, "blocks", seed, epoch))
        self._ends = np.cumsum(table.sizes[self._blocks])

    def windows(self, start: int) -> Iterator[tuple[int, Window]]:
        """(position in it to begin at, window) from the epoch's `start`-th row on."""
        block = int(np.searchsorted(self._ends, start, side="right"))
        first = block - block % self._window_blocks
        for begin in range(first, len(self._blocks), self._window_blocks):
            before = int(self._ends[begin - 1]) if begin else 0
            yield max(0, start - before), self._window(begin)

    def _window(self, begin: int) -> Window:
        blocks = self._blocks[begin : begin + self._window_blocks]
        sizes = self._table.sizes[blocks]
        block_of = np.repeat(np.arange(len(blocks)), sizes)
        row_of = _concatenated_ranges(sizes)
        order = permutation(self._table.first_row[blocks][block_of] + row_of, self._row_key)
        return Window(blocks, block_of[order], row_of[order])


def _concatenated_ranges(sizes: Sequence[int] | Ints) -> Ints:
    """0..sizes[0]-1, 0..sizes[1]-1, ..."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - sizes, sizes)
