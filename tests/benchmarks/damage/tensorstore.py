"""tensorstore: a sharded Zarr v3 array of tokens and an array of keys, codecs at their defaults."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from tests.benchmarks.damage.peer import (
    CHANNELS,
    ROWS,
    ROWS_PER_SHARD,
    TOKENS,
    File,
    Row,
    Side,
    keys,
    rows,
    serve,
)
from tests.benchmarks.damage.zarr_files import files_of


def _spec(folder: Path, name: str) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/{name}/"}}


def write(folder: Path, run: int) -> list[File]:
    layout = ts.ChunkLayout(
        read_chunk_shape=[1, TOKENS, CHANNELS], write_chunk_shape=[ROWS_PER_SHARD, TOKENS, CHANNELS]
    )
    tokens = ts.open(
        _spec(folder, "tokens"),
        create=True,
        dtype=ts.float16,
        shape=[ROWS, TOKENS, CHANNELS],
        chunk_layout=layout,
    ).result()
    tokens[...] = rows(run)
    key = ts.open(_spec(folder, "key"), create=True, dtype=ts.int64, shape=[ROWS]).result()
    key[...] = np.array(keys())
    return files_of(folder)


def read(folder: Path) -> Iterator[Row]:
    key = ts.open(_spec(folder, "key"), read=True).result().read().result()
    tokens = ts.open(_spec(folder, "tokens"), read=True).result().read().result()
    yield from zip(key.tolist(), tokens)


if __name__ == "__main__":
    serve(Side(write, read, ["tensorstore", "numpy"]))
