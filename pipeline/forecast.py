"""What an extraction would find to do: found by its own functions, and nothing is written.

What those functions create, a new cache included, stays in memory (pipeline/unwritten.py). Of the
plan's growth only the extent is made, not the rows with their draws.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from infra.codec.rotation import rounded
from infra.sources import Source
from infra.store import ObjectStore, open_store
from infra.terminal import Terminal
from pipeline.calibration import calibration_tasks, uncalibrated
from pipeline.derive import sources_of, tell_derived
from pipeline.difference import Lack, difference
from pipeline.growth import Growth, growths
from pipeline.job import CalibrationTask, FeatureSet, SpanTask, TeacherTask
from pipeline.listing import Listing, Standing, list_images, standings
from pipeline.moments import axes_parquet
from pipeline.planning import draft_generation, open_or_create_cache
from pipeline.sets import feature_sets, missing_of
from pipeline.unwritten import Unwritten
from schemas import layout
from schemas.extract_config import ExtractConfig
from schemas.measured import Calibration, Moments, Shape
from schemas.records import ObjectRecord, TeacherRecord
from schemas.sealed import digest, seal
from schemas.spans import images_and_views, rows_of, span_of

Pair = tuple[str, int]
"""A teacher's name and a grid."""


@dataclass
class Work:
    """An amount of work."""

    rows: Counter[Pair] = field(default_factory=Counter)
    """Forwards of each teacher at each grid."""
    pictures: int = 0
    """Read and decoded; a picture that several teachers see in one pass counts once."""
    squares: Counter[int] = field(default_factory=Counter)
    """Views cut out and resized, by side in pixels."""


@dataclass(frozen=True)
class Forecast:
    """What `extract` would do now."""

    listing: Listing
    standing: list[Standing]
    """Every generation, those that the plan would get included."""
    growths: list[Growth]
    """The last generations of `standing`."""
    lacks: list[Lack]
    sets: tuple[FeatureSet, ...]
    """Of those not calibrated yet, with a codec that stands for the one they will get."""
    left: Work
    """To be computed and stored."""
    calibration: Work
    """To be measured before that, and not stored."""
    whole: Work
    """Both, if nothing of what is asked for were there."""

    @property
    def rows(self) -> int:
        """Of the plan, as far as they are asked for."""
        return sum(generation.rows_asked for generation in self.standing)


def forecast(
    config: ExtractConfig, terminal: Terminal, source: Source, teachers: Sequence[TeacherTask]
) -> Forecast:
    """Look at cache and data set.

    Raises:
        ConfigError, CacheError, DamageError, SourceError: as an extraction would.
    """
    store = Unwritten(open_store(config.cache, config.store))
    catalog = open_or_create_cache(store, config)
    listing = list_images(source, bytes.fromhex(catalog.record.order_key), config.images.limit)
    standing = standings(catalog, catalog.generations(), listing, config, source)
    lacking = growths(catalog, standing, listing, config, source, terminal)
    standing = _grown(standing, lacking, listing, config, source)
    lacks = difference(catalog, config, teachers, standing)
    pairs = uncalibrated(store, teachers)
    samples = calibration_tasks(pairs, standing, config.calibration_images)
    for index, grid in pairs:
        record = teachers[index].record
        key = layout.calibration(record.fingerprint12, grid)
        store.create(key, seal(_placeholder(store, record, grid)))
    sets = feature_sets(store, config, teachers)
    left = Work()
    sources = sources_of(catalog, sets)
    for generation in standing:
        asked = config.rows_per_shard
        tasks = missing_of(store, sets, generation, asked, sources=sources).tasks
        tell_derived(terminal, sets, tasks)
        for task in tasks:
            _count(left, sets, generation, task)
    every = [(index, grid) for index, task in enumerate(teachers) for grid in task.grids]
    calibration = _calibrating(teachers, pairs, samples)
    whole = _whole(sets, standing)
    again = calibration_tasks(every, standing, config.calibration_images)
    _add(whole, _calibrating(teachers, every, again))
    return Forecast(listing, standing, lacking, lacks, sets, left, calibration, whole)


