"""MosaicML Streaming: MDS shards in one folder, read through a local copy in another.

With the argument `xxh64`, shards are written with that hash, and checked as they are copied.
"""

import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infra.models.torchvision_shim import make_torchvision_importable
from tests.benchmarks.damage.peer import (
    CHANNELS,
    ROWS_PER_SHARD,
    TOKENS,
    File,
    Row,
    Side,
    keyed_rows,
    serve,
)

make_torchvision_importable()

from streaming import MDSWriter, StreamingDataset  # noqa: E402

HASH = "xxh64" if "xxh64" in sys.argv else None
COLUMNS = {"key": "int", "tokens": f"ndarray:float16:{TOKENS},{CHANNELS}"}
SHARD_BYTES = ROWS_PER_SHARD * (TOKENS * CHANNELS * 2 + 16) + 1024
"""For about as many rows a shard as the others have."""


def write(folder: Path, run: int) -> list[File]:
    hashes = [HASH] if HASH else None
    with MDSWriter(out=str(folder), columns=COLUMNS, hashes=hashes, size_limit=SHARD_BYTES) as sink:
        for key, tokens in keyed_rows(run):
            sink.write({"key": key, "tokens": tokens})
    return [
        File(path.name, "records") if path.suffix == ".json" else _shard(path)
        for path in sorted(folder.iterdir())
    ]


def _shard(path: Path) -> File:
    """A shard begins with its number of rows, where each begins, and its columns."""
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data)
    offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
    return File(path.name, "rows", ((0, offsets[0]),), offsets[count // 2])


def read(folder: Path) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as copy:
        dataset = StreamingDataset(
            remote=str(folder), local=copy, validate_hash=HASH, batch_size=ROWS_PER_SHARD
        )
        for row in dataset:
            yield row["key"], row["tokens"]


if __name__ == "__main__":
    serve(Side(write, read, ["mosaicml-streaming", "torch", "numpy"]))
