"""Forwards in batches, of as many rows as the GPU has room for."""

from collections.abc import Iterator, Sequence

import torch

from infra.models.encoder import Features
from infra.pixels.views import Pixels
from pipeline.teachers import LoadedTeacher
from schemas.errors import TeacherError


class Batches:
    """Runs teachers over any number of rows; where one found no room, batches are half as large
    from then on, for all of them."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, teacher: LoadedTeacher, squares: Sequence[Pixels]) -> Iterator[Features]:
        """What it says of the rows, a batch at a time.

        Raises:
            TeacherError: the GPU has no room for one row.
        """
        done = 0
        while done < len(squares):
            batch = list(squares[done : done + self.rows])
            try:
                features = teacher(batch)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise TeacherError(
                        f"teacher {teacher.record.model}: the GPU has no room for one picture of "
                        f"{batch[0].shape[0]} px: {error}"
                    ) from None
                self.rows = len(batch) // 2
                torch.cuda.empty_cache()
                continue
            done += len(batch)
            yield features
