"""WebDataset: tar files from ShardWriter, read by their brace list and decoded by default."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import webdataset as wds

from tests.benchmarks.damage.peer import ROWS, ROWS_PER_SHARD, File, Row, Side, keyed_rows, serve

SHARDS = ROWS // ROWS_PER_SHARD


def write(folder: Path, run: int) -> list[File]:
    folder.mkdir(parents=True)
    with wds.ShardWriter(f"{folder}/%06d.tar", maxcount=ROWS_PER_SHARD, verbose=0) as sink:
        for key, tokens in keyed_rows(run):
            sink.write({"__key__": str(key), "tokens.npy": tokens})
    return [_file(path) for path in sorted(folder.glob("*.tar"))]


def _file(path: Path) -> File:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    headers = tuple((member.offset, member.offset_data) for member in members)
    return File(path.name, "rows", headers, members[len(members) // 2].offset)


def read(folder: Path) -> Iterator[Row]:
    urls = f"{folder}/{{{0:06d}..{SHARDS - 1:06d}}}.tar"
    for sample in wds.WebDataset(urls, shardshuffle=False).decode():
        yield sample["__key__"], sample["tokens.npy"]


if __name__ == "__main__":
    serve(Side(write, read, ["webdataset", "numpy"]))
