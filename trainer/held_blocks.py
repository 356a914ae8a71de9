"""Blocks in memory: being read for batches to come, in use, or kept in case they come again."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

from schemas.spans import Whole
from trainer.assemble import Row
from trainer.cache import Block, CacheReader
from trainer.epochs import Drawn, Epochs
from trainer.serving import Place, Serving

Key = tuple[int, int]
"""(index in the block table, choice of grids)."""


class HeldBlocks:
    """Reads each block once while its window is open, and again only if it had to go meanwhile.

    A cache that fits into `memory_bytes` is read once in all. Two lanes may meet in one block, one
    at its beginning and one at its end; in a small cache they often do.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        reader: CacheReader,
        serving: Serving,
        epochs: Epochs,
        grids: Sequence[Mapping[str, int]],
        memory_bytes: int,
    ) -> None:
        self._pool, self._reader, self._serving = pool, reader, serving
        self._epochs, self._grids = epochs, grids
        self._sizes = [reader.block_bytes(each) for each in grids]
        self._most = memory_bytes
        self._held: OrderedDict[Key, Future[Block]] = OrderedDict()
        self._times: tuple[int, Sequence[Whole]] | None = None

    def read(self, drawn: Drawn) -> tuple[list[Row], int]:
        """Begin to read what a batch needs and is not here; its rows, and the bytes begun."""
        rows, size = [], 0
        found: dict[int, tuple[Future[Block], int, Whole]] = {}
        for block, place in zip(drawn.rows.blocks.tolist(), drawn.rows.places.tolist()):
            if block not in found:
                where = self._serving.place(block)
                future, begun = self._get(drawn, block, where)
                found[block] = future, where.generation, self._serving.rows(where, drawn.epoch)
                size += begun
            future, generation, served = found[block]
            rows.append(Row(future, generation, int(served[place])))
        self._let_go(drawn)
        return rows, size

    def _get(self, drawn: Drawn, block: int, where: Place) -> tuple[Future[Block], int]:
        """A block, and the bytes that are being read for it from now on."""
        key, begun = (block, drawn.choice), 0
        if key not in self._held:
            again = self._needed_again(drawn, block)
            self._held[key] = self._pool.submit(self._read, where, drawn.choice, again)
            begun = self._sizes[drawn.choice]
        self._held.move_to_end(key)
        return self._held[key], begun

    def _read(self, where: Place, choice: int, needed_again: int) -> Block:
        disk = self._reader.disk
        with nullcontext() if disk is None else disk.needed_again(needed_again):
            return self._reader.read_block(*where, self._grids[choice])

    def _needed_again(self, drawn: Drawn, block: int) -> int:
        """When, for what is kept on a disk; else of no meaning."""
        if self._reader.disk is None:
            return 0
        if self._times is None or self._times[0] != drawn.epoch:
            self._times = drawn.epoch, self._epochs.times(drawn.epoch + 1)
        return int(self._times[1][drawn.choice][block])

    def _let_go(self, drawn: Drawn) -> None:
        """Of the blocks that no window is open on, the one that was used longest ago goes first."""
        closed = [key for key in self._held if key[0] not in drawn.open_blocks]
        size = sum(self._sizes[choice] for _, choice in closed)
        for key in closed:
            if size <= self._most:
                return
            size -= self._sizes[key[1]]
            del self._held[key]
