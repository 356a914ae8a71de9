"""Reading rates: the block reader and the stream, beside a raw ranged read of the same bytes.

One set of an existing cache, on a disk or on S3, all readers (bench_readers.py) in turn in each
repeat, on one thread and on all cores. `cold` begins without a byte of the cache in memory. The
stream's second epoch is timed apart: in the first it takes from the system the memory that it
fills, which costs a training once, and costs more than reading on a virtual machine.
"""

import os
import statistics

import numpy as np

from infra.heap import keep_freed_memory
from infra.page_cache import evict, files_below
from infra.terminal import Terminal
from schemas.errors import ConfigError
from schemas.names import BLOCK_ROWS
from schemas.options import BenchOptions
from trainer.bench_readers import Case, Rate, readers
from trainer.cache import CacheReader

RESIDENT = 0.01
"""Share of a cache's bytes in memory up to which it counts as cold."""


def measure(options: BenchOptions, terminal: Terminal) -> list[dict[str, object]]:
    """Interleaved repeats of every reader. Raises ConfigError without a `cache`."""
    keep_freed_memory()  # as a training does
    case = _case(options)
    results: list[dict[str, object]] = []
    for state in ("warm", "cold") if case.is_local else ("s3",):
        for threads in sorted({1, os.cpu_count() or 1}):
            rates: dict[str, list[Rate]] = {}
            for repeat in range(options.repeats + 1):
                for name, timed in readers(case, state).items():
                    if state == "cold":
                        _make_cold(case)
                    rates.setdefault(name, []).append(timed(case, threads))
                terminal.say(f"{state}, {threads} threads: repeat {repeat} of {options.repeats}")
            results += _rows_of(case, state, threads, rates)
    return results


def _case(options: BenchOptions) -> Case:
    if options.cache is None:
        raise ConfigError("bench loader reads a cache that is there: name it with --cache")
    name = options.teacher
    reader = CacheReader(options.cache, teachers={name: options.grid}, store=options.store)
    path = next(iter(reader.sets[name].values()))
    plan = reader.generations[0]
    covered = np.flatnonzero(reader.covered(plan))
    blocks = np.random.default_rng(0).permutation(covered).tolist()
    rows = sum(min(BLOCK_ROWS, plan.rows - block * BLOCK_ROWS) for block in blocks)
    return Case(options, options.cache, path, blocks, rows)


def _rows_of(
    case: Case, state: str, threads: int, rates: dict[str, list[Rate]]
) -> list[dict[str, object]]:
    """What is written down; the first repeat of each reader is not counted."""
    counted = {name: values[1:] for name, values in rates.items()}
    shares = {
        name: [one.rows_per_s / raw.rows_per_s for one, raw in zip(values, counted["raw"])]
        for name, values in counted.items()
    }
    return [
        {
            "case": f"{case.options.teacher} grid {case.path.grid}, {case.rows} rows, {state}",
            "reader": name,
            "threads": threads,
            "rows_per_s": round(statistics.median(rate.rows_per_s for rate in values)),
            "min_max": [round(of(rate.rows_per_s for rate in values)) for of in (min, max)],
            "share_of_raw": round(statistics.median(shares[name]), 3),
            "shares": [round(share, 3) for share in shares[name]],
            "cpu_us_per_row": round(statistics.median(rate.cpu_us_per_row for rate in values), 1),
        }
        for name, values in counted.items()
    ]


def _make_cold(case: Case) -> None:
    left = evict(files_below(case.cache))
    if left > RESIDENT:
        raise ConfigError(
            f"{case.cache}: {left:.0%} of it stays in the page cache, so nothing cold can be "
            "measured; another process has it mapped, or its file system is in memory"
        )
