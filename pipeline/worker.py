"""What one worker does: pulls a span, decodes its images once, runs every teacher at every grid,
and writes whole shards. Plain Python; pipeline/pool.py makes it a Ray actor."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from infra.devices import synchronise
from infra.pixels.decode import silence_pillow
from infra.pixels.views import Pixels
from infra.plan_reader import FEW_GROUPS, PlanReader
from infra.redact import printable
from infra.sources import open_source
from infra.store import open_store
from pipeline.batches import Batches
from pipeline.derive import derive
from pipeline.encode import encode
from pipeline.job import (
    CalibrationPart,
    CalibrationTask,
    FeatureSet,
    Job,
    ShardTask,
    SpanReport,
    SpanTask,
)
from pipeline.moments import MomentsMeter
from pipeline.orders import orders_of_sample, orders_of_task
from pipeline.pictures import DecodeAhead, Order, Picture
from pipeline.probe import guard
from pipeline.shard_buffer import RowNote, ShardBuffer
from pipeline.tally import Tally
from pipeline.teachers import LoadedTeacher, load_teacher
from pipeline.writer import finish
from schemas.errors import SourceError, TeacherError
from schemas.names import BLOCK_ROWS
from schemas.records import PlanCommit, ShardCommit
from schemas.spans import Span, span_of

WRITES_IN_FLIGHT = 2


class Worker:
    """Holds the teachers on one device; `load` comes first."""

    def __init__(self, job: Job) -> None:
        silence_pillow()
        if job.forward_threads:
            torch.set_num_threads(job.forward_threads)
        self._job = job
        self._store = open_store(job.cache, job.store)
        self._plans = [PlanReader(self._store, commit, FEW_GROUPS) for commit in job.generations]
        # A batch never crosses a chunk, so what is in it does not depend on what is missing.
        chunk = max(BLOCK_ROWS, 1 << (job.batch_size.bit_length() - 1))
        # Each picture is held to its own generation's limits when it is decoded.
        max_bytes = max((commit.limits.max_bytes for commit in job.generations), default=1)
        source = open_source(job.source, job.columns, max_bytes)
        self._source = source.url
        self._decoder = DecodeAhead(source, job.decode_threads, chunk)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._sets: tuple[FeatureSet, ...] = ()
        self._teachers: dict[str, LoadedTeacher] = {}
        self._guarded: set[tuple[str, int]] = set()
        self._batches = Batches(job.batch_size)

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
        """Moments of each (teacher, grid) over a stretch of images, each in one view.

        Raises:
            TeacherError: a teacher's features are others here than where its set began.
        """
        self._guard({(self._job.teachers[teacher].name, grid) for teacher, grid in task.pairs})
        views = self._plans[task.generation].commit.views
        if upcoming is not None:
            following = self._plans[upcoming.generation].commit.views
            self._decoder.start(upcoming, following, self._sample(upcoming))
        meters = [self._meters(teacher) for teacher, _ in task.pairs]
        rows = [0] * len(task.pairs)
        for _, pictures in self._decoder.chunks(task, views, self._sample(task)):
            for index, (teacher, grid) in enumerate(task.pairs):
                told = self._job.teachers[teacher]
                good = [
                    square.pixels
                    for picture in pictures.values()
                    for (_, side), square in picture.squares.items()
                    if side == told.record.pixels(grid)
                ]
                rows[index] += len(good)
                tokens_meter, cls_meter = meters[index]
                for cls, tokens in self._batches(self._teachers[told.name], good):
                    tokens_meter.add(tokens)
                    if cls is not None and cls_meter is not None:
                        cls_meter.add(cls)
        return [
            CalibrationPart(count, tokens.spread, None if cls is None else cls.spread)
            for count, (tokens, cls) in zip(rows, meters)
        ]

    def process(self, task: SpanTask, upcoming: SpanTask | None) -> SpanReport:
        """Compute and commit what is missing of a span; begin to decode the next one.

        Raises:
            TeacherError: as `calibrate`. SourceError: the data set is not there any more.
        """
        computed = [shard for shard in task.shards if not shard.sources]
        sets = [self._sets[shard.feature_set] for shard in computed]
        self._guard({(feature_set.teacher, feature_set.path.grid) for feature_set in sets})
        plan = self._job.generations[task.generation]
        span = span_of(plan, task.span)
        open_shards = [self._buffer(shard) for shard in computed]
        tally = Tally()
        pending: list[Future[tuple[ShardCommit, int]]] = []
        for buffer in [self._buffer(shard) for shard in task.shards if shard.sources]:
            derive(buffer, self._store, self._job.device)
            self._finish(buffer, pending)
        last_chunk = (span.images - 1) // self._decoder.chunk_images
        chunks = self._decoder.chunks(task, plan.views, self._orders(task))
        for number in range(last_chunk + 1):
            start = time.perf_counter()
            first, pictures = next(chunks)
            tally.wait_seconds += time.perf_counter() - start
            if number == last_chunk and upcoming is not None:
                following = self._job.generations[upcoming.generation].views
                self._decoder.start(upcoming, following, self._orders(upcoming))
            tally.decodes += sum(picture.image_sha256 is not None for picture in pictures.values())
            tally.decode_seconds += sum(picture.seconds for picture in pictures.values())
            self._refuse_lost_data_set(list(pictures.values()))
            for buffer in open_shards:
                self._fill(buffer, plan, span, first, pictures, tally)
            for buffer in [buffer for buffer in open_shards if buffer.complete]:
                open_shards.remove(buffer)
                self._finish(buffer, pending)
        return tally.report([future.result() for future in pending], self._batches.rows)

    def _finish(self, buffer: ShardBuffer, pending: list[Future[tuple[ShardCommit, int]]]) -> None:
        """Begin to write a shard; waits while too many are being written."""
        pending.append(self._writer.submit(finish, buffer, self._store))
        if len(pending) > WRITES_IN_FLIGHT:
            pending[-1 - WRITES_IN_FLIGHT].result()

    def _guard(self, pairs: set[tuple[str, int]]) -> None:
        """Before anything is added to the sets of these (teacher, grid)."""
        for name, grid in sorted(pairs - self._guarded):
            guard(self._store, self._teachers[name], grid)
            self._guarded.add((name, grid))

    def _refuse_lost_data_set(self, pictures: list[Picture]) -> None:
        tried = [picture for picture in pictures if picture.reason is None or picture.seconds]
        if tried and all(picture.missing for picture in tried):
            raise SourceError(
                f"images {self._source}: none of {len(tried)} planned pictures is there, such "
                f"as {printable(tried[0].key)}; bring the data set back and run again"
            )

    def _fill(
        self,
        buffer: ShardBuffer,
        plan: PlanCommit,
        span: Span,
        first_image: int,
        pictures: dict[int, Picture],
        tally: Tally,
    ) -> None:
        """Put a chunk's rows into a shard: batches lie within the chunk, the view and the shard."""
        task, feature_set = buffer.task, buffer.set
        end_image = min(first_image + self._decoder.chunk_images, span.images)
        for number in range(plan.view_count):
            view = plan.first_view + number
            begin = max(task.first_row, span.row(number, first_image))
            end = min(task.first_row + task.rows, span.row(number, end_image - 1) + 1)
            good: list[tuple[int, RowNote, Pixels]] = []
            for row in range(begin, end):
                picture = pictures[row - span.row(number, 0)]
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
            self._compute(buffer, good, tally)
            tally.forwards += len(good)

    def _compute(
        self, buffer: ShardBuffer, good: list[tuple[int, RowNote, Pixels]], tally: Tally
    ) -> None:
        """Forward and encode rows of one view, and put them into their shard."""
        feature_set = buffer.set
        label = f"{feature_set.teacher} g{feature_set.path.grid}"
        rows = iter(good)
        start = time.perf_counter()
        teacher = self._teachers[feature_set.teacher]
        for cls, tokens in self._batches(teacher, [pixels for _, _, pixels in good]):
            synchronise(self._job.device)
            forwarded = time.perf_counter()
            tally.forward_seconds[label] += forwarded - start
            encoded = encode(feature_set.codec, cls, tokens)
            # The batch first: zip would take a row that it then has no place for.
            for index, (row, note, _) in zip(range(len(tokens)), rows):
                stored_cls = None if encoded.cls is None else encoded.cls[index]
                buffer.put_encoded(row, note, encoded, index, stored_cls)
            start = time.perf_counter()
            tally.encode_seconds += start - forwarded

    def _orders(self, task: SpanTask) -> list[Order]:
        return orders_of_task(self._plans[task.generation], task, self._sets)

    def _sample(self, task: CalibrationTask) -> list[Order]:
        sides = {self._job.teachers[teacher].record.pixels(grid) for teacher, grid in task.pairs}
        return orders_of_sample(self._plans[task.generation], task, sides)

    def _meters(self, teacher: int) -> tuple[MomentsMeter, MomentsMeter | None]:
        record = self._job.teachers[teacher].record
        return MomentsMeter(record.patch_width), (
            None if record.cls_width is None else MomentsMeter(record.cls_width)
        )

    def _buffer(self, shard: ShardTask) -> ShardBuffer:
        first_row = self._job.generations[shard.generation].first_row
        return ShardBuffer(shard, self._sets[shard.feature_set], first_row)
