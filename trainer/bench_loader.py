"""Reading rate of the cache reader, beside a raw ranged read of the same bytes and tensorstore.

One set of an existing cache, whole blocks in a shuffled order, page cache warm, on one thread and
on all cores. The raw read fetches each block's bytes with one ranged read and does nothing else:
what a perfect reader would reach. tensorstore checks the same checksums; it has no commits, keys or
CLS to match, and is the reader that would be used if ours were not better.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorstore

from infra.store import open_store
from infra.terminal import Terminal
from schemas import shard
from schemas.errors import ConfigError
from schemas.layout import SetPath
from schemas.names import BLOCK_ROWS
from schemas.options import BenchOptions
from trainer.cache import CacheReader

Read = Callable[[int], object]


def measure(options: BenchOptions, terminal: Terminal) -> list[dict[str, object]]:
    """Interleaved repeats of every reader. Raises ConfigError without a local `cache`."""
    if options.cache is None:
        raise ConfigError("bench loader reads a cache that is there: name it with --cache")
    name = options.teacher
    reader = CacheReader(options.cache, teachers={name: options.grid})
    path = reader.sets[name]
    blocks = np.random.default_rng(0).permutation(len(reader.covered(0))).tolist()
    readers: dict[str, Callable[[int], Read]] = {
        "raw": lambda threads: _raw(options.cache or "", path),
        "ours": lambda threads: lambda block: reader.read_block(0, block),
        "tensorstore": lambda threads: _tensorstore(options.cache or "", path, threads),
    }
    rows = min(reader.generations[0].rows, len(blocks) * BLOCK_ROWS)
    results: list[dict[str, object]] = []
    for threads in sorted({1, os.cpu_count() or 1}):
        rates: dict[str, list[float]] = {label: [] for label in readers}
        for _ in range(options.repeats + 1):
            for label, make in readers.items():
                rates[label].append(rows / _seconds(make(threads), blocks, threads))
        raw = statistics.median(rates["raw"][1:])
        for label, values in rates.items():
            rate = statistics.median(values[1:])  # the first warms the page cache
            results.append(
                {
                    "case": f"{name} grid {path.grid}, {rows} rows, warm",
                    "reader": label,
                    "threads": threads,
                    "rows_per_s": round(rate),
                    "share_of_raw": round(rate / raw, 3),
                    "min_max": [round(min(values[1:])), round(max(values[1:]))],
                }
            )
    return results


def _seconds(read: Read, blocks: Sequence[int], threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, blocks[:threads]))
        start = time.perf_counter()
        for _ in pool.map(read, blocks):
            pass
        return time.perf_counter() - start


def _raw(cache: str, path: SetPath) -> Read:
    store = open_store(cache)
    metadata = store.get(path.array(0))
    per_shard = shard.rows_per_shard_of(metadata)
    _, tokens, channels = shard.shape_of(metadata)
    chunk = tokens * channels * 2 + shard.CRC_BYTES
    head = shard.index_bytes(per_shard)

    def read(block: int) -> object:
        number, inside = divmod(block * BLOCK_ROWS, per_shard)
        start = head + inside * chunk
        return store.get_range(path.tokens(0, number), start, start + BLOCK_ROWS * chunk)

    return read


def _tensorstore(cache: str, path: SetPath, threads: int) -> Read:
    folder = path.array(0).removesuffix("/zarr.json")
    array = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{cache}/{folder}/"}},
        context=tensorstore.Context(
            {
                "cache_pool": {"total_bytes_limit": 0},
                "data_copy_concurrency": {"limit": threads},
                "file_io_concurrency": {"limit": threads},
            }
        ),
        open=True,
        read=True,
    ).result()
    rows = array.shape[0]

    def read(block: int) -> object:
        first = block * BLOCK_ROWS
        return array[first : min(rows, first + BLOCK_ROWS)].read().result()

    return read
