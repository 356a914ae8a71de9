"""What an extraction has to do: the rows each teacher lacks at each grid, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.catalog import Catalog
from infra.store import ObjectStore
from infra.terminal import Terminal
from pipeline.job import TeacherTask
from pipeline.listing import Standing
from pipeline.sets import committed_shards
from schemas import layout
from schemas.codec import codec_folder, codec_record
from schemas.errors import NotFound
from schemas.extract_config import ExtractConfig
from schemas.measured import Calibration
from schemas.sealed import unseal
from schemas.shard import rows_per_shard_of


@dataclass(frozen=True)
class Lack:
    """Rows that one teacher has not been run on at one grid."""

    teacher: str
    grid: int
    rows: int
    why: str


def difference(
    catalog: Catalog,
    config: ExtractConfig,
    teachers: Sequence[TeacherTask],
    standing: Sequence[Standing],
) -> list[Lack]:
    """What is missing of every set that the configuration asks for."""
    number = catalog.latest_snapshot()
    named = {} if number is None else catalog.snapshot_commit(number).teachers
    planned = sum(generation.rows_asked for generation in standing)
    lacks = []
    for teacher in teachers:
        known = named.get(teacher.name)
        for grid in teacher.grids:
            path = _set_path(catalog.store, config, teacher, grid)
            rows = planned
            if path is not None:
                rows = sum(_missing(catalog.store, path, generation) for generation in standing)
            if known is None:
                why = "a new teacher"
            elif known != teacher.record.fingerprint12:
                why = f"the teacher has changed: it was {known}"
            elif path is None:
                why = "a new grid"
            elif rows == planned:
                why = "nothing of it is there yet"
            else:
                why = "the rest is there"
            lacks.append(Lack(teacher.name, grid, rows, why))
    return lacks


def tell(terminal: Terminal, lacks: Sequence[Lack]) -> None:
    """Print what is to be done."""
    for lack in lacks:
        if lack.rows:
            terminal.say(
                f"to do        {lack.teacher} at grid {lack.grid}: {lack.rows:,} rows ({lack.why})"
            )
    if not any(lack.rows for lack in lacks):
        terminal.say("to do        nothing: all that is asked for is there")


def _set_path(
    store: ObjectStore, config: ExtractConfig, teacher: TeacherTask, grid: int
) -> layout.SetPath | None:
    """The set's path; None where the teacher is not calibrated at the grid."""
    fp12 = teacher.record.fingerprint12
    key = layout.calibration(fp12, grid)
    try:
        calibration = unseal(store.get(key), Calibration, key)
    except NotFound:
        return None
    codec = codec_record(config.codec_of(teacher.name), calibration)
    return layout.SetPath(fp12, grid, codec_folder(codec))


def _missing(store: ObjectStore, path: layout.SetPath, generation: Standing) -> int:
    """Rows asked for of a generation that no committed shard holds."""
    plan = generation.plan
    try:
        size = rows_per_shard_of(store.get(path.array(plan.generation)))
    except NotFound:
        return generation.rows_asked
    missing = np.ones(plan.rows, bool)
    for number in committed_shards(store, path, plan.generation):
        missing[number * size : (number + 1) * size] = False
    return int(generation.asks(np.flatnonzero(missing)).sum())
