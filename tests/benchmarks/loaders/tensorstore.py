"""tensorstore: a sharded Zarr v3 array, a row a chunk with its crc32c, any rows at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from tests.benchmarks.loaders.peer import BATCH, Batch, Rows, serve

ROWS_PER_SHARD = 256


def _spec(folder: Path, name: str) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/{name}/"}}


def write(truth: Rows, folder: Path) -> None:
    shape = truth.tokens.shape
    endian = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [1, *shape[1:]],
        "codecs": [endian, {"name": "crc32c"}],
        "index_codecs": [endian, {"name": "crc32c"}],
    }
    tokens = ts.open(
        {
            **_spec(folder, "tokens"),
            "metadata": {"codecs": [{"name": "sharding_indexed", "configuration": sharding}]},
        },
        create=True,
        dtype=ts.float16,
        shape=shape,
        chunk_layout=ts.ChunkLayout(write_chunk_shape=[ROWS_PER_SHARD, *shape[1:]]),
    ).result()
    for first in range(0, shape[0], ROWS_PER_SHARD):
        rows = truth.tokens[first : first + ROWS_PER_SHARD]
        tokens[first : first + len(rows)] = rows
    np.save(folder / "cls.npy", truth.cls)


def read(folder: Path, truth: Rows, workers: int, seed: int) -> Iterator[Iterator[Batch]]:
    tokens = ts.open(_spec(folder, "tokens"), read=True).result()
    cls = np.load(folder / "cls.npy")
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(cls))
        batches = np.array_split(order, np.arange(BATCH, len(order), BATCH))
        yield (Batch(rows, tokens.oindex[rows].read().result(), cls[rows]) for rows in batches)


if __name__ == "__main__":
    serve(write, read, ["tensorstore", "numpy"])
