"""Extraction's throughput as a share of the bare forward loop on preloaded tensors.

The bare loop is what a perfect pipeline would reach: the same batches, in as many processes and
threads, with every picture already a tensor and every feature thrown away. It is timed in the two
ways a machine without a GPU can be filled - one process of all cores, and one a core - and the
faster one counts. With several teachers it runs one after the other, so that what an extraction
takes beyond it is the pictures, which are decoded once for all of them, and the writing.
"""

import math
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.devices import pick_device, synchronise
from infra.photographs import photographs
from infra.terminal import Terminal
from pipeline.extract import run as extract
from pipeline.teachers import load_teacher
from schemas.extract_config import ExtractConfig
from schemas.options import BenchOptions

GRIDS = (16, 24, 32)
VIEWS = 4
BATCH = 32
GPU_SECONDS = 2.0
"""Of forwards at each grid: a GPU's single batch is too short to be timed."""

_PATCH_14 = {"patch_size": 14, "class_token": False, "global_pool": "avg"}
CPU_CASES: dict[str, dict[str, dict[str, Any]]] = {
    "one": {"vit_s16": {"model": "vit_small_patch16_224"}},
    "three": {
        "vit_t16": {"model": "vit_tiny_patch16_224"},
        "vit_t14": {"model": "vit_tiny_patch16_224", "arguments": _PATCH_14},
        "convnext": {"model": "convnext_atto"},
    },
}
GPU_CASES: dict[str, dict[str, dict[str, Any]]] = {
    "one": {"vit_l16": {"model": "vit_large_patch16_224"}},
    "three": {
        "vit_b16": {"model": "vit_base_patch16_224"},
        "vit_b14": {"model": "vit_base_patch16_224", "arguments": _PATCH_14},
        "convnext": {"model": "convnext_base"},
    },
}


@dataclass(frozen=True)
class Run:
    """One extraction beside one bare loop."""

    told: dict[str, Any]
    """What the extraction reported."""
    bare_rate: float
    """Features per second."""

    @property
    def rate(self) -> float:
        """Features per second."""
        return float(self.told["teacher_forwards"] / self.told["compute_seconds"])

    @property
    def bare_seconds(self) -> float:
        """Of as many forwards."""
        return float(self.told["teacher_forwards"] / self.bare_rate)


