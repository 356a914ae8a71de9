"""What every loader's process shares: the rows, and the clock.

Runs in the environments of others, so it needs numpy and the standard library alone. A process
does one thing, writing the rows or reading an epoch of them, and prints one line of JSON. Which
epoch is asked for: the first finds nothing in the process, not even the memory that it will fill;
the second is what all further ones are like.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BATCH = 64
FILE_BYTES = 64 << 20
"""Of a chunk, shard or tar file, where a format is asked for a size."""
CHECKED = 16
"""Rows that are compared with the truth, once the clock has stopped."""
Halves = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Rows:
    """The truth: plain files that any process may map."""

    folder: Path

    @property
    def tokens(self) -> Halves:
        """[rows, tokens, channels]."""
        return self._mapped("tokens")

    @property
    def cls(self) -> Halves:
        """[rows, width]."""
        return self._mapped("cls")

    def _mapped(self, name: str) -> Halves:
        mapped: Halves = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return mapped

    def items(self) -> Iterator[tuple[int, Halves, Halves]]:
        tokens, cls = self.tokens, self.cls
        for row in range(len(tokens)):
            yield row, np.array(tokens[row]), np.array(cls[row])

    def per_file(self) -> int:
        """Rows of a file of `FILE_BYTES`."""
        return max(1, FILE_BYTES // int(self.tokens[0].nbytes))


class Batch(NamedTuple):
    rows: Any
    """Numbers of the rows, in the order they are served."""
    tokens: Any
    cls: Any


Write = Callable[[Rows, Path], None]
Read = Callable[[Path, Rows, int, int], Iterator[Iterator[Batch]]]
"""(folder, truth, workers, seed) -> epoch after epoch: every row once, shuffled, in batches."""


def serve(write: Write, read: Read, packages: Sequence[str]) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=["write", "read"])
    for name in ("folder", "truth"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("workers", "seed", "epoch"):
        parser.add_argument(f"--{name}", type=int, default=0)
    options, _ = parser.parse_known_args()
    truth = Rows(options.truth)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a library prints goes to the log
        if options.do == "write":
            write(truth, options.folder)
            versions = {name: importlib.metadata.version(name) for name in packages}
            answer: dict[str, object] = {"python": platform.python_version(), **versions}
        else:
            answer = _timed(read, truth, options)
        answers.write(json.dumps(answer) + "\n")


def _timed(read: Read, truth: Rows, options: argparse.Namespace) -> dict[str, object]:
    """From the call that opens the data, or the end of the epoch before, to the last row; imports
    are not counted."""
    served: list[Any] = []
    first = None
    start, cpu = time.perf_counter(), _cpu_seconds()
    epochs = read(options.folder, truth, options.workers, options.seed)
    for _ in range(options.epoch):
        deque(next(epochs), maxlen=0)
        start, cpu = time.perf_counter(), _cpu_seconds()
    for batch in next(epochs):
        if first is None:
            first = time.perf_counter() - start
        served.append(batch.rows)
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    assert first is not None
    rows = np.concatenate([np.asarray(each, np.int64) for each in served])
    if not np.array_equal(np.sort(rows), np.arange(len(truth.tokens))):
        raise AssertionError(f"{len(rows)} rows, {len(set(rows.tolist()))} of them different")
    _refuse_wrong(batch, truth)
    steady = (len(rows) - len(served[0])) / (seconds - first)
    steps = float(np.abs(np.diff(rows)).mean())
    return {
        "whole_rows_per_s": len(rows) / seconds,
        "steady_rows_per_s": steady,
        "first_batch_ms": first * 1e3,
        "cpu_us_per_row": cpu / len(rows) * 1e6,
        "shuffle_reach": steps / (len(rows) / 3),
    }


def _cpu_seconds() -> float:
    """Of this process and the workers that have ended: what hardly changes when other programs have
    the cores."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _refuse_wrong(batch: Batch, truth: Rows) -> None:
    """The last batch must hold what was written."""
    for place, row in enumerate(np.asarray(batch.rows).tolist()[:CHECKED]):
        for mine, theirs in ((batch.tokens, truth.tokens), (batch.cls, truth.cls)):
            if not np.array_equal(np.asarray(mine[place]), theirs[row]):
                raise AssertionError(f"row {row} is served with other bytes than were written")
