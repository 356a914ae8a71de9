"""Batches from a torch DataLoader, in the environments that have torch."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from tests.benchmarks.loaders.peer import BATCH, Batch


def collated(dataset: Any, workers: int, loader: Any = DataLoader) -> Iterator[Iterator[Batch]]:
    """Of a data set of (row, tokens, cls), put together as torch does by default."""
    batches = loader(dataset, batch_size=BATCH, num_workers=workers)
    while True:
        yield (Batch(*batch) for batch in batches)


def as_they_come(dataset: Any, workers: int) -> Iterator[Iterator[Batch]]:
    """Of a data set that yields whole batches."""
    batches = DataLoader(dataset, batch_size=None, num_workers=workers)
    while True:
        yield (Batch(*batch) for batch in batches)
