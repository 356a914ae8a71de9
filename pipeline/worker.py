"""What one worker does: pulls a span, decodes its images once, runs every teacher at every grid,
and writes whole shards. Plain Python; pipeline/pool.py makes it a Ray actor."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.catalog import PlanReader
from infra.pixels.decode import silence_pillow
from infra.pixels.views import Pixels
from infra.sources import open_source
from infra.store import open_store
from pipeline.calibration import MomentsMeter
from pipeline.job import (
    CalibrationPart,
    CalibrationTask,
    FeatureSet,
    Job,
    ShardTask,
    SpanReport,
    SpanTask,
)
from pipeline.pictures import DecodeAhead, Order, Picture, orders_of_span
from pipeline.spans import Span, span_of
from pipeline.teachers import LoadedTeacher, load_teacher
from pipeline.writer import RowNote, ShardBuffer
from schemas.errors import SourceError, TeacherError
from schemas.names import BLOCK_ROWS
from schemas.records import ShardCommit

WRITES_IN_FLIGHT = 2


class Worker:
    """Holds the teachers on one device; `load` comes first."""

    def __init__(self, job: Job) -> None:
        silence_pillow()
        if job.forward_threads:
            torch.set_num_threads(job.forward_threads)
        self._job = job
        self._store = open_store(job.cache)
        self._plans = [PlanReader(self._store, commit) for commit in job.generations]
        # A batch never crosses a chunk, so what is in it does not depend on what is missing.
        chunk = max(BLOCK_ROWS, 1 << (job.batch_size.bit_length() - 1))
        source = open_source(job.source, job.columns)
        self._decoder = DecodeAhead(source, job.decode_threads, chunk)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._sets: tuple[FeatureSet, ...] = ()
        self._teachers: dict[str, LoadedTeacher] = {}

    def load(self) -> None:
        """Load the teachers. Raises TeacherError where one is another than the driver saw."""
        device = self._job.device
        for task in self._job.teachers:
            loaded = load_teacher(task.teacher, task.precision, device)
            if loaded.record.fingerprint != task.record.fingerprint:
                raise TeacherError(
                    f"teacher {task.name}: a worker loads {loaded.record.fingerprint12}, the "
                    f"driver {task.record.fingerprint12}; give all nodes the same weights and pins"
                )
            self._teachers[task.name] = loaded

    def use_sets(self, sets: tuple[FeatureSet, ...]) -> None:
        """What `process` will write; known once the teachers are calibrated."""
        self._sets = sets

    def calibrate(
        self, task: CalibrationTask, upcoming: CalibrationTask | None
    ) -> list[CalibrationPart]:
        """Moments of each (teacher, grid) over a stretch of images, each in one view."""
        if upcoming is not None:
            self._decoder.start(upcoming, self._plans[0].commit.views, self._sample(upcoming))
        orders = self._sample(task)
        meters = [self._meters(teacher) for teacher, _ in task.pairs]
        rows = [0] * len(task.pairs)
        for _, pictures in self._decoder.chunks(task, self._plans[0].commit.views, orders):
            for index, (teacher, grid) in enumerate(task.pairs):
                loaded = self._job.teachers[teacher]
                good = [
                    square.pixels
                    for picture in pictures.values()
                    for (_, side), square in picture.squares.items()
                    if side == loaded.pixels(grid)
                ]
                rows[index] += len(good)
                tokens_meter, cls_meter = meters[index]
                for cls, tokens in self._forward(self._teachers[loaded.name], good):
                    tokens_meter.add(tokens)
                    if cls is not None and cls_meter is not None:
                        cls_meter.add(cls)
        return [
            CalibrationPart(count, tokens.moments(), None if cls is None else cls.moments())
            for count, (tokens, cls) in zip(rows, meters)
        ]

    def process(self, task: SpanTask, upcoming: SpanTask | None) -> SpanReport:
        """Compute and commit what is missing of a span; begin to decode the next one."""
        views = self._job.generations[task.generation].views
        span, orders = self._orders(task)
        open_shards = [self._buffer(shard) for shard in task.shards]
        tally = _Tally()
        pending: list[Future[tuple[ShardCommit, int]]] = []
        last_chunk = (span.images - 1) // self._decoder.chunk_images
        chunks = self._decoder.chunks(task, views, orders)
        for number in range(last_chunk + 1):
            start = time.perf_counter()
            first, pictures = next(chunks)
            tally.wait_seconds += time.perf_counter() - start
            if number == last_chunk and upcoming is not None:
                following = self._job.generations[upcoming.generation].views
                self._decoder.start(upcoming, following, self._orders(upcoming)[1])
            tally.decode_seconds += sum(picture.seconds for picture in pictures.values())
            if pictures and all(picture.missing for picture in pictures.values()):
                raise SourceError(
                    f"images {self._job.source}: none of {len(pictures)} planned pictures is "
                    f"there, such as {next(iter(pictures.values())).key}; bring the data set back "
                    "and run again"
                )
            for buffer in open_shards:
                self._fill(buffer, views.per_image, span, first, pictures, tally)
            for buffer in [buffer for buffer in open_shards if buffer.complete]:
                open_shards.remove(buffer)
                pending.append(self._writer.submit(buffer.commit, self._store))
                if len(pending) > WRITES_IN_FLIGHT:
                    pending[-1 - WRITES_IN_FLIGHT].result()
        return tally.report([future.result() for future in pending])

    def _fill(
        self,
        buffer: ShardBuffer,
        per_image: int,
        span: Span,
        first_image: int,
        pictures: dict[int, Picture],
        tally: "_Tally",
    ) -> None:
        """Put a chunk's rows into a shard: batches lie within the chunk, the view and the shard."""
        task, feature_set = buffer.task, buffer.set
        end_image = min(first_image + self._decoder.chunk_images, span.images)
        for view in range(per_image):
            begin = max(task.first_row, span.row(view, first_image))
            end = min(task.first_row + task.rows, span.row(view, end_image - 1) + 1)
            good: list[tuple[int, RowNote, Pixels]] = []
            for row in range(begin, end):
                picture = pictures[row - span.row(view, 0)]
                note = RowNote(
                    picture.key,
                    view,
                    picture.reason,
                    picture.image_sha256,
                    picture.width,
                    picture.height,
                )
                if picture.reason is not None:
                    buffer.put(row, note)
                    continue
                square = picture.squares[view, feature_set.pixels]
                note.pixels_sha256 = square.sha256
                good.append((row, note, square.pixels))
            start = time.perf_counter()
            self._encode(buffer, good)
            tally.forward_seconds += time.perf_counter() - start
            tally.forwards += len(good)

    def _encode(self, buffer: ShardBuffer, good: list[tuple[int, RowNote, Pixels]]) -> None:
        """Forward, standardise, round to float16 and note what the rounding cost."""
        feature_set = buffer.set
        teacher = self._teachers[feature_set.teacher]
        codec = feature_set.codec
        done = 0
        for cls, tokens in self._forward(teacher, [pixels for _, _, pixels in good]):
            exact = _standardise(tokens, codec.tokens.mean, codec.tokens.std)
            stored = exact.half()
            cosine, rms = _rounding_error(exact, stored)
            stored_cls = None
            finite = stored.isfinite().flatten(1).all(1)
            if cls is not None and codec.cls is not None:
                stored_cls = _standardise(cls, codec.cls.mean, codec.cls.std).half()
                finite &= stored_cls.isfinite().all(1)
            rows = _numpy(stored)
            cls_rows = None if stored_cls is None else _numpy(stored_cls)
            for index in range(len(rows)):
                row, note, _ = good[done + index]
                if not finite[index]:
                    note.reason = "the teacher's features are not finite in float16"
                    buffer.put(row, note)
                    continue
                note.cosine, note.relative_rms = float(cosine[index]), float(rms[index])
                buffer.put(row, note, rows[index], None if cls_rows is None else cls_rows[index])
            done += len(rows)

    def _forward(
        self, teacher: LoadedTeacher, squares: Sequence[Pixels]
    ) -> Iterator[tuple[Tensor | None, Tensor]]:
        for first in range(0, len(squares), self._job.batch_size):
            yield teacher(list(squares[first : first + self._job.batch_size]))

    def _orders(self, task: SpanTask) -> tuple[Span, list[Order]]:
        plan = self._plans[task.generation]
        span = span_of(plan.commit, task.span)
        wanted = {
            (row, (row - span.first_row) // span.images, self._sets[shard.feature_set].pixels)
            for shard in task.shards
            for row in range(shard.first_row, shard.first_row + shard.rows)
        }
        return span, orders_of_span(plan, span, sorted(wanted))

    def _sample(self, task: CalibrationTask) -> list[Order]:
        """One order an image; images take turns in the views, so that crops count as well."""
        plan = self._plans[0]
        sides = {self._job.teachers[teacher].pixels(grid) for teacher, grid in task.pairs}
        number, inside = divmod(task.first_image, plan.commit.span_images)
        span = span_of(plan.commit, number)
        wanted = []
        for image in range(inside, inside + task.images):
            view = (task.first_image + image - inside) % plan.commit.views.per_image
            wanted += [(span.row(view, image), view, side) for side in sides]
        return orders_of_span(plan, span, wanted)[inside : inside + task.images]

    def _meters(self, teacher: int) -> tuple[MomentsMeter, MomentsMeter | None]:
        record = self._job.teachers[teacher].record
        return MomentsMeter(record.patch_width), (
            None if record.cls_width is None else MomentsMeter(record.cls_width)
        )

    def _buffer(self, shard: ShardTask) -> ShardBuffer:
        first_row = self._job.generations[shard.generation].first_row
        return ShardBuffer(shard, self._sets[shard.feature_set], first_row)


class _Tally:
    """Counts of one span."""

    def __init__(self) -> None:
        self.forwards = 0
        self.decode_seconds = self.wait_seconds = self.forward_seconds = 0.0

    def report(self, results: list[tuple[ShardCommit, int]]) -> SpanReport:
        written = sum(1 for _, size in results if size)
        return SpanReport(
            commits=tuple(commit for commit, _ in results),
            written=written,
            reused=len(results) - written,
            forwards=self.forwards,
            bytes_written=sum(size for _, size in results),
            decode_seconds=self.decode_seconds,
            wait_seconds=self.wait_seconds,
            forward_seconds=self.forward_seconds,
        )


def _standardise(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    options = {"dtype": torch.float32, "device": values.device}
    return (values - torch.tensor(mean, **options)) / torch.tensor(std, **options)  # type: ignore[arg-type]


def _rounding_error(exact: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine over a row's tokens, and relative root mean square over the row; on the CPU."""
    kept = stored.float()
    cosine = torch.nn.functional.cosine_similarity(exact, kept, dim=-1).mean(dim=1)
    difference, size = (exact - kept).flatten(1).norm(dim=1), exact.flatten(1).norm(dim=1)
    return cosine.cpu(), (difference / size.clamp_min(1e-12)).cpu()


def _numpy(values: Tensor) -> npt.NDArray[np.float16]:
    return np.asarray(values.cpu().numpy())
