"""Reading ahead: each block once, its rows straight to their places in the batches to come.

A batch takes a few rows of many blocks, and a block's rows go to many batches. The order is known,
so batches are drawn ahead until no later one takes a row of the blocks that the first one needs;
then those blocks are read, each in one go, and every row lands where it is trained on: no block is
kept, and of a local cache no row is copied.
"""

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

from schemas.shard import Rows
from schemas.spans import Whole
from trainer.batch import State
from trainer.cache import Block, CacheReader
from trainer.epochs import Drawn, Epochs
from trainer.room import Room
from trainer.serving import Place, Serving

Choices = Sequence[Mapping[str, int]]
"""What grids a batch may have: teacher name -> grid."""


@dataclass(eq=False)
class Reading:
    """A block of a window that is open, or of one whose batches are being made."""

    where: Place
    served: Whole
    """Its rows that the epoch serves."""
    goes: "list[tuple[Planned, int, int]]" = field(default_factory=list)
    """(batch, place in it, row of the block); empty once it is being read."""
    future: Future[Block] | None = None

    def block(self) -> Block:
        """Waits for it."""
        assert self.future is not None
        return self.future.result()


@dataclass(eq=False)
class Planned:
    """A batch of which it is known where its rows come from."""

    drawn: Drawn
    rows: list[tuple[Reading, int]]
    """(block, row of it)."""
    room: Room | None = None
    bytes_begun: int = 0
    """Of the blocks whose first rows are here."""


class Ahead:
    """Plans and begins batches; which of them are waited for, and when, is the stream's.

    Args:
        pool: reads.
        grids: what a batch may have.
        sides: what its pictures may have; 0 for none.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        reader: CacheReader,
        serving: Serving,
        epochs: Epochs,
        grids: Choices,
        sides: Sequence[int],
    ) -> None:
        self._pool, self._reader, self._serving = pool, reader, serving
        self._epochs, self._grids, self._sides = epochs, grids, sides
        self._teachers = reader.teachers
        self._sizes = [reader.block_bytes(each) for each in grids]
        self._open: dict[int, Reading] = {}
        self._times: tuple[int, Sequence[Whole]] | None = None

    def begun(self, state: State, batch_size: int) -> Generator[Planned, None, None]:
        """The batches after a state, each once its blocks are being read."""
        planned: deque[Planned] = deque()
        try:
            for drawn in self._epochs.batches(state, batch_size):
                if planned and planned[-1].drawn.epoch != drawn.epoch:
                    self._open.clear()
                planned.append(self._plan(drawn))
                while planned and not self._has_open(planned[0]):
                    yield self._begin(planned.popleft())
        finally:
            # Batches and readings know each other: without this they would stay in memory.
            for batch in planned:
                batch.rows.clear()
            self._open.clear()

    def _plan(self, drawn: Drawn) -> Planned:
        """Where the rows of a batch come from. Windows that no batch after it reads are closed."""
        batch = Planned(drawn, [])
        for block, place in zip(drawn.rows.blocks.tolist(), drawn.rows.places.tolist()):
            if block not in self._open:
                where = self._serving.place(block)
                self._open[block] = Reading(where, self._serving.rows(where, drawn.epoch))
            reading = self._open[block]
            row = int(reading.served[place])
            reading.goes.append((batch, len(batch.rows), row))
            batch.rows.append((reading, row))
        for block in self._open.keys() - drawn.open_blocks:
            del self._open[block]
        return batch

    def _has_open(self, batch: Planned) -> bool:
        still = set(self._open.values())
        return any(reading in still for reading, _ in batch.rows)

    def _begin(self, batch: Planned) -> Planned:
        self._make_room(batch)
        for (reading, _), block in zip(batch.rows, batch.drawn.rows.blocks.tolist()):
            if reading.future is None:
                for other, _, _ in reading.goes:
                    self._make_room(other)
                when = self._needed_again(batch.drawn, block)
                # The batches know their readings: a reading that went on knowing them would keep
                # all of them in memory.
                goes, reading.goes = reading.goes, []
                choice = batch.drawn.choice
                reading.future = self._pool.submit(self._read, reading.where, choice, goes, when)
                batch.bytes_begun += self._sizes[choice]
        return batch

    def _make_room(self, batch: Planned) -> None:
        if batch.room is None:
            drawn = batch.drawn
            grids, side = self._grids[drawn.choice], self._sides[drawn.side]
            batch.room = Room(self._teachers, grids, len(drawn.rows), side)

    def _read(
        self, where: Place, choice: int, goes: list[tuple[Planned, int, int]], when: int
    ) -> Block:
        into: dict[str, dict[int, Rows]] = {name: {} for name in self._grids[choice]}
        for batch, place, row in goes:
            assert batch.room is not None
            for name, tokens in batch.room.tokens(place).items():
                into[name][row] = tokens
        disk = self._reader.disk
        with nullcontext() if disk is None else disk.needed_again(when):
            block = self._reader.read_into(*where, into, self._grids[choice])
        for batch, place, row in goes:
            assert batch.room is not None
            batch.room.put(place, block, row)
        return block

    def _needed_again(self, drawn: Drawn, block: int) -> int:
        """When, for what is kept on a disk; else of no meaning."""
        if self._reader.disk is None:
            return 0
        if self._times is None or self._times[0] != drawn.epoch:
            self._times = drawn.epoch, self._epochs.times(drawn.epoch + 1)
        return int(self._times[1][drawn.choice][block])
