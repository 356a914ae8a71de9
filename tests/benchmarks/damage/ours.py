"""This project's cache: one small teacher's rows, read by the trainer's stream.

With the argument `verify`, `teachonce verify` looks first, and it must be the one that finds: rows
that the trainer then refuses count as lost. Rows cannot be prescribed here, since they come from a
teacher; what a sound cache serves through the block reader is the truth for the stream.
"""

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from infra.buffers import Buffers, room_of, spread
from infra.store import LocalStore
from schemas import shard
from schemas.errors import CacheError
from tests.benchmarks.damage.peer import FIRST_KEY, ROWS, ROWS_PER_SHARD, File, Row, Side, serve
from tests.caches import VIT, config_of, extract_here, pictures, verify_here
from trainer import CacheStream
from trainer.cache import CacheReader

VERIFY = "verify" in sys.argv
GRID = 4
BATCH_ROWS = 32


class ShortReplies(LocalStore):
    """A store that once replies with less than it has."""

    def __init__(self, root: Path, number: int, share: float) -> None:
        super().__init__(root)
        self._number, self._share, self._replies = number, share, itertools.count()

    def get(self, key: str) -> bytes:
        data = super().get(key)
        return data[: self._length(len(data))]

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        data = super().get_range(key, start, end)
        return data[: self._length(len(data))]

    def fill(self, key: str, start: int, buffers: Buffers) -> int:
        return spread(self.get_range(key, start, start + room_of(buffers)), buffers)

    def _length(self, full: int) -> int:
        is_cut = next(self._replies) == self._number
        return min(full - 1, int(full * self._share)) if is_cut else full


def write(folder: Path, run: int) -> list[File]:
    source = pictures(folder.parent / "pictures", ROWS)
    teacher = VIT | {"weights": f"random:{run}"}
    config = config_of(
        folder, source, grids=[GRID], teachers={"t": teacher}, rows_per_shard=ROWS_PER_SHARD
    )
    assert extract_here(config).status == 0
    return [_file(folder, key) for key in sorted(LocalStore(folder).keys(""))]


def _file(folder: Path, key: str) -> File:
    if "/tokens/c/" in key:
        # A cache this small has shards of fewer rows than were asked for.
        metadata = (folder / key.partition("/c/")[0] / "zarr.json").read_bytes()
        end = shard.index_bytes(shard.rows_per_shard_of(metadata))
        size = (folder / key).stat().st_size
        return File(key, "rows", ((0, end),), end + (size - end) // 2)
    if "/cls/" in key:
        return File(key, "rows", row_start=(folder / key).stat().st_size // 2)
    return File(key, "records")


def truth(folder: Path, run: int) -> Iterator[Row]:
    reader = CacheReader(str(folder))
    for number in range(len(reader.covered(reader.generations[0]))):
        block, tokens = reader.read_block(0, number)
        cls, first = block.sets["t"].cls, block.first_row + FIRST_KEY
        yield from enumerate(map(_joined, tokens["t"], cls), first)


def read(folder: Path) -> Iterator[Row]:
    if not VERIFY:
        yield from _epoch(folder)
        return
    outcome = verify_here(folder)
    if outcome.status:
        raise AssertionError("\n".join(outcome.result["damage"]))
    with suppress(CacheError):
        yield from _epoch(folder)


def _epoch(folder: Path) -> Iterator[Row]:
    """Rows go by their number in the plan."""
    stream = CacheStream(str(folder), pixels=None, batch_size=BATCH_ROWS, threads=1)
    with closing(iter(stream)) as batches:
        for batch in batches:
            said = batch.targets["t"]
            yield from zip((batch.rows + FIRST_KEY).tolist(), map(_joined, said.tokens, said.cls))
            if batch.state["epoch"]:
                return


def _joined(tokens: Any, cls: Any) -> Any:
    """All that is served of a row."""
    return np.concatenate([np.asarray(tokens).reshape(-1), np.asarray(cls)])


def read_short(folder: Path, number: int, share: float) -> Iterator[Row]:
    store = ShortReplies(folder, number, share)
    with ExitStack() as replaced:
        for module in ("pipeline.verify", "trainer.cache"):
            replaced.enter_context(mock.patch(f"{module}.open_store", return_value=store))
        yield from read(folder)


if __name__ == "__main__":
    serve(Side(write, read, ["pyarrow", "numpy"], truth, read_short))
