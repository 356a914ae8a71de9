"""Which rows make which batch: epochs of a snapshot, walked forward from any state.

A batch has one grid of every teacher and one side of pictures, drawn for it; see trainer/order.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from schemas.names import BLOCK_ROWS
from trainer.batch import State
from trainer.order import BlockTable, EpochOrder, Ints, OrderKey, Rows, draw, draw_evenly, split
from trainer.serving import Serving


@dataclass(frozen=True)
class Drawn:
    """One batch, before anything of it is read."""

    epoch: int
    choice: int
    """Which grids of the teachers."""
    side: int
    """Which of the student's grids."""
    rows: Rows
    """This rank's, by index of the table."""
    total: int
    """Of all ranks."""
    open_blocks: set[int]
    """What the batches after it will soon read as well."""
    state: State
    """Once it has been served."""


class Epochs:
    """Endless batches.

    Args:
        choices: how many grids there are to choose from, of the teachers and of the student.
    """

    def __init__(
        self, serving: Serving, key: OrderKey, choices: tuple[int, int], rank: int, world: int
    ) -> None:
        self._serving, self._key = serving, key
        self._choices, self._sides = choices
        self._rank, self._world = rank, world

    def batches(self, state: State, size: int) -> Iterator[Drawn]:
        """The batches after a state: `epoch` and the `cursors` of each choice."""
        cursors = list(state["cursors"])
        for epoch in count(state["epoch"]):
            yield from self._epoch(epoch, cursors, size)
            cursors = [0] * self._choices

    def times(self, epoch: int) -> list[Ints]:
        """For each choice, when in an epoch each block is read: numbers that grow from epoch to
        epoch. A block that has another choice then is not read before that epoch's end."""
        table = self._serving.table(epoch)
        parts = _Parts(table, self._key, epoch, self._choices)
        return [
            (epoch + (when < 0)) * (len(table.first_row) * BLOCK_ROWS + 1) + when
            for when in parts.when(len(table.first_row))
        ]

    def _epoch(self, epoch: int, cursors: list[int], size: int) -> Iterator[Drawn]:
        parts = _Parts(self._serving.table(epoch), self._key, epoch, self._choices)
        while True:
            left = [order.rows - cursor for order, cursor in zip(parts.orders, cursors)]
            if not any(left):
                return
            done = sum(cursors)
            choice = draw(left, self._key, epoch, done)
            first, total = cursors[choice], min(size, left[choice])
            rows = parts.take(choice, first, total, self._rank, self._world)
            cursors[choice] += total
            ended = sum(left) == total
            yield Drawn(
                epoch=epoch,
                choice=choice,
                side=draw_evenly(self._sides, self._key, epoch, done),
                rows=rows,
                total=total,
                open_blocks=parts.open_blocks(),
                state={
                    "epoch": epoch + ended,
                    "row": 0 if ended else done + total,
                    "cursors": [0] * self._choices if ended else list(cursors),
                },
            )


class _Parts:
    """An epoch's blocks by choice, each with its order."""

    def __init__(self, table: BlockTable, key: OrderKey, epoch: int, choices: int) -> None:
        self._blocks: list[Ints] = split(table, key, epoch, choices)
        self.orders = [
            EpochOrder(BlockTable(table.first_row[blocks], table.sizes[blocks]), key, epoch, number)
            for number, blocks in enumerate(self._blocks)
        ]

    def take(self, choice: int, first: int, total: int, rank: int, world: int) -> Rows:
        rows = self.orders[choice].take(first, total, rank, world)
        return Rows(self._blocks[choice][rows.blocks], rows.places)

    def when(self, count: int) -> Iterator[Ints]:
        """For each choice, when each block is read; -1 for those of other choices."""
        for blocks, order in zip(self._blocks, self.orders):
            when = np.full(count, -1)
            when[blocks] = order.when()
            yield when

    def open_blocks(self) -> set[int]:
        pairs = zip(self._blocks, self.orders)
        return {block for blocks, order in pairs for block in blocks[order.open_blocks()].tolist()}