def measure(options: BenchOptions, terminal: Terminal) -> list[dict[str, object]]:
    """Interleaved runs of the bare loop and of whole extractions, each into a new cache."""
    known = GPU_CASES if torch.cuda.is_available() else CPU_CASES
    cases = list(known) if options.case == "both" else [options.case]
    runs: dict[str, list[Run]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        source = options.images or str(photographs(Path(folder) / "photographs"))
        for repeat in range(options.repeats):
            for case in cases:
                config = _config(f"{folder}/{case}{repeat}", source, options, known[case])
                run = Run(extract(config, terminal).result, _best_bare_rate(config))
                runs[case].append(run)
                terminal.say(f"repeat {repeat}: {_split(case, run)}")
    return [_row(case, runs[case], known[case], options) for case in cases]


def _split(case: str, run: Run) -> str:
    told = run.told
    return (
        f"{case}: {run.rate:.2f} of {run.bare_rate:.2f} features/s; "
        f"{told['compute_seconds']:.1f} s, of which the bare forwards would take "
        f"{run.bare_seconds:.1f} s; workers' seconds together: forward "
        f"{told['forward_seconds']:.1f}, encode {told['encode_seconds']:.1f}, waiting for pictures "
        f"{told['wait_seconds']:.1f}; beside them {told['decode_seconds']:.1f} thread-seconds of "
        "decoding"
    )


def _row(
    case: str, runs: list[Run], teachers: dict[str, dict[str, Any]], options: BenchOptions
) -> dict[str, object]:
    """What is written down of a case: the median of its runs."""

    def median(values: list[float], digits: int = 2) -> float:
        return round(statistics.median(values), digits)

    images = runs[0].told["rows"] // VIEWS
    return {
        "case": f"{case}: {', '.join(teachers)} {_precision(options)}, {VIEWS} views x grids "
        f"{', '.join(map(str, GRIDS))}, {images} images",
        "share": median([run.rate / run.bare_rate for run in runs], 4),
        "shares": [round(run.rate / run.bare_rate, 4) for run in runs],
        "extract_features_per_s": median([run.rate for run in runs]),
        "bare_features_per_s": median([run.bare_rate for run in runs]),
        "seconds": median([run.told["compute_seconds"] for run in runs]),
        "bare_seconds": median([run.bare_seconds for run in runs]),
        "forward_worker_s": median([run.told["forward_seconds"] for run in runs]),
        "encode_worker_s": median([run.told["encode_seconds"] for run in runs]),
        "wait_worker_s": median([run.told["wait_seconds"] for run in runs]),
        "decode_thread_s": median([run.told["decode_seconds"] for run in runs]),
        "decode_thread_s_per_image": median(
            [run.told["decode_seconds"] / images for run in runs], 4
        ),
    }


def _precision(options: BenchOptions) -> str:
    return options.precision or ("bfloat16" if torch.cuda.is_available() else "float32")


def _config(
    cache: str, source: str, options: BenchOptions, teachers: dict[str, dict[str, Any]]
) -> ExtractConfig:
    common = {"library": "timm", "weights": "random:0"}
    return ExtractConfig.model_validate(
        {
            "cache": cache,
            "images": {"source": source, "limit": options.limit},
            "views": {"per_image": VIEWS},
            "grids": GRIDS,
            "teachers": {name: {**common, **model} for name, model in teachers.items()},
            "calibration_images": 1,
            "workers": {
                "batch_size": BATCH,
                "precision": _precision(options),
                # The bare loop takes one GPU.
                "count": 1 if torch.cuda.is_available() else "auto",
            },
        }
    )


def _best_bare_rate(config: ExtractConfig) -> float:
    processes = {1} if torch.cuda.is_available() else {1, os.cpu_count() or 1}
    return max(_bare_rate(config, count) for count in sorted(processes))


def _bare_rate(config: ExtractConfig, processes: int) -> float:
    """Features per second of the forwards alone, from the first start to the last end."""
    context = get_context("spawn")
    barrier = context.Barrier(processes)
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, context, _share_barrier, (barrier,)) as pool:
        spans = list(pool.map(_bare_loop, [(config, threads)] * processes))
    seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    batches = len(config.grids) * len(config.teachers)
    return processes * config.workers.batch_size * batches / seconds


_barriers: list[Barrier] = []


def _share_barrier(barrier: Barrier) -> None:
    """A barrier reaches another process only as it starts."""
    _barriers.append(barrier)


def _bare_loop(task: tuple[ExtractConfig, int]) -> tuple[float, float]:
    """Forward one ready batch through each teacher at each grid; (start, end) of the machine's
    monotonic clock. On a GPU as long as one batch of each takes on the average of many."""
    config, threads = task
    torch.set_num_threads(threads)
    device = pick_device().value
    noise = np.random.default_rng(0)
    ready = []
    for teacher in config.teachers.values():
        loaded = load_teacher(teacher, config.workers.precision, device)
        for grid in config.grids:
            side = loaded.record.pixels(grid)
            shape = (config.workers.batch_size, side, side, 3)
            batch = loaded.tensor(list(noise.integers(0, 256, shape, np.uint8)))
            loaded.forward(batch if device == "cuda" else batch[:1])
            ready.append((loaded, batch))
    synchronise(device)
    _barriers[0].wait()
    start = time.monotonic()
    if device == "cuda":
        return start, start + sum(_seconds_on_gpu(loaded.forward, batch) for loaded, batch in ready)
    for loaded, batch in ready:
        loaded.forward(batch)
    return start, time.monotonic()


def _seconds_on_gpu(forward: Any, batch: torch.Tensor) -> float:
    """Of one batch, the mean over `GPU_SECONDS` of them issued in one go."""

    def timed(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            forward(batch)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    count = math.ceil(GPU_SECONDS / timed(3) * 3)
    return timed(count) / count
