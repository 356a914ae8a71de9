"""This project's stream, with as many threads as others have workers, and no pictures.

There is nothing to write: the truth was taken from the very cache.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from infra.heap import keep_freed_memory
from tests.benchmarks.loaders.peer import BATCH, Batch, Rows, serve
from trainer import CacheStream
from trainer.batch import Batch as Served


def write(truth: Rows, folder: Path) -> None:
    pass


def read(folder: Path, truth: Rows, workers: int, seed: int) -> Iterator[Iterator[Batch]]:
    keep_freed_memory()  # as a training does
    stream = CacheStream(
        str(folder), pixels=None, batch_size=BATCH, threads=max(1, workers), seed=seed
    )
    with closing(iter(stream)) as batches:
        while True:
            yield _epoch(batches)


def _epoch(batches: Iterator[Served]) -> Iterator[Batch]:
    for batch in batches:
        (target,) = batch.targets.values()
        yield Batch(batch.rows, target.tokens, target.cls)
        if batch.state["epoch"] != batch.epoch:
            return


if __name__ == "__main__":
    serve(write, read, ["pyarrow", "numpy", "torch", "crc32c"])
