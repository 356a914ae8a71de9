"""WebDataset: tar files from ShardWriter, shuffled by file and through a buffer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset as wds

from tests.benchmarks.loaders.peer import Batch, Rows, serve
from tests.benchmarks.loaders.torch_batches import collated

BUFFER = 1000


def write(truth: Rows, folder: Path) -> None:
    folder.mkdir(parents=True)
    pattern = f"{folder}/%06d.tar"
    with wds.ShardWriter(pattern, maxcount=truth.per_file(), verbose=0) as sink:
        for row, tokens, cls in truth.items():
            sink.write({"__key__": f"{row:09d}", "tokens.npy": tokens, "cls.npy": cls})


def _row(sample: dict[str, Any]) -> tuple[int, Any, Any]:
    return int(sample["__key__"]), sample["tokens.npy"], sample["cls.npy"]


def read(folder: Path, truth: Rows, workers: int, seed: int) -> Iterator[Iterator[Batch]]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=seed).shuffle(BUFFER)
    return collated(dataset.decode().map(_row), workers, wds.WebLoader)


if __name__ == "__main__":
    serve(write, read, ["webdataset", "torch", "numpy"])
