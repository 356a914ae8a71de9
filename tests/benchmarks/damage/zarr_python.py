"""zarr-python: a sharded array of tokens and an array of keys, codecs at their defaults.

With the argument `crc32c`, each row's chunk carries a checksum in place of the default compressor.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

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

CODECS: dict[str, Any] = {"compressors": Crc32cCodec()} if "crc32c" in sys.argv else {}


def write(folder: Path, run: int) -> list[File]:
    group = zarr.open_group(folder, mode="w")
    tokens = group.create_array(
        "tokens",
        shape=(ROWS, TOKENS, CHANNELS),
        chunks=(1, TOKENS, CHANNELS),
        shards=(ROWS_PER_SHARD, TOKENS, CHANNELS),
        dtype="float16",
        **CODECS,
    )
    tokens[:] = rows(run)
    group.create_array("key", data=np.array(keys()))
    return files_of(folder)


def read(folder: Path) -> Iterator[Row]:
    group = zarr.open_group(folder, mode="r")
    yield from zip(np.asarray(group["key"][:]).tolist(), group["tokens"][:])


if __name__ == "__main__":
    serve(Side(write, read, ["zarr", "numcodecs", "numpy"]))
