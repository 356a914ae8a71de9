"""`teachonce extract`: run the teachers over the images once.

Plans, calibrates, extracts what is missing, commits, snapshots. Also the script of a Ray job:
`ray job submit --working-dir . -- python pipeline/extract.py --config F`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: the packages stand beside this folder, not in it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.cli import main

    sys.exit(main(["extract", *sys.argv[1:]]))

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np

from infra.catalog import Catalog
from infra.command import Outcome
from infra.devices import pick_device
from infra.sources import Source, open_source
from infra.store import ObjectStore, open_store
from infra.store_check import refuse_unsafe_store
from infra.terminal import Terminal
from pipeline import sets as feature_sets
from pipeline.calibration import Calibrations, calibration_tasks, uncalibrated
from pipeline.derive import sources_of, tell_derived
from pipeline.describe import describe_teachers
from pipeline.difference import difference, tell
from pipeline.job import Damaged, GivenUp, Job, SpanTask, TeacherTask
from pipeline.lease import lease
from pipeline.listing import Standing
from pipeline.planning import grow_plan, open_or_create_cache
from pipeline.pool import Pool, ray_pool
from pipeline.publish import Place, publish
from pipeline.repair import find_damaged
from pipeline.summary import (
    Work,
    bad_rows_asked,
    name_bad,
    name_given_up,
    result,
    rows_left,
    summarise,
)
from schemas.errors import ConfigError, TeachonceError
from schemas.extract_config import ExtractConfig
from schemas.spans import Whole, span_count

PoolMaker = Callable[[Job, int], AbstractContextManager[Pool]]


def run(config: ExtractConfig, terminal: Terminal) -> Outcome:
    """The command, on Ray."""
    return extract(
        config, terminal, lambda job, tasks: ray_pool(job, config.workers, tasks, terminal)
    )


def extract(config: ExtractConfig, terminal: Terminal, pool_maker: PoolMaker) -> Outcome:
    """An extraction whose workers come from `pool_maker`.

    Raises:
        ConfigError, CacheError, TeacherError: before any work; DamageError: an object stands in
            the way that no commit names.
    """
    start = time.perf_counter()
    store = open_store(config.cache, config.store)
    images = config.images
    source = open_source(images.source, images.columns, images.max_bytes)
    teachers = describe_teachers(config, terminal)
    fingerprints12 = tuple(task.record.fingerprint12 for task in teachers)
    with lease(store, "extract", fingerprints12):
        # Not before: a gc would take what this creates and removes for what nobody uses.
        refuse_unsafe_store(store)
        catalog = open_or_create_cache(store, config)
        return _extract(config, terminal, pool_maker, catalog, source, teachers, start)


def _extract(
    config: ExtractConfig,
    terminal: Terminal,
    pool_maker: PoolMaker,
    catalog: Catalog,
    source: Source,
    teachers: tuple[TeacherTask, ...],
    start: float,
) -> Outcome:
    # First: what is damaged cannot tell which pictures have changed.
    damaged = find_damaged(catalog, teachers, terminal) if config.repair else {}
    standing = grow_plan(catalog, config, source, terminal, damaged)
    if not standing:
        terminal.warn(f"images {source.url}: no pictures found; nothing to do")
        return Outcome(result(Work(), None, 0, 0, 0, start))
    tell(terminal, difference(catalog, config, teachers, standing))
    extraction = _Extraction(config, terminal, catalog.store, source, teachers, standing, damaged)
    work = extraction.run(pool_maker)
    snapshot = publish(
        catalog,
        {task.name: task.record.fingerprint12 for task in teachers},
        work.committed,
        [commit for report in work.reports for commit in report.commits],
        len(standing),
    )
    rows = sum(generation.rows_asked for generation in standing)
    bad = bad_rows_asked(catalog.store, work.sets, snapshot, standing)
    told = result(work, snapshot, rows, len(bad), rows_left(work, standing, bad), start)
    status = max(name_bad(config, terminal, rows, bad), name_given_up(terminal, work))
    summarise(config, terminal, work, told)
    return Outcome(told, status)


class _Extraction:
    """One run over what is missing."""

    def __init__(
        self,
        config: ExtractConfig,
        terminal: Terminal,
        store: ObjectStore,
        source: Source,
        teachers: tuple[TeacherTask, ...],
        standing: Sequence[Standing],
        damaged: Mapping[Place, Damaged],
    ) -> None:
        self._config, self._terminal, self._store = config, terminal, store
        self._teachers, self._standing, self._damaged = teachers, standing, damaged
        self._source = source.url
        self._job = Job(
            cache=store.url,
            store=config.store,
            source=source.location,
            columns=config.images.columns,
            teachers=teachers,
            generations=tuple(generation.plan for generation in standing),
            batch_size=config.workers.batch_size,
            decode_threads=1,
            forward_threads=0,
            device=pick_device().value,
        )

    def run(self, pool_maker: PoolMaker) -> Work:
        pairs = uncalibrated(self._store, self._teachers)
        if pairs:
            spans = sum(span_count(generation.plan) for generation in self._standing)
            for generation in self._standing:
                asked = np.flatnonzero(generation.images_asked)
                self._refuse_lost_pictures(generation, asked // generation.plan.span_images)
            with pool_maker(self._job, spans) as pool:
                self._calibrate(pool, pairs)
                work, tasks = self._find_missing()
                self._compute(pool, work, tasks)
            return work
        work, tasks = self._find_missing()
        if tasks:
            with pool_maker(self._job, len(tasks)) as pool:
                self._compute(pool, work, tasks)
        return work

    def _calibrate(self, pool: Pool, pairs: list[tuple[int, int]]) -> None:
        tasks = calibration_tasks(pairs, self._standing, self._config.calibration_images)
        images = sum(task.images - len(task.excused) for task in tasks)
        if images < 512:
            self._terminal.warn(f"mean and std are measured on {images} images; 512 are better")
        calibrations = Calibrations(self._teachers, pairs, tasks)
        with self._terminal.progress("calibrate", images, "images") as meter:
            for task, parts in pool.run("calibrate", tasks):
                if isinstance(parts, GivenUp):
                    raise TeachonceError(f"calibrating span {task.span}: {parts.reason}")
                calibrations.add(task, parts)
                meter.advance(task.images - len(task.excused))
        calibrations.store(self._store, images)

    def _find_missing(self) -> tuple[Work, list[SpanTask]]:
        work = Work(feature_sets.feature_sets(self._store, self._config, self._teachers))
        tasks: list[SpanTask] = []
        sources = sources_of(Catalog(self._store), work.sets)
        asked = self._config.rows_per_shard
        for generation in self._standing:
            missing = feature_sets.missing_of(
                self._store, work.sets, generation, asked, self._damaged, sources
            )
            work.committed += missing.committed
            seen = [task.span for task in missing.tasks if task.needs_pictures]
            spans = np.array(seen, np.int64)
            self._refuse_lost_pictures(generation, spans)
            tasks += missing.tasks
        tell_derived(self._terminal, work.sets, tasks)
        return work, tasks

    def _refuse_lost_pictures(self, generation: Standing, spans: Whole) -> None:
        """Rows are bad for ever; a mount that has come off must not make any in these spans."""
        span_of_image = np.arange(generation.plan.images) // generation.plan.span_images
        counting = generation.live & np.isin(span_of_image, spans)
        lost = int((counting & ~generation.is_there).sum())
        if lost > self._config.tolerate_bad_images * counting.sum():
            raise ConfigError(
                f"images {self._source}: {lost:,} of the {counting.sum():,} pictures that are "
                "still to be computed are no longer there; bring them back, or raise "
                "tolerate_bad_images to go on without them"
            )

    def _compute(self, pool: Pool, work: Work, tasks: list[SpanTask]) -> None:
        if not tasks:
            return
        pool.use_sets(work.sets)
        start = time.perf_counter()
        batch_size = self._job.batch_size
        rows = sum(shard.rows for task in tasks for shard in task.shards)
        with self._terminal.progress("extract", rows, "features") as meter:
            for task, report in pool.run("process", tasks):
                meter.advance(sum(shard.rows for shard in task.shards))
                if isinstance(report, GivenUp):
                    work.given_up.append((task, report))
                    continue
                work.reports.append(report)
                if report.batch_size < batch_size:
                    batch_size = report.batch_size
                    self._terminal.decide("batch size", batch_size, "a GPU had no room for more")
        work.compute_seconds = time.perf_counter() - start
