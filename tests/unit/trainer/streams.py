"""Streams over one tiny cache, and what they serve."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer import CacheStream
from trainer.batch import Batch

IMAGES, MORE, VIEWS = 267, 5, 2
ROWS = (IMAGES + 1 + MORE) * VIEWS
"""546: 17 blocks and, of the second generation, one of ten rows: two windows."""
EMPTY = "empty.jpg"


@dataclass(frozen=True)
class Cached:
    cache: Path
    source: Path


def stream_of(cached: Cached, **changes: Any) -> CacheStream:
    options: dict[str, Any] = {"pixels": 32, "batch_size": 64, "teachers": {"vit": 2, "cnn": 2}}
    return CacheStream(str(cached.cache), **(options | changes))


def epoch_of(stream: CacheStream) -> list[Batch]:
    """The batches to the end of the epoch."""
    epoch = stream.state_dict()["epoch"]
    batches = []
    with closing(iter(stream)) as iterator:
        for batch in iterator:
            batches.append(batch)
            if batch.state["epoch"] != epoch:
                break
    return batches


def rows_of(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist()]


def joined(batches: list[Batch]) -> dict[str, torch.Tensor]:
    """What the batches hold, whatever their size."""
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for name in ("rows", "pixels", "weight"):
            parts.setdefault(name, []).append(getattr(batch, name))
        for name, target in batch.targets.items():
            parts.setdefault(f"{name} tokens", []).append(target.tokens)
            assert target.cls is not None
            parts.setdefault(f"{name} cls", []).append(target.cls)
    return {name: torch.cat(part) for name, part in parts.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name
