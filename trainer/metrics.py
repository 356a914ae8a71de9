"""OUT/metrics.jsonl: what a run measured, a line every few steps, one history across resumes."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.durable import replace_file
from infra.models.folder import PIXELS_PER_GRID
from schemas.errors import TeachonceError
from trainer.batch import Batch
from trainer.learner import Step
from trainer.parallel import Ranks

FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Losses:
    """The losses of one step, of all ranks' rows."""

    total: float
    terms: dict[str, dict[str, float]]
    """{teacher: {"cls", "patch"}} of those that took part, before their weights."""
    gradient_norm: float
    no_direction: int
    """Tokens whose cosine is 0 because their prediction or target has no length, of all heads."""
    not_finite: int
    """Tokens, of all heads."""


def fetch(number: int, step: Step, factors: Mapping[str, float], ranks: Ranks) -> Losses:
    """Wait for the GPU, and for the other ranks, and see what a step found.

    Raises:
        TeachonceError: the loss or the gradient is not finite.
    """
    names = [(teacher, term) for teacher, terms in step.parts.items() for term in terms]
    shares = torch.stack([step.parts[teacher][term] for teacher, term in names])
    # The norm is of the gradient of all ranks already.
    sums = ranks.total(torch.cat([shares.float(), step.counts]))
    values = torch.cat([sums, step.gradient_norm.float().reshape(1)])
    *losses, no_direction, not_finite, gradient_norm = values.tolist()
    terms: dict[str, dict[str, float]] = {teacher: {} for teacher in step.parts}
    for (teacher, term), value in zip(names, losses):
        terms[teacher][term] = value
    total = sum(factors[teacher] * sum(each.values()) for teacher, each in terms.items())
    if not math.isfinite(total) or not math.isfinite(gradient_norm):
        raise TeachonceError(
            f"step {number}: the loss is {total}, the norm of its gradient {gradient_norm}; the "
            "last checkpoint stands. Train into another `out` with a lower optim.lr, a longer "
            "optim.warmup_steps or an optim.clip_norm"
        )
    return Losses(total, terms, gradient_norm, int(no_direction), int(not_finite))


class Pace:
    """Counts rows, tokens and waiting."""

    def __init__(self, first_step: int, last_step: int) -> None:
        """For a process that takes the steps after `first_step` until `last_step`."""
        self._first_step, self._last_step = first_step, last_step
        self._start = self._last = time.monotonic()
        self._rows_total = self._rows = self._tokens = 0
        self._waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        start = time.monotonic()
        yield
        self._waited_s += time.monotonic() - start

    def count(self, batch: Batch) -> None:
        self._rows += batch.total
        self._rows_total += batch.total
        self._tokens += batch.total * student_grid(batch) ** 2

    @property
    def rows_per_second(self) -> float:
        """Of the whole process so far, on all ranks; 0 if it had nothing to do."""
        return self._rows_total / max(time.monotonic() - self._start, 1e-9)

    def lap(self, step: int) -> dict[str, float]:
        """Rates since the last lap, of all ranks, and how much is left after `step`."""
        now = time.monotonic()
        elapsed = max(now - self._last, 1e-9)
        per_step_s = (now - self._start) / max(1, step - self._first_step)
        rates = {
            "rows_per_second": self._rows / elapsed,
            "tokens_per_second": self._tokens / elapsed,
            "data_wait": self._waited_s / elapsed,
            "seconds_left": (self._last_step - step) * per_step_s,
        }
        self._last, self._rows, self._tokens, self._waited_s = now, 0, 0, 0.0
        return rates


class Metrics:
    """The file."""

    def __init__(self, out: Path, first_step: int) -> None:
        """Lines after `first_step` are dropped: a run that was killed wrote them, and its successor
        takes those steps again."""
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / FILE
        replace_file(self._path, b"".join(_lines_until(self._path, first_step)))

    def line(self, record: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def line_of(
    step: int, losses: Losses, batch: Batch, lr: float, rates: Mapping[str, float]
) -> dict[str, Any]:
    """What a line says of a step and its batch."""
    return {
        "step": step,
        "epoch": batch.epoch,
        "loss": losses.total,
        "gradient_norm": losses.gradient_norm,
        "tokens_without_direction": losses.no_direction,
        "tokens_not_finite": losses.not_finite,
        "student_grid": student_grid(batch),
        "teachers": {
            name: {"grid": batch.targets[name].grid, **terms}
            for name, terms in losses.terms.items()
        },
        "lr": lr,
        **rates,
    }


def student_grid(batch: Batch) -> int:
    """Of a batch; its tokens are counted by it, whatever the student's stride."""
    return batch.pixels.shape[-1] // PIXELS_PER_GRID


def _lines_until(path: Path, step: int) -> Iterator[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        # A line without its end is one that a kill cut off.
        if line.endswith(b"\n") and json.loads(line)["step"] <= step:
            yield line
