"""A batch in parts that follow one another, so that memory holds the activations of one."""

from collections.abc import Iterator
from dataclasses import replace

from trainer.batch import Batch


def parts_of(batch: Batch, count: int) -> Iterator[Batch]:
    """`batch` in at most `count` parts of consecutive rows, the last one perhaps shorter."""
    rows = len(batch.rows)
    size = -(-rows // count)
    for start in range(0, rows, size):
        yield _rows(batch, slice(start, start + size))


def _rows(batch: Batch, rows: slice) -> Batch:
    return replace(
        batch,
        rows=batch.rows[rows],
        pixels=batch.pixels[rows],
        weight=batch.weight[rows],
        targets={
            name: replace(
                target,
                tokens=target.tokens[rows],
                cls=None if target.cls is None else target.cls[rows],
            )
            for name, target in batch.targets.items()
        },
    )
