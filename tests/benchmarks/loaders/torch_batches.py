"""Batches from a torch DataLoader, in the environments that have torch."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from tests.benchmarks.loaders.peer import BATCH, Batch


def collated(dataset: Any, workers: int, loader: Any = DataLoader) -> Iterator[Batch]:
    """Of a data set of (row, tokens, cls), put together as torch does by default."""
    for rows, tokens, cls in loader(dataset, batch_size=BATCH, num_workers=workers):
        yield Batch(rows, tokens, cls)


def as_they_come(dataset: Any, workers: int) -> Iterator[Batch]:
    """Of a data set that yields whole batches."""
    for rows, tokens, cls in DataLoader(dataset, batch_size=None, num_workers=workers):
        yield Batch(rows, tokens, cls)
