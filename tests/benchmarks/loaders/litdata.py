"""LitData: chunks from `optimize`, read by its own data set and loader from the folder.

Arrays are stored as bytes and put together by a collate of ours: LitData's own arrays are copied
row by row, ahead of the batch, which made it ten times slower here.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import litdata
import numpy as np

from tests.benchmarks.loaders.peer import BATCH, FILE_BYTES, Batch, Rows, serve


def _item(truth: Rows, row: int) -> dict[str, Any]:
    return {"row": row, "tokens": truth.tokens[row].tobytes(), "cls": truth.cls[row].tobytes()}


def write(truth: Rows, folder: Path) -> None:
    litdata.optimize(
        fn=partial(_item, truth),
        inputs=list(range(len(truth.tokens))),
        output_dir=str(folder),
        chunk_bytes=FILE_BYTES,
        num_workers=1,
    )


def _joined(shape: tuple[int, ...], items: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    tokens = np.empty((len(items), *shape), np.float16)
    for place, item in enumerate(items):
        tokens[place] = np.frombuffer(item["tokens"], np.float16).reshape(shape)
    cls = [np.frombuffer(item["cls"], np.float16) for item in items]
    return np.array([item["row"] for item in items]), tokens, np.stack(cls)


def read(folder: Path, truth: Rows, workers: int, seed: int) -> Iterator[Iterator[Batch]]:
    dataset = litdata.StreamingDataset(str(folder), shuffle=True, seed=seed)
    collate = partial(_joined, truth.tokens.shape[1:])
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate
    )
    while True:
        yield (Batch(*batch) for batch in loader)


if __name__ == "__main__":
    serve(write, read, ["litdata", "torch", "numpy"])
