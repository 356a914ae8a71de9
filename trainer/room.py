"""The tensors of one batch, into which rows are read from wherever they lie."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.shard import Rows
from trainer.batch import Batch, State, Target
from trainer.cache import Block
from trainer.epochs import Drawn
from trainer.teacher_info import TeacherInfo

NO_ROW = -1


class Room:
    """Of a batch whose rows come in any order, from several threads: each has a place of its own.

    Args:
        count: rows. Without any the batch has one that weighs nothing.
        side: of the pictures; 0 for none.
    """

    def __init__(
        self, teachers: Mapping[str, TeacherInfo], grids: Mapping[str, int], count: int, side: int
    ) -> None:
        self._is_empty = count == 0
        # A copy to a GPU goes on beside the computation only from pinned memory.
        self._pin = torch.cuda.is_available()
        rows = max(1, count)
        self._rows = torch.full((rows,), NO_ROW)
        self._weight = torch.zeros(rows)
        self._pixels = torch.zeros((rows, side, side, 3), dtype=torch.uint8, pin_memory=self._pin)
        self._targets = {
            name: self._target(teachers[name], grid, rows) for name, grid in grids.items()
        }
        # Through numpy, which takes a tenth of the time that torch takes for one element.
        self._numbers, self._weights = self._rows.numpy(), self._weight.numpy()
        self._tokens = {name: target.tokens.numpy() for name, target in self._targets.items()}
        self._cls = {
            name: target.cls.numpy()
            for name, target in self._targets.items()
            if target.cls is not None
        }

    def _target(self, info: TeacherInfo, grid: int, rows: int) -> Target:
        codec = info.codecs[grid]
        form = codec.row_form(grid**2)
        cls = None if info.cls_width is None else self._tensor((rows, info.cls_width), "float16")
        tokens = self._tensor((rows, form.height, form.width), form.dtype)
        return Target(grid=grid, tokens=tokens, cls=cls, codec=codec)

    def _tensor(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Zeros only where nothing will be read into it, because they cost a write."""
        if self._is_empty or self._pin:
            make = torch.zeros if self._is_empty else torch.empty
            return make(shape, dtype=getattr(torch, dtype), pin_memory=self._pin)
        # numpy asks for huge pages: half the time of writing into what torch allocates.
        return torch.from_numpy(np.empty(shape, dtype))

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """[rows, side, side, 3]."""
        return self._pixels.numpy()

    def tokens(self, place: int) -> dict[str, Rows]:
        """Where a row's tokens go, by teacher."""
        return {name: values[place] for name, values in self._tokens.items()}

    def put(self, place: int, block: Block, row: int) -> None:
        """What else is known of a row, once its block has been read."""
        self._numbers[place] = block.first_row + row
        self._weights[place] = block.is_good(row)
        for name, into in self._cls.items():
            values = block.sets[name].cls
            assert values is not None
            into[place] = values[row]

    def batch(self, drawn: Drawn, state: State) -> Batch:
        """All of it, once every row is there."""
        return Batch(
            rows=self._rows,
            pixels=self._pixels.permute(0, 3, 1, 2),
            weight=self._weight,
            targets=self._targets,
            epoch=drawn.epoch,
            total=drawn.total,
            state=state,
        )
