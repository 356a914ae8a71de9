"""Feature sets: what is calibrated, what exists, what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from infra.codec.codec import open_codec
from infra.store import ObjectStore
from pipeline.derive import Sources, covering
from pipeline.job import Damaged, FeatureSet, ShardTask, SpanTask, TeacherTask
from pipeline.listing import Standing
from pipeline.publish import Place
from schemas import layout, shard
from schemas.codec import codec_folder, codec_record
from schemas.errors import AlreadyExists, DamageError
from schemas.extract_config import ExtractConfig
from schemas.measured import Calibration
from schemas.names import BLOCK_ROWS
from schemas.records import PlanCommit
from schemas.sealed import digest, seal, unseal
from schemas.spans import span_of

MAX_SHARD_BYTES = 64 << 20
NO_SOURCES: Sources = {}
NONE_DAMAGED: Mapping[Place, Damaged] = {}


def feature_sets(
    store: ObjectStore, config: ExtractConfig, teachers: Sequence[TeacherTask]
) -> tuple[FeatureSet, ...]:
    """The job's sets; each one's teacher.json and codec.json are written if they are not there."""
    sets = []
    for teacher in teachers:
        create(store, layout.teacher(teacher.record.fingerprint12), seal(teacher.record))
        for grid in teacher.grids:
            key = layout.calibration(teacher.record.fingerprint12, grid)
            calibration = unseal(store.get(key), Calibration, key)
            codec = codec_record(config.codec_of(teacher.name), calibration)
            path = layout.SetPath(teacher.record.fingerprint12, grid, codec_folder(codec))
            sealed = seal(codec)
            if create(store, path.codec_json, sealed) != sealed:
                raise DamageError(
                    f"{store.url}: {path.codec_json} is not what {key} gives: one of them is "
                    "damaged; extract into a new folder",
                    key=path.codec_json,
                )
            sets.append(
                FeatureSet(
                    teacher=teacher.name,
                    path=path,
                    record=teacher.record,
                    codec=open_codec(store, codec),
                    codec_sha256=digest(sealed),
                    min_cosine=config.codec_of(teacher.name).min_cosine,
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
    form = feature_set.row_form
    rows = rows_per_shard(form.bytes, plan.span_images, asked)
    found = create(store, key, shard.array_metadata(plan.rows, form, rows))
    try:
        sound = found == shard.array_metadata(plan.rows, form, shard.rows_per_shard_of(found))
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise DamageError(f"{store.url}: {key} is damaged; extract into a new folder", key=key)
    return found


@dataclass(frozen=True)
class Missing:
    """Of one generation, in every set."""

    tasks: list[SpanTask]
    committed: list[tuple[FeatureSet, PlanCommit, set[int]]]
    """What is there and whole."""


def missing_of(
    store: ObjectStore,
    sets: Sequence[FeatureSet],
    standing: Standing,
    rows_asked: int | str,
    damaged: Mapping[Place, Damaged] = NONE_DAMAGED,
    sources: Sources = NO_SOURCES,
) -> Missing:
    """What of a generation is to be made; its arrays are created where they are not there."""
    plan = standing.plan
    missing: list[tuple[int, ShardTask]] = []
    committed = []
    for index, feature_set in enumerate(sets):
        array = frozen_array(store, feature_set, plan, rows_asked)
        here = {
            shard: was
            for (path, number, shard), was in damaged.items()
            if (path, number) == (str(feature_set.path), plan.generation)
        }
        found = committed_shards(store, feature_set.path, plan.generation) - here.keys()
        committed.append((feature_set, plan, found))
        exact = sources.get((str(feature_set.path), plan.generation), ())
        missing += [
            (span, replace(task, sources=covering(exact, task.first_row, task.rows)))
            for span, task in shard_tasks(index, array, standing, found, here)
        ]
    return Missing(span_tasks(standing, missing), committed)


def committed_shards(store: ObjectStore, path: layout.SetPath, generation: int) -> set[int]:
    """Numbers of the shards that a listing shows; what it misses, the create-only put will find."""
    return layout.numbers(store.keys(path.commits(generation)))


def shard_tasks(
    index: int,
    array: bytes,
    standing: Standing,
    committed: set[int],
    damaged: Mapping[int, Damaged],
) -> Iterator[tuple[int, ShardTask]]:
    """(span, task) of every shard of a set's generation that is asked for and not committed, or
    that is damaged."""
    plan = standing.plan
    rows_of_shard, array_sha256 = shard.rows_per_shard_of(array), digest(array)
    rows_of_span = plan.span_images * plan.view_count
    for number in range(-(-plan.rows // rows_of_shard)):
        first = number * rows_of_shard
        rows = min(rows_of_shard, plan.rows - first)
        is_there = number in committed or not standing.asks(np.arange(first, first + rows)).any()
        if is_there and number not in damaged:
            continue
        task = ShardTask(
            feature_set=index,
            generation=plan.generation,
            shard=number,
            first_row=first,
            rows=rows,
            rows_per_shard=rows_of_shard,
            array_sha256=array_sha256,
            damaged=damaged.get(number),
        )
        yield first // rows_of_span, task


def span_tasks(standing: Standing, tasks: Sequence[tuple[int, ShardTask]]) -> list[SpanTask]:
    """The shards of a generation, by the span that holds them."""
    by_span: dict[int, list[ShardTask]] = {}
    for number, task in tasks:
        by_span.setdefault(number, []).append(task)
    found = []
    for number in sorted(by_span):
        span = span_of(standing.plan, number)
        end = span.first_row + span.images * standing.plan.view_count
        assert all(task.first_row + task.rows <= end for task in by_span[number])
        excused = standing.excused(span.first_image, span.images)
        found.append(SpanTask(standing.plan.generation, number, tuple(by_span[number]), excused))
    return found


def create(store: ObjectStore, key: str, data: bytes) -> bytes:
    """Create an object unless it is there; returns what lies there."""
    try:
        store.create(key, data)
    except AlreadyExists:
        return store.get(key)
    return data
