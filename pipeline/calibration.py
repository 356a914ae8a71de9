"""Calibrating teachers: which images they are measured on, and the record of what was measured."""

import uuid
from collections.abc import Sequence

import numpy as np

from infra.codec.rotation import Float64s
from infra.store import ObjectStore
from pipeline.codec_fit import Directions
from pipeline.job import CalibrationPart, CalibrationTask, TeacherTask
from pipeline.listing import Standing
from pipeline.moments import MomentsMeter, axes_parquet, covariance_parquet
from pipeline.sets import create
from schemas import layout
from schemas.errors import ConfigError, NotFound
from schemas.measured import Calibration, Shape
from schemas.names import BLOCK_ROWS
from schemas.records import ObjectRecord
from schemas.sealed import digest, seal
from schemas.spans import span_count, span_of


def uncalibrated(store: ObjectStore, teachers: Sequence[TeacherTask]) -> list[tuple[int, int]]:
    """(index of teacher, grid) of what has no calibration yet."""
    return [
        (index, grid)
        for index, teacher in enumerate(teachers)
        for grid in teacher.grids
        if not _exists(store, layout.calibration(teacher.record.fingerprint12, grid))
    ]


def calibration_tasks(
    pairs: Sequence[tuple[int, int]], standing: Sequence[Standing], images: int
) -> list[CalibrationTask]:
    """The first `images` images that count, in the plan's order, cut into stretches so that the
    sums never depend on the workers."""
    tasks: list[CalibrationTask] = []
    left = images
    for generation in standing:
        if generation.plan.first_view:
            continue  # images that an earlier generation has as well
        for number in range(span_count(generation.plan)):
            span = span_of(generation.plan, number)
            for first in range(0, span.images, BLOCK_ROWS):
                start = span.first_image + first
                present = generation.present[start : start + min(BLOCK_ROWS, span.images - first)]
                if not left:
                    return tasks
                if present.any():
                    count = int((np.cumsum(present) <= left).sum())
                    left -= int(present[:count].sum())
                    place = (generation.plan.generation, number, first, count)
                    tasks.append(
                        CalibrationTask(tuple(pairs), *place, generation.excused(start, count))
                    )
    return tasks


class Calibrations:
    """Merges what the tasks measured in the order of the images, whichever ends first."""

    def __init__(
        self,
        teachers: Sequence[TeacherTask],
        pairs: Sequence[tuple[int, int]],
        tasks: Sequence[CalibrationTask],
    ) -> None:
        self._pairs = [(teachers[index].record, grid) for index, grid in pairs]
        self._waiting = list(tasks)
        self._parts: dict[CalibrationTask, list[CalibrationPart]] = {}
        self._rows = [0] * len(pairs)
        self._tokens = [MomentsMeter(record.patch_width) for record, _ in self._pairs]
        self._cls = [
            None if record.cls_width is None else MomentsMeter(record.cls_width)
            for record, _ in self._pairs
        ]

    def add(self, task: CalibrationTask, parts: list[CalibrationPart]) -> None:
        """Take in a task's part for each pair. Parts that came early are held back."""
        self._parts[task] = parts
        while self._waiting and self._waiting[0] in self._parts:
            for place, part in enumerate(self._parts.pop(self._waiting.pop(0))):
                self._rows[place] += part.rows
                self._tokens[place].merge(part.tokens)
                cls = self._cls[place]
                if cls is not None and part.cls is not None:
                    cls.merge(part.cls)

    def store(self, store: ObjectStore, images: int) -> None:
        """Write each pair's covariances, then, create-only, its calibration.

        Raises:
            ConfigError: there was nothing to measure.
        """
        for (record, grid), rows, tokens, cls in zip(
            self._pairs, self._rows, self._tokens, self._cls
        ):
            place = (record.fingerprint12, grid)
            if tokens.spread.count == 0:
                raise ConfigError(
                    f"calibrating {record.model} at grid {grid}: none of {images} pictures gives "
                    "features to measure; look at the data set, and begin with pictures that can "
                    "be read"
                )
            calibration = Calibration(
                images=images,
                rows=rows,
                tokens=tokens.moments(),
                cls=None if cls is None else cls.moments(),
                tokens_covariance=_store_covariance(store, place, "tokens", tokens),
                cls_covariance=None if cls is None else _store_covariance(store, place, "cls", cls),
                tokens_shape=_store_shape(store, place, tokens.shapes()),
            )
            create(store, layout.calibration(*place), seal(calibration))


def _store_covariance(
    store: ObjectStore, place: tuple[str, int], vector: str, meter: MomentsMeter
) -> ObjectRecord:
    data = covariance_parquet(meter.covariance())
    return _store(store, layout.covariance(*place, vector, uuid.uuid4().hex[:12]), data)


def _store_shape(store: ObjectStore, place: tuple[str, int], shapes: Float64s) -> Shape:
    """The axes are stored because no two machines find them to the same bits."""
    directions = Directions.of(shapes)
    axes = axes_parquet(directions.principal, directions.equalised)
    return directions.record(_store(store, layout.axes(*place, uuid.uuid4().hex[:12]), axes))


def _store(store: ObjectStore, key: str, data: bytes) -> ObjectRecord:
    store.create(key, data)
    return ObjectRecord(key=key, size=len(data), sha256=digest(data))


def _exists(store: ObjectStore, key: str) -> bool:
    try:
        return store.size(key) > 0
    except NotFound:
        return False
