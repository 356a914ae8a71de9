"""The readers that `bench loader` times, each over the same rows.

The raw read fetches each block's bytes with one ranged read and does nothing else: what a perfect
reader would reach. tensorstore, on a disk, checks the same checksums; it has no commits, keys or
CLS to match. The stream makes batches in an epoch's order; with pictures each row's view is decoded
and replayed as well. Every run opens the cache anew, so that indices and CLS tables are read again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import tensorstore

from infra.store import open_store
from schemas import shard
from schemas.layout import SetPath
from schemas.names import BLOCK_ROWS
from schemas.options import BenchOptions
from trainer.batch import Batch
from trainer.cache import CacheReader
from trainer.stream import CacheStream

BATCH = 64
PICTURE_ROWS = 512
"""Of which the rate with pictures is taken: decoding takes a hundred times as long as reading."""
Read = Callable[[int], object]
"""Of a block."""


@dataclass(frozen=True)
class Case:
    """What is read."""

    options: BenchOptions
    cache: str
    path: SetPath
    blocks: Sequence[int]
    """In a shuffled order."""
    rows: int

    @property
    def is_local(self) -> bool:
        return not self.cache.startswith("s3://")


@dataclass(frozen=True)
class Rate:
    """Of one run."""

    rows_per_s: float
    cpu_us_per_row: float
    """Of all threads: what hardly changes when other programs have the cores."""


class Clock:
    """Begins to count when it is made."""

    def __init__(self) -> None:
        self._start, self._cpu = time.perf_counter(), time.process_time()

    def rate(self, rows: int) -> Rate:
        cpu = time.process_time() - self._cpu
        return Rate(rows / (time.perf_counter() - self._start), cpu / rows * 1e6)


Timed = Callable[[Case, int], Rate]
"""(what, threads) -> how fast."""


def readers(case: Case, state: str) -> dict[str, Timed]:
    """By name, all that can be timed of a case; `state` is warm, cold or s3."""
    found: dict[str, Timed] = {"raw": _raw, "blocks": _blocks, "stream": _stream}
    if case.is_local:
        found["tensorstore"] = _tensorstore
    if state == "warm":
        found["stream, second epoch"] = partial(_stream, epoch=1)
    if case.options.pixels:
        found["stream with pictures"] = _stream_with_pictures
    return found


def _rate(case: Case, read: Read, threads: int) -> Rate:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(abs, range(threads)))  # starts the threads
        clock = Clock()
        for _ in pool.map(read, case.blocks):
            pass
        return clock.rate(case.rows)


def _raw(case: Case, threads: int) -> Rate:
    store = open_store(case.cache, case.options.store)
    metadata = store.get(case.path.array(0))
    per_shard = shard.rows_per_shard_of(metadata)
    rows, form = shard.form_of(metadata)
    chunk = form.bytes + shard.CRC_BYTES
    head = shard.index_bytes(per_shard)
    keys = [case.path.tokens(0, number) for number in range(-(-rows // per_shard))]

    def read(block: int) -> object:
        number, inside = divmod(block * BLOCK_ROWS, per_shard)
        start = head + inside * chunk
        return store.get_range(keys[number], start, start + BLOCK_ROWS * chunk)

    return _rate(case, read, threads)


def _blocks(case: Case, threads: int) -> Rate:
    grids = {case.options.teacher: case.options.grid}
    reader = CacheReader(case.cache, teachers=grids, store=case.options.store)
    return _rate(case, lambda block: reader.read_block(0, block), threads)


def _stream(case: Case, threads: int, epoch: int = 0) -> Rate:
    """From before an epoch's first batch to its last."""
    stream = _opened(case, threads, None)
    clock = Clock()
    with closing(iter(stream)) as batches:
        for _ in range(epoch):
            deque(_epoch(batches), maxlen=0)
            clock = Clock()
        return clock.rate(sum(_epoch(batches)))


def _stream_with_pictures(case: Case, threads: int) -> Rate:
    """From the first batch to so many rows; the picture files themselves are never cold."""
    with closing(iter(_opened(case, threads, case.options.pixels))) as batches:
        counts = _epoch(batches)
        next(counts)
        clock, rows = Clock(), 0
        for count in counts:
            rows += count
            if rows >= PICTURE_ROWS:
                break
        return clock.rate(rows)


def _opened(case: Case, threads: int, pixels: int | None) -> CacheStream:
    return CacheStream(
        case.cache,
        teachers={case.options.teacher: case.options.grid},
        pixels=pixels,
        batch_size=BATCH,
        threads=threads,
        store=case.options.store,
    )


def _epoch(batches: Iterator[Batch]) -> Iterator[int]:
    """Rows of each batch up to the end of the epoch."""
    for batch in batches:
        yield len(batch.rows)
        if batch.state["epoch"] != batch.epoch:
            return


def _tensorstore(case: Case, threads: int) -> Rate:
    folder = case.path.array(0).removesuffix("/zarr.json")
    limit = {"limit": threads}
    array = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{case.cache}/{folder}/"}},
        context=tensorstore.Context(
            {
                "cache_pool": {"total_bytes_limit": 0},
                "data_copy_concurrency": limit,
                "file_io_concurrency": limit,
            }
        ),
        open=True,
        read=True,
    ).result()
    rows = array.shape[0]

    def read(block: int) -> object:
        first = block * BLOCK_ROWS
        return array[first : min(rows, first + BLOCK_ROWS)].read().result()

    return _rate(case, read, threads)
