"""How fast this machine is: teachers timed on full batches of real pictures, and the pictures."""

import itertools
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from infra.devices import pick_device, synchronise
from infra.pixels.views import Pixels, draw
from infra.sources import Source
from infra.store import MemoryStore
from pipeline.encode import Encoded, encode
from pipeline.job import FeatureSet, ShardTask
from pipeline.pictures import Order, make_picture
from pipeline.shard_buffer import RowNote, ShardBuffer
from pipeline.teachers import LoadedTeacher
from pipeline.writer import commit
from schemas.extract_config import Views, Workers

SAMPLE_IMAGES = 8
TRIED_IMAGES = 64
"""Pictures to look at for so many sound ones."""
SAMPLE_VIEWS = 4
TIMED_SECONDS, TIMED_BATCHES = 2.0, 20
"""A teacher is timed until either is reached; the median batch counts."""


@dataclass(frozen=True)
class Machine:
    """What works side by side on a machine like this one."""

    device: str
    reason: str
    forwards: float
    """Forwards at a time, each as fast as one alone: GPUs; 1 on a CPU, whose cores one fills."""
    threads: int
    """Threads that read, decode and write at a time."""


@dataclass(frozen=True)
class TeacherPace:
    """A teacher at a grid, for one row."""

    forward: float
    """Seconds of the device."""
    encode: float
    """Seconds of the device."""
    write: float
    """Thread-seconds of checksums and tables, without the disk."""
    bytes: float
    """Stored: tokens, CLS vector and what belongs to them."""


@dataclass(frozen=True)
class PicturePace:
    """Thread-seconds."""

    read: float
    """Of reading and decoding a picture."""
    square: dict[int, float]
    """Of a view of it, by side in pixels."""


@dataclass(frozen=True)
class Sample:
    """Sound pictures of the data set."""

    squares: dict[int, list[Pixels]]
    """By side in pixels."""
    pace: PicturePace


def this_machine(workers: Workers) -> Machine:
    """What an extraction would use of this machine."""
    cores = os.cpu_count() or 1
    device, reason = pick_device()
    if workers.gpus == 0 or device == "cpu":
        reason = reason if device == "cpu" else "workers.gpus is 0"
        return Machine("cpu", f"{reason}; {cores} cores", 1, cores)
    gpus = torch.cuda.device_count()
    share = 1.0 if workers.gpus == "auto" else workers.gpus
    count = max(1, int(gpus / share)) if workers.count == "auto" else workers.count
    each = math.inf if workers.decode_threads == "auto" else workers.decode_threads
    used = min(gpus, count * share)
    return Machine(device, f"{used:g} of {reason}", used, int(min(cores, count * each)))


def sample_pictures(
    source: Source, views: Views, keys: Sequence[str], sides: Sequence[int]
) -> Sample | None:
    """Time the first sound ones of the pictures; None if there is none."""
    drawn = range(min(views.per_image, SAMPLE_VIEWS))
    found, read, by_side = 0, 0.0, dict.fromkeys(sides, 0.0)
    squares: dict[int, list[Pixels]] = {side: [] for side in sides}
    for key in keys[:TRIED_IMAGES]:
        bare = Order(key, {}, ())
        if make_picture(source, views, bare).reason is not None:
            continue
        alone = make_picture(source, views, bare).seconds
        draws = {view: draw(key, view, views) for view in drawn}
        for side in sides:
            order = Order(key, draws, tuple((view, side) for view in drawn))
            picture = make_picture(source, views, order)
            by_side[side] += max(0.0, picture.seconds - alone) / len(drawn)
            squares[side] += [square.pixels for square in picture.squares.values()]
        found += 1
        read += alone
        if found == SAMPLE_IMAGES:
            break
    if not found:
        return None
    pace = PicturePace(read / found, {side: seconds / found for side, seconds in by_side.items()})
    return Sample(squares, pace)


def time_teacher(
    loaded: LoadedTeacher,
    feature_set: FeatureSet,
    squares: Sequence[Pixels],
    batch_rows: int,
    names: Sequence[str],
    shard_rows: int,
) -> TeacherPace:
    """Time a teacher at a grid, and what is done with its features.

    Args:
        squares: of the size that it sees, repeated to `batch_rows`, a full batch.
        names: keys of pictures, repeated to `shard_rows`, a full shard.
    """
    batch = list(itertools.islice(itertools.cycle(squares), batch_rows))
    # A GPU tries kernels at the first batch of a size; a CPU has only to load the code.
    loaded(batch if loaded.device == "cuda" else batch[:1])
    synchronise(loaded.device)
    forwards: list[float] = []
    encodings: list[float] = []
    while len(forwards) < TIMED_BATCHES and sum(forwards) < TIMED_SECONDS:
        start = time.perf_counter()
        cls, tokens = loaded(batch)
        synchronise(loaded.device)
        forwarded = time.perf_counter()
        encoded = encode(feature_set.codec, cls, tokens)
        forwards.append(forwarded - start)
        encodings.append(time.perf_counter() - forwarded)
    write, stored = _time_shard(feature_set, names, encoded, shard_rows)
    return TeacherPace(
        forward=statistics.median(forwards) / batch_rows,
        encode=statistics.median(encodings) / batch_rows,
        write=write / shard_rows,
        bytes=stored / shard_rows,
    )


def _time_shard(
    feature_set: FeatureSet, names: Sequence[str], encoded: Encoded, rows: int
) -> tuple[float, int]:
    """Write a full shard into memory; its seconds and bytes."""
    task = ShardTask(
        feature_set=0,
        generation=0,
        shard=0,
        first_row=0,
        rows=rows,
        rows_per_shard=rows,
        array_sha256="0" * 64,
    )
    # CLS vectors and digests that Parquet finds nothing repeated in, as in a real shard.
    vectors = np.random.default_rng(0).standard_normal((rows, feature_set.record.cls_width or 0))
    halves = vectors.astype(np.float16)
    start = time.perf_counter()
    buffer = ShardBuffer(task, feature_set, 0)
    for row in range(rows):
        index = row % len(encoded.tokens)
        note = RowNote(names[row % len(names)], 0, None, os.urandom(32), row, row, os.urandom(32))
        buffer.put_encoded(row, note, encoded, index, halves[row])
    _, written = commit(buffer, MemoryStore())
    return time.perf_counter() - start, written
