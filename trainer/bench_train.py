"""What the stream costs a training step: the same steps fed from a cache, and from memory.

`held` takes a few batches of the very stream once and learns from them in turn; `streamed` learns
from batches as they come, after the first. Both are the whole step of `teachonce train`: augment,
normalise, forward, losses, backward, update. Their ratio is the share of the step's speed that
streaming leaves; `data_wait` is the share of the time in which the step waited for its batch.
"""

import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import closing

import torch

from infra.devices import pick_device, pick_precision, synchronise
from infra.terminal import Terminal
from schemas.errors import ConfigError
from schemas.options import BenchOptions
from schemas.strict import parse
from schemas.train_config import TrainConfig
from trainer.batch import Batch
from trainer.feed import open_feed
from trainer.heads import Widths
from trainer.learner import Learner
from trainer.students import build_student, set_up_training, side_pixels

HELD = 4
"""Batches in memory: more than the step's own reuse, and few enough for any machine."""
WARM_STEPS = 2
CPU_STUDENTS = ("timm:vit_tiny_patch16_224",)
GPU_STUDENTS = ("eupe_vit_t", "eupe_vit_s", "eupe_vit_b")
CPU_BATCH, GPU_BATCH = 16, 256


def measure(options: BenchOptions, terminal: Terminal) -> list[dict[str, object]]:
    """Interleaved repeats for each student. Raises ConfigError without a `cache`."""
    students = options.students or (GPU_STUDENTS if torch.cuda.is_available() else CPU_STUDENTS)
    return [
        _measured(options, student, impl, terminal)
        for student in students
        for impl in options.impls
    ]


def _measured(
    options: BenchOptions, student: str, impl: str, terminal: Terminal
) -> dict[str, object]:
    config = config_of(options, student, impl)
    bench = TrainBench(config)
    runs = []
    for repeat in range(options.repeats):
        run = bench.run(options.steps)
        runs.append(run)
        terminal.say(f"{student}, repeat {repeat}: " + str({k: round(run[k], 4) for k in run}))
    shares = [run["streamed_rows_per_s"] / run["held_rows_per_s"] for run in runs]
    return {
        "case": f"{student}, batch {config.optim.batch_size}, {bench.precision}, "
        f"{bench.teachers}, {options.steps} steps",
        "loss": impl,
        "peak_mb": bench.peak_mb(),
        "share": round(statistics.median(shares), 4),
        "shares": [round(share, 4) for share in shares],
        **{name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]},
    }


class TrainBench:
    """A learner, a feed of its cache, and a few of that feed's batches in memory."""

    def __init__(self, config: TrainConfig) -> None:
        self._device = pick_device().value
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.precision = pick_precision(config.precision, self._device).value
        student = build_student(config.student.model, config.seed, config.student.arguments)
        set_up_training(student, config.student)
        self._feed = open_feed(config, [side_pixels(student, g) for g in config.student_grids])
        widths = {
            name: Widths(told.patch_width, told.cls_width)
            for name, told in self._feed.teachers.items()
        }
        self.teachers = ", ".join(
            f"{name} {told.patch_width} wide at {', '.join(map(str, told.grids))}"
            for name, told in self._feed.teachers.items()
        )
        self._learner = Learner(config, student, widths, self._device, self.precision)
        self._begin = self._feed.state_dict()
        self._number = itertools.count(1)
        with closing(iter(self._feed)) as batches:
            self._held = list(itertools.islice(batches, HELD))

    def run(self, steps: int) -> dict[str, float]:
        """One repeat of each."""
        held = self._timed(itertools.cycle(self._held), steps)
        self._feed.load_state_dict(self._begin)
        with closing(iter(self._feed)) as batches:
            streamed = self._timed(batches, steps)
        return {
            "held_rows_per_s": held[0],
            "streamed_rows_per_s": streamed[0],
            "data_wait": streamed[1],
        }

    def peak_mb(self) -> float | None:
        """Most memory of the GPU that was taken at once so far."""
        if self._device != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)

    def _timed(self, batches: Iterator[Batch], steps: int) -> tuple[float, float]:
        """Rows per second, and the share of the time that the batches were waited for."""
        for _ in range(WARM_STEPS):
            self._learner.step(next(self._number), next(batches))
        synchronise(self._device)
        waited, rows, start = 0.0, 0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            self._learner.step(next(self._number), batch)
            rows += len(batch.rows)
        synchronise(self._device)
        seconds = time.perf_counter() - start
        return rows / seconds, waited / seconds


def config_of(options: BenchOptions, student: str, impl: str = "auto") -> TrainConfig:
    """The training whose step is timed. Raises ConfigError without a `cache`."""
    if options.cache is None:
        raise ConfigError("bench train reads a cache that is there: name it with --cache")
    on_gpu = torch.cuda.is_available()
    return parse(
        TrainConfig,
        {
            "cache": options.cache,
            "store": options.store,
            "student": {"model": student},
            "teachers": {options.teacher: {"grids": options.grid and [options.grid]}},
            "optim": {"batch_size": options.batch_size or (GPU_BATCH if on_gpu else CPU_BATCH)},
            "loss": {"impl": impl},
            "precision": options.precision or "auto",
            "out": "nothing is written",
        },
        "bench train",
    )
