"""numpy.memmap over the truth itself: what a loader without any format would reach."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from tests.benchmarks.loaders.peer import BATCH, Batch, Rows, serve
from tests.benchmarks.loaders.torch_batches import as_they_come


def write(truth: Rows, folder: Path) -> None:
    pass


class Batches(Dataset[tuple[torch.Tensor, ...]]):
    """Whole batches, so that each row is copied once."""

    def __init__(self, truth: Rows, seed: int) -> None:
        self._tokens, self._cls = truth.tokens, truth.cls
        order = np.random.default_rng(seed).permutation(len(self._tokens))
        self._batches = np.array_split(order, np.arange(BATCH, len(order), BATCH))

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, ...]:
        rows = self._batches[number]
        parts = (rows, self._tokens[rows], self._cls[rows])
        return tuple(torch.from_numpy(np.asarray(part)) for part in parts)


def read(folder: Path, truth: Rows, workers: int, seed: int) -> Iterator[Iterator[Batch]]:
    return as_they_come(Batches(truth, seed), workers)


if __name__ == "__main__":
    serve(write, read, ["numpy", "torch"])
