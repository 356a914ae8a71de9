"""zarr-python: a sharded array, a row a chunk with its crc32c.

`shards` reads whole shards in a random order and mixes the rows of each; `oindex` takes any rows.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from torch.utils.data import IterableDataset, get_worker_info
from zarr.codecs import Crc32cCodec

from tests.benchmarks.loaders.peer import BATCH, Batch, Rows, serve
from tests.benchmarks.loaders.torch_batches import as_they_come

ROWS_PER_SHARD = 256
WHOLE = "shards" in sys.argv


def write(truth: Rows, folder: Path) -> None:
    group = zarr.open_group(folder, mode="w")
    shape = truth.tokens.shape
    tokens = group.create_array(
        "tokens",
        shape=shape,
        chunks=(1, *shape[1:]),
        shards=(ROWS_PER_SHARD, *shape[1:]),
        dtype="float16",
        compressors=Crc32cCodec(),
    )
    for first in range(0, shape[0], ROWS_PER_SHARD):
        tokens[first : first + ROWS_PER_SHARD] = truth.tokens[first : first + ROWS_PER_SHARD]
    group.create_array("cls", data=np.array(truth.cls))


class Batches(IterableDataset[tuple[Any, Any, Any]]):
    def __init__(self, folder: Path, rows: int, seed: int) -> None:
        super().__init__()
        self._folder, self._rows, self._seed = folder, rows, seed

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        group = zarr.open_group(self._folder, mode="r")
        tokens, cls = group["tokens"], np.asarray(group["cls"][:])
        random = np.random.default_rng(self._seed)
        worker = get_worker_info()
        mine = slice(0, None, 1) if worker is None else slice(worker.id, None, worker.num_workers)
        if not WHOLE:
            order = random.permutation(self._rows)
            for rows in np.array_split(order, np.arange(BATCH, self._rows, BATCH))[mine]:
                yield rows, np.asarray(tokens.oindex[rows]), cls[rows]
            return
        for first in (random.permutation(-(-self._rows // ROWS_PER_SHARD)) * ROWS_PER_SHARD)[mine]:
            shard = np.asarray(tokens[first : first + ROWS_PER_SHARD])
            order = random.permutation(len(shard))
            for inside in np.array_split(order, np.arange(BATCH, len(order), BATCH)):
                yield first + inside, shard[inside], cls[first + inside]


def read(folder: Path, truth: Rows, workers: int, seed: int) -> Iterator[Iterator[Batch]]:
    return as_they_come(Batches(folder, len(truth.tokens), seed), workers)


if __name__ == "__main__":
    serve(write, read, ["zarr", "numcodecs", "torch", "numpy"])
