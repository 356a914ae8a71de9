"""Feature sets: what is calibrated, what exists, what is missing."""

from collections.abc import Iterator, Sequence

from infra.store import ObjectStore
from pipeline.calibration import MomentsMeter
from pipeline.job import (
    CalibrationPart,
    CalibrationTask,
    FeatureSet,
    ShardTask,
    SpanTask,
    TeacherTask,
)
from pipeline.spans import span_of
from schemas import layout, shard
from schemas.codec import codec_folder, codec_record
from schemas.errors import AlreadyExists, DamageError, NotFound
from schemas.extract_config import ExtractConfig
from schemas.names import BLOCK_ROWS
from schemas.records import Calibration, PlanCommit
from schemas.sealed import digest, seal, unseal

MAX_SHARD_BYTES = 64 << 20


def uncalibrated(store: ObjectStore, teachers: Sequence[TeacherTask]) -> list[tuple[int, int]]:
    """(index of teacher, grid) of what has no calibration yet."""
    return [
        (index, grid)
        for index, teacher in enumerate(teachers)
        for grid in teacher.grids
        if _exists(store, layout.calibration(teacher.record.fingerprint12, grid)) is False
    ]


def calibration_tasks(
    pairs: Sequence[tuple[int, int]], plan: PlanCommit, images: int
) -> list[CalibrationTask]:
    """The first `images` images of the plan, cut so that the sums never depend on the workers."""
    images = min(images, plan.images)
    return [
        CalibrationTask(tuple(pairs), first, min(BLOCK_ROWS, images - first))
        for first in range(0, images, BLOCK_ROWS)
    ]


def store_calibrations(
    store: ObjectStore,
    teachers: Sequence[TeacherTask],
    pairs: Sequence[tuple[int, int]],
    images: int,
    parts: Sequence[list[CalibrationPart]],
) -> None:
    """Merge what the tasks measured, in the order of the images, and write it create-only."""
    for place, (index, grid) in enumerate(pairs):
        record = teachers[index].record
        tokens = MomentsMeter(record.patch_width)
        cls = None if record.cls_width is None else MomentsMeter(record.cls_width)
        for part in parts:
            tokens.merge(part[place].tokens)
            if cls is not None and part[place].cls is not None:
                cls.merge(part[place].cls)  # type: ignore[arg-type]
        calibration = Calibration(
            images=images,
            rows=sum(part[place].rows for part in parts),
            tokens=tokens.moments(),
            cls=None if cls is None else cls.moments(),
        )
        _create(
            store, layout.calibration(teachers[index].record.fingerprint12, grid), seal(calibration)
        )


def feature_sets(
    store: ObjectStore, config: ExtractConfig, teachers: Sequence[TeacherTask]
) -> tuple[FeatureSet, ...]:
    """The job's sets; each one's teacher.json and codec.json are written if they are not there."""
    sets = []
    for teacher in teachers:
        _create(store, layout.teacher(teacher.record.fingerprint12), seal(teacher.record))
        for grid in teacher.grids:
            key = layout.calibration(teacher.record.fingerprint12, grid)
            calibration = unseal(store.get(key), Calibration, key)
            codec = codec_record(config.codec.tokens, calibration)
            path = layout.SetPath(teacher.record.fingerprint12, grid, codec_folder(codec))
            sealed = seal(codec)
            if _create(store, path.codec_json, sealed) != sealed:
                raise DamageError(
                    f"{store.url}: {path.codec_json} is not what {key} gives: one of them is "
                    "damaged; extract into a new folder",
                    key=path.codec_json,
                )
            sets.append(
                FeatureSet(
                    teacher=teacher.name,
                    path=path,
                    pixels=teacher.pixels(grid),
                    record=teacher.record,
                    codec=codec,
                    codec_sha256=digest(sealed),
                )
            )
    return tuple(sets)


def rows_per_shard(row_bytes: int, span_images: int, asked: int | str) -> int:
    """A power of two of rows, at least a block and at most a span's images."""
    if isinstance(asked, int):
        return min(asked, span_images)
    rows = BLOCK_ROWS
    while rows * 2 <= span_images and rows * 2 * row_bytes <= MAX_SHARD_BYTES:
        rows *= 2
    return rows


def frozen_array(
    store: ObjectStore, feature_set: FeatureSet, plan: PlanCommit, asked: int | str
) -> bytes:
    """Create the set's array for a generation, or find it; either way its shard size is frozen."""
    key = feature_set.path.array(plan.generation)
    rows = rows_per_shard(feature_set.row_bytes, plan.span_images, asked)
    channels = feature_set.record.patch_width
    shape = (plan.rows, feature_set.token_count, channels)
    found = _create(store, key, shard.array_metadata(*shape, rows))
    try:
        sound = found == shard.array_metadata(*shape, shard.rows_per_shard_of(found))
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise DamageError(f"{store.url}: {key} is damaged; extract into a new folder", key=key)
    return found


def committed_shards(store: ObjectStore, path: layout.SetPath, generation: int) -> set[int]:
    """Numbers of the shards that a listing shows; what it misses, the create-only put will find."""
    return layout.numbers(store.keys(path.commits(generation)))


def shard_tasks(
    index: int, array: bytes, plan: PlanCommit, committed: set[int]
) -> Iterator[tuple[int, ShardTask]]:
    """(span, task) of every shard of a set's generation that is not committed."""
    rows_of_shard, array_sha256 = shard.rows_per_shard_of(array), digest(array)
    rows_of_span = plan.span_images * plan.views.per_image
    for number in range(-(-plan.rows // rows_of_shard)):
        if number in committed:
            continue
        first = number * rows_of_shard
        task = ShardTask(
            feature_set=index,
            generation=plan.generation,
            shard=number,
            first_row=first,
            rows=min(rows_of_shard, plan.rows - first),
            rows_per_shard=rows_of_shard,
            array_sha256=array_sha256,
        )
        yield first // rows_of_span, task


def span_tasks(plan: PlanCommit, tasks: Sequence[tuple[int, ShardTask]]) -> list[SpanTask]:
    """The shards of a generation, by the span that holds them."""
    by_span: dict[int, list[ShardTask]] = {}
    for span, task in tasks:
        by_span.setdefault(span, []).append(task)
    for span, shards in by_span.items():
        end = span_of(plan, span).first_row + span_of(plan, span).images * plan.views.per_image
        assert all(task.first_row + task.rows <= end for task in shards)
    return [SpanTask(plan.generation, span, tuple(by_span[span])) for span in sorted(by_span)]


def _exists(store: ObjectStore, key: str) -> bool:
    try:
        return store.size(key) > 0
    except NotFound:
        return False


def _create(store: ObjectStore, key: str, data: bytes) -> bytes:
    """Create an object unless it is there; returns what lies there."""
    try:
        store.create(key, data)
    except AlreadyExists:
        return store.get(key)
    return data
