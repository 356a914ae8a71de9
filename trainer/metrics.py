"""OUT/metrics.jsonl: what a run measured, one line every few steps, one history across resumes."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from infra.durable import replace_file
from schemas.errors import TeachonceError
from trainer.losses import Parts

FILE = "metrics.jsonl"


class Metrics:
    """Counts rows and waiting between two lines; fetches numbers from the GPU only for a line."""

    def __init__(self, out: Path, first_step: int) -> None:
        """Lines after `first_step` are dropped: a run that was killed wrote them, and its successor
        takes those steps again."""
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / FILE
        replace_file(self._path, b"".join(_lines_until(self._path, first_step)))
        self._start = self._last = time.monotonic()
        self._rows_total = self._rows = 0
        self._waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        start = time.monotonic()
        yield
        self._waited_s += time.monotonic() - start

    def count(self, rows: int) -> None:
        self._rows += rows
        self._rows_total += rows

    @property
    def rows_per_second(self) -> float:
        """Of the whole run so far; 0 if it had nothing to do."""
        return self._rows_total / max(time.monotonic() - self._start, 1e-9)

    def line(self, step: int, total: Tensor, parts: Parts, lr: float) -> float:
        """Write the line of a step and return its loss.

        Raises:
            TeachonceError: the loss is not a finite number.
        """
        names = [(teacher, term) for teacher, terms in parts.items() for term in terms]
        scalars = [total, *(parts[teacher][term] for teacher, term in names)]
        loss, *values = torch.stack(scalars).tolist()
        if not math.isfinite(loss):
            raise TeachonceError(
                f"step {step}: the loss is {loss}; the last checkpoint stands. Train into another "
                "`out` with a lower optim.lr, a longer optim.warmup_steps or an optim.clip_norm"
            )
        teachers: dict[str, dict[str, float]] = {teacher: {} for teacher in parts}
        for (teacher, term), value in zip(names, values):
            teachers[teacher][term] = value
        now = time.monotonic()
        elapsed = max(now - self._last, 1e-9)
        record = {
            "step": step,
            "loss": loss,
            "teachers": teachers,
            "lr": lr,
            "rows_per_second": self._rows / elapsed,
            "data_wait": self._waited_s / elapsed,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._last, self._rows, self._waited_s = now, 0, 0.0
        return float(loss)


def _lines_until(path: Path, step: int) -> Iterator[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        # A line without its end is one that a kill cut off.
        if line.endswith(b"\n") and json.loads(line)["step"] <= step:
            yield line