def _grown(
    standing: Sequence[Standing],
    lacking: Sequence[Growth],
    listing: Listing,
    config: ExtractConfig,
    source: Source,
) -> list[Standing]:
    """How the generations would stand once the plan has grown."""
    superseded = np.concatenate([np.empty(0, np.int64), *(each.superseded for each in lacking)])
    found = []
    for generation in standing:
        plan = generation.plan
        first_rows = plan.first_row + rows_of(plan, np.arange(plan.images))[:, 0]
        found.append(replace(generation, live=generation.live & ~np.isin(first_rows, superseded)))
    for growth in lacking:
        count = len(growth.places)
        plan = draft_generation([each.plan for each in found], growth, config, source)
        live, other = np.ones(count, bool), np.zeros(count, bool)
        views = config.views.per_image
        found.append(Standing(plan, growth.places, live, other, listing.asked, views))
    return found


def _placeholder(store: ObjectStore, record: TeacherRecord, grid: int) -> Calibration:
    """In place of a calibration that is to be measured: no set of it is there."""
    axes = rounded(np.eye(record.patch_width))
    data = axes_parquet(axes, axes)
    key = layout.axes(record.fingerprint12, grid, "unwritten")
    store.create(key, data)

    def moments(width: int) -> Moments:
        return Moments(count=0, mean=(0.0,) * width, variance=(1.0,) * width)

    nothing = ObjectRecord(key="", size=0, sha256="")
    has_cls = record.cls_width is not None
    return Calibration(
        images=0,
        rows=0,
        tokens=moments(record.patch_width),
        cls=moments(record.cls_width) if record.cls_width is not None else None,
        tokens_covariance=nothing,
        cls_covariance=nothing if has_cls else None,
        tokens_shape=Shape(
            own=(1.0,) * record.patch_width,
            principal=(1.0,) * record.patch_width,
            axes=ObjectRecord(key=key, size=len(data), sha256=digest(data)),
        ),
    )


def _count(work: Work, sets: Sequence[FeatureSet], generation: Standing, task: SpanTask) -> None:
    """Add a span's task: a shard is computed whole, also for rows that nobody asked for, except
    for images that are replaced or gone."""
    plan = generation.plan
    span = span_of(plan, task.span)
    rows = np.arange(span.first_row, span.first_row + span.images * plan.view_count)
    images, _ = images_and_views(plan, rows)
    read = generation.present[images]
    wanted: dict[int, npt.NDArray[np.bool_]] = {}
    for shard in task.shards:
        if shard.sources:
            continue
        feature_set = sets[shard.feature_set]
        first = shard.first_row - span.first_row
        inside = slice(first, first + shard.rows)
        here = wanted.setdefault(feature_set.pixels, np.zeros(len(rows), bool))
        here[inside] = read[inside]
        work.rows[feature_set.teacher, feature_set.path.grid] += int(read[inside].sum())
    for side, squares in wanted.items():
        work.squares[side] += int(squares.sum())
    if wanted:
        seen = np.logical_or.reduce(list(wanted.values()))
        work.pictures += len(np.unique(images[seen]))


def _calibrating(
    teachers: Sequence[TeacherTask],
    pairs: Sequence[tuple[int, int]],
    tasks: Sequence[CalibrationTask],
) -> Work:
    """Every picture in one view, at each of the pairs."""
    images = sum(task.images - len(task.excused) for task in tasks) if pairs else 0
    told = [(teachers[index], grid) for index, grid in pairs]
    sides = {task.record.pixels(grid) for task, grid in told}
    return Work(
        rows=Counter({(task.name, grid): images for task, grid in told}),
        pictures=images,
        squares=Counter(dict.fromkeys(sides, images)),
    )


def _whole(sets: Sequence[FeatureSet], standing: Sequence[Standing]) -> Work:
    """Every row that is asked for, in every set."""
    rows = sum(generation.rows_asked for generation in standing)
    return Work(
        rows=Counter({(each.teacher, each.path.grid): rows for each in sets}),
        # Of the generations that only add views the pictures are decoded again.
        pictures=sum(
            int(generation.images_asked.sum()) for generation in standing if generation.rows_asked
        ),
        squares=Counter(dict.fromkeys({each.pixels for each in sets}, rows)),
    )


def _add(work: Work, more: Work) -> None:
    work.rows.update(more.rows)
    work.pictures += more.pictures
    work.squares.update(more.squares)
