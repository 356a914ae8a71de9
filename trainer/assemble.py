"""From rows of blocks to a batch: targets gathered, views replayed, on threads."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.shard import Rows
from trainer.batch import Batch, State, Target
from trainer.cache import Block
from trainer.epochs import Drawn
from trainer.replay import Replay
from trainer.set_reader import TeacherInfo

ROWS_PER_TASK = 8
NO_ROW = -1


class Row(NamedTuple):
    """One row of a batch, and the block that is being read for it."""

    block: Future[Block]
    generation: int
    row: int
    """Of the block."""


class Assembler:
    """Makes batches; with `replay`, with pictures."""

    def __init__(self, teachers: Mapping[str, TeacherInfo], replay: Replay | None) -> None:
        self._teachers, self._replay = teachers, replay
        # A copy to a GPU goes on beside the computation only from pinned memory.
        self._pin = torch.cuda.is_available()

    def submit(
        self,
        pool: ThreadPoolExecutor,
        rows: Sequence[Row],
        grids: Mapping[str, int],
        side: int,
        drawn: Drawn,
        state: State,
    ) -> Future[Batch]:
        """Begin with a batch. A task waits only for tasks that were begun before it, so no number
        of threads can come to a standstill."""
        pixels = self._zeros((max(1, len(rows)), side, side, 3), torch.uint8)
        first_rows = range(0, len(rows), ROWS_PER_TASK) if side else ()
        pictures = [
            pool.submit(self._see, rows[first : first + ROWS_PER_TASK], pixels.numpy()[first:])
            for first in first_rows
        ]
        return pool.submit(self._assemble, rows, grids, pixels, pictures, drawn, state)

    def _see(self, rows: Sequence[Row], pixels: npt.NDArray[np.uint8]) -> None:
        assert self._replay is not None
        for place, (future, generation, row) in enumerate(rows):
            block = future.result()
            if _is_good(block, row):
                side = pixels.shape[1]
                pixels[place] = self._replay.see(block, generation, row, side)

    def _assemble(
        self,
        rows: Sequence[Row],
        grids: Mapping[str, int],
        pixels: Tensor,
        pictures: Sequence[Future[None]],
        drawn: Drawn,
        state: State,
    ) -> Batch:
        blocks = [(row.block.result(), row.row) for row in rows]
        targets = {name: self._target(name, grid, blocks) for name, grid in grids.items()}
        for picture in pictures:
            picture.result()
        numbers = [block.first_row + row for block, row in blocks] or [NO_ROW]
        weight = [float(_is_good(block, row)) for block, row in blocks] or [0.0]
        return Batch(
            rows=torch.tensor(numbers),
            pixels=pixels.permute(0, 3, 1, 2),
            weight=torch.tensor(weight),
            targets=targets,
            epoch=drawn.epoch,
            total=drawn.total,
            state=state,
        )

    def _target(self, name: str, grid: int, blocks: Sequence[tuple[Block, int]]) -> Target:
        info, count = self._teachers[name], max(1, len(blocks))
        codec = info.codecs[grid]
        form = codec.row_form(grid**2)
        tokens = self._room(count, (form.height, form.width), blocks, getattr(torch, form.dtype))
        gather(tokens, [(block.sets[name].tokens, row) for block, row in blocks])
        cls = None
        if info.cls_width is not None:
            cls = self._room(count, (info.cls_width,), blocks)
            gather(cls, [(block.sets[name].cls, row) for block, row in blocks])
        return Target(grid=grid, tokens=tokens, cls=cls, codec=codec)

    def _room(
        self,
        count: int,
        shape: tuple[int, ...],
        rows: Sequence[object],
        dtype: torch.dtype = torch.float16,
    ) -> Tensor:
        """For as many rows; zeros only where none will be copied in, because they cost a write."""
        if not rows:
            return self._zeros((count, *shape), dtype)
        return torch.empty((count, *shape), dtype=dtype, pin_memory=self._pin)

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=self._pin)


def gather(into: Tensor, rows: Sequence[tuple[Rows | None, int]]) -> None:
    """Copy one row of each array, one copy of each byte."""
    target = into.numpy()
    for place, (values, row) in enumerate(rows):
        assert values is not None
        target[place] = values[row]


def _is_good(block: Block, row: int) -> bool:
    return all(part.ok[row] for part in block.sets.values())
