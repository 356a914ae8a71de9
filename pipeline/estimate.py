"""`teachonce plan`: what an extraction would do and cost, timed on a few real batches here.

Writes nothing. The model: workers of this machine use all its cores, so that the time is the
forwards' plus the decoding's share of the cores; a cache pays from the epoch on at which running
the teachers online would have cost more forwards than extracting did.
"""

import os
import time
from collections.abc import Sequence

from infra.catalog import Catalog
from infra.command import Outcome
from infra.devices import pick_device
from infra.pixels.decode import silence_pillow
from infra.sources import Source, open_source
from infra.store import ObjectStore, open_store
from infra.terminal import Terminal, human_bytes
from pipeline import sets as feature_sets
from pipeline.extract import describe_teachers
from pipeline.job import TeacherTask
from pipeline.listing import Listing, list_images, unplanned
from pipeline.pictures import Order, Picture, make_picture
from pipeline.planning import draws_of, order_key
from pipeline.teachers import load_teacher
from schemas import layout
from schemas.codec import codec_folder, codec_record
from schemas.errors import CacheError, NotFound
from schemas.extract_config import ExtractConfig
from schemas.records import Calibration, PlanCommit
from schemas.sealed import unseal
from schemas.shard import CRC_BYTES, ENTRY_BYTES, rows_per_shard_of

SAMPLE_IMAGES = 8
TIMED_BATCHES = 2


def run(config: ExtractConfig, terminal: Terminal) -> Outcome:
    """Raises ConfigError, CacheError, TeacherError as `extract` would."""
    silence_pillow()
    store = open_store(config.cache)
    source = open_source(config.images.source, config.images.columns)
    teachers = describe_teachers(config, terminal)
    listing = list_images(source, order_key(config.views.seed), config.images.limit)
    generations, fresh = _existing_plan(store, listing, config, source)
    planned = sum(plan.rows for plan in generations)
    new_rows = len(fresh.keys) * config.views.per_image
    forwards = {
        (teacher.name, grid): new_rows + _missing_rows(store, config, teacher, grid, generations)
        for teacher in teachers
        for grid in teacher.grids
    }
    stored = (planned + new_rows) * sum(
        _stored_row_bytes(teacher, grid) for teacher in teachers for grid in teacher.grids
    )
    seconds, epoch_seconds = _time(config, source, teachers, listing, forwards)
    breakeven = None
    if seconds and epoch_seconds:
        breakeven = round(seconds / epoch_seconds, 2)
    result: dict[str, object] = {
        "rows": planned + new_rows,
        "teacher_forwards": sum(forwards.values()),
        "bytes_by_codec": {config.codec.tokens: stored},
        "seconds_estimate": None if seconds is None else round(seconds, 1),
        "breakeven_epochs": breakeven,
    }
    for (name, grid), count in forwards.items():
        terminal.say(f"forwards     {name} at grid {grid}: {count:,}")
    terminal.say(
        f"plan         {planned + new_rows:,} rows ({new_rows:,} new), "
        f"{human_bytes(stored)} as {config.codec.tokens}; "
        + ("no pictures to time" if seconds is None else f"about {seconds:,.0f} s on this machine")
    )
    if breakeven is not None:
        terminal.say(
            f"break-even   after {breakeven:g} epochs of one view an image, against running the "
            "teachers online"
        )
    return Outcome(result)


def _existing_plan(
    store: ObjectStore, listing: Listing, config: ExtractConfig, source: Source
) -> tuple[list[PlanCommit], Listing]:
    try:
        catalog = Catalog(store)
    except CacheError:
        try:
            store.size(layout.CACHE)
        except NotFound:
            return [], listing
        raise
    generations = catalog.generations()
    return generations, unplanned(catalog, generations, listing, config.views, source)


def _missing_rows(
    store: ObjectStore,
    config: ExtractConfig,
    teacher: TeacherTask,
    grid: int,
    generations: Sequence[PlanCommit],
) -> int:
    """Rows of the plan as it stands for which one (teacher, grid) has no committed shard."""
    rows = sum(plan.rows for plan in generations)
    fp12 = teacher.record.fingerprint12
    key = layout.calibration(fp12, grid)
    try:
        calibration = unseal(store.get(key), Calibration, key)
    except NotFound:
        return rows
    codec = codec_record(config.codec.tokens, calibration)
    path = layout.SetPath(fp12, grid, codec_folder(codec))
    for plan in generations:
        try:
            size = rows_per_shard_of(store.get(path.array(plan.generation)))
        except NotFound:
            continue
        for shard in feature_sets.committed_shards(store, path, plan.generation):
            rows -= min(size, plan.rows - shard * size)
    return rows


def _stored_row_bytes(teacher: TeacherTask, grid: int) -> int:
    record = teacher.record
    tokens = grid * grid * record.patch_width * 2 + CRC_BYTES + ENTRY_BYTES
    return tokens + 2 * (record.cls_width or 0)


def _time(
    config: ExtractConfig,
    source: Source,
    teachers: Sequence[TeacherTask],
    listing: Listing,
    forwards: dict[tuple[str, int], int],
) -> tuple[float | None, float]:
    """Seconds of the whole extraction, and of the teachers in one online epoch of one view an
    image at one grid (the mean over a teacher's grids)."""
    sample = _sample_pictures(config, source, teachers, listing)
    if not sample:
        return None, 0.0
    squares_each = len(sample[0].squares)
    decode_each = sum(picture.seconds for picture in sample) / len(sample) / squares_each
    device = pick_device().value
    total = epoch = 0.0
    for teacher in teachers:
        loaded = load_teacher(teacher.teacher, teacher.precision, device)
        for grid in teacher.grids:
            side = teacher.pixels(grid)
            pixels = [p.squares[0, side].pixels for p in sample]
            batch = (pixels * -(-config.workers.batch_size // len(pixels)))[
                : config.workers.batch_size
            ]
            loaded(batch)  # the first call allocates
            start = time.perf_counter()
            for _ in range(TIMED_BATCHES):
                loaded(batch)
            each = (time.perf_counter() - start) / (TIMED_BATCHES * len(batch))
            rows = forwards[teacher.name, grid]
            total += rows * (each + decode_each / (os.cpu_count() or 1))
            epoch += len(listing.keys) * each / len(teacher.grids)
    return total, epoch


def _sample_pictures(
    config: ExtractConfig, source: Source, teachers: Sequence[TeacherTask], listing: Listing
) -> list[Picture]:
    sides = sorted({teacher.pixels(grid) for teacher in teachers for grid in teacher.grids})
    pictures = []
    for key in listing.keys[:SAMPLE_IMAGES]:
        draws = {0: draws_of(key, 0, config.views.seed)}
        order = Order(key, draws, tuple((0, side) for side in sides))
        picture = make_picture(source, config.views, order)
        if picture.reason is None:
            pictures.append(picture)
    return pictures
