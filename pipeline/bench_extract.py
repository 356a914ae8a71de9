"""Extraction's throughput as a share of the bare forward loop on preloaded tensors.

The bare loop is what a perfect pipeline would reach: the same batches, in as many processes and
threads, with every picture already a tensor and every feature thrown away. It is timed in the two
ways a machine without a GPU can be filled - one process of all cores, and one a core - and the
faster one counts.
"""

import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch

from infra.devices import pick_device
from infra.photographs import photographs
from infra.terminal import Terminal
from pipeline.extract import run as extract
from pipeline.teachers import load_teacher
from schemas.extract_config import ExtractConfig
from schemas.options import BenchOptions

CPU_MODEL, GPU_MODEL = "vit_small_patch16_224", "vit_large_patch16_224"
GRIDS = (16, 24, 32)
VIEWS = 4
BATCH = 32


def measure(options: BenchOptions, terminal: Terminal) -> list[dict[str, object]]:
    """Interleaved runs of the bare loop and of whole extractions, each into a new cache."""
    gpu = torch.cuda.is_available()
    processes = {1} if gpu else {1, os.cpu_count() or 1}
    bare_rates, our_rates, decode_seconds = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        source = options.images or str(photographs(Path(folder) / "photographs"))
        for repeat in range(options.repeats):
            config = _config(f"{folder}/cache{repeat}", source, options, gpu)
            result = extract(config, terminal).result
            images = int(str(result["rows"])) // VIEWS
            our_rates.append(
                int(str(result["teacher_forwards"])) / float(str(result["compute_seconds"]))
            )
            decode_seconds.append(float(str(result["decode_seconds"])) / images)
            bare_rates.append(max(_bare_rate(config, count) for count in sorted(processes)))
            terminal.say(f"repeat {repeat}: {our_rates[-1]:.2f} of {bare_rates[-1]:.2f} features/s")
    shares = [ours / bare for ours, bare in zip(our_rates, bare_rates)]
    return [
        {
            "case": f"{config.teachers['teacher'].model} {config.workers.precision}, "
            f"{VIEWS} views x grids {', '.join(map(str, GRIDS))}, {images} images",
            "share": round(statistics.median(shares), 4),
            "shares": [round(share, 4) for share in shares],
            "extract_features_per_s": round(statistics.median(our_rates), 2),
            "bare_features_per_s": round(statistics.median(bare_rates), 2),
            "decode_thread_s_per_image": round(statistics.median(decode_seconds), 4),
        }
    ]


def _config(cache: str, source: str, options: BenchOptions, gpu: bool) -> ExtractConfig:
    model = GPU_MODEL if gpu else CPU_MODEL
    precision = options.precision or ("bfloat16" if gpu else "float32")
    return ExtractConfig.model_validate(
        {
            "cache": cache,
            "images": {"source": source, "limit": options.limit},
            "views": {"per_image": VIEWS},
            "grids": GRIDS,
            "teachers": {"teacher": {"library": "timm", "model": model, "weights": "random:0"}},
            "calibration_images": 1,
            "workers": {"batch_size": BATCH, "precision": precision},
        }
    )


def _bare_rate(config: ExtractConfig, processes: int) -> float:
    """Features per second of the forwards alone, from the first start to the last end."""
    context = get_context("spawn")
    barrier = context.Barrier(processes)
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, context, _share_barrier, (barrier,)) as pool:
        spans = list(pool.map(_bare_loop, [(config, threads)] * processes))
    seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    return processes * BATCH * len(GRIDS) / seconds


_barriers: list[Barrier] = []


def _share_barrier(barrier: Barrier) -> None:
    """A barrier reaches another process only as it starts."""
    _barriers.append(barrier)


def _bare_loop(task: tuple[ExtractConfig, int]) -> tuple[float, float]:
    """Forward one ready batch at each grid; (start, end) of the machine's monotonic clock."""
    config, threads = task
    torch.set_num_threads(threads)
    device = pick_device().value
    teacher = load_teacher(config.teachers["teacher"], config.workers.precision, device)
    noise = np.random.default_rng(0)
    batches = []
    for grid in GRIDS:
        side = grid * teacher.record.patch_pixels
        squares = noise.integers(0, 256, (BATCH, side, side, 3), np.uint8)
        batches.append(teacher.tensor(list(squares)))
        teacher.forward(batches[-1][:1])
    _barriers[0].wait()
    start = time.monotonic()
    for batch in batches:
        teacher.forward(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return start, time.monotonic()
