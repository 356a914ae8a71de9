"""LitData: chunks from `optimize`, read by StreamingDataset from the folder."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata

from tests.benchmarks.damage.peer import ROWS_PER_SHARD, File, Row, Side, keyed_rows, serve


def _same(row: Row) -> dict[str, Any]:
    return {"key": row[0], "tokens": row[1]}


def write(folder: Path, run: int) -> list[File]:
    litdata.optimize(
        fn=_same,
        inputs=keyed_rows(run),
        output_dir=str(folder),
        chunk_size=ROWS_PER_SHARD,
        num_workers=1,
    )
    return [
        File(path.name, "records") if path.suffix == ".json" else _chunk(path)
        for path in sorted(folder.iterdir())
    ]


def _chunk(path: Path) -> File:
    """A chunk begins with its number of items and where each begins."""
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data)
    offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
    return File(path.name, "rows", ((0, 4 * (count + 2)),), offsets[count // 2])


def read(folder: Path) -> Iterator[Row]:
    for item in litdata.StreamingDataset(str(folder)):
        yield item["key"], item["tokens"]


if __name__ == "__main__":
    serve(Side(write, read, ["litdata", "torch", "numpy"]))
