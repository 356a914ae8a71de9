"""`verify --against-teacher N`: some rows of each feature set made again from their pictures.

Checksums tell that a row is what was written, not that it is what its teacher says of its picture.
Here the picture is read again, its stored draws are replayed, the teacher is built again from its
record, and pixels and features are compared with those that are stored.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice, repeat

import pyarrow.compute as pc

from infra.catalog import Catalog, Snapshot, read_teacher
from infra.codec.codec import open_codec
from infra.devices import pick_device
from infra.pixels.decode import silence_pillow
from infra.plan_reader import PlanReader
from infra.sources import Source, open_source
from infra.terminal import Meter, Terminal
from pipeline.bad_rows import sets_named
from pipeline.comparison import Comparison
from pipeline.pictures import Order, Picture, make_picture
from pipeline.sample import Chosen, StoredRow, choose, read_rows
from pipeline.teachers import LoadedTeacher, load_teacher
from schemas.errors import ConfigError, DamageError, NotFound, TeacherError, TeachonceError
from schemas.extract_config import Teacher
from schemas.fingerprint import VALUE_FIELDS
from schemas.keyed_hash import subkey
from schemas.layout import SetPath
from schemas.measured import CodecRecord
from schemas.records import PlanCommit, TeacherRecord
from schemas.sealed import unseal
from schemas.spans import Whole

BATCH_ROWS = 32
"""Rows of one forward."""


class Recomputation:
    """Rows of every set whose teacher a name means in a snapshot, to be compared with it.

    Args:
        plans: of every generation. superseded: rows of the plan, ascending.
        count: rows of each set; all where there are not as many.

    Raises:
        ConfigError: the data set of a chosen row is not there.
    """

    def __init__(
        self,
        catalog: Catalog,
        snapshot: Snapshot,
        plans: Sequence[PlanReader],
        superseded: Whole,
        count: int,
    ) -> None:
        self._store, self._plans, self._superseded = catalog.store, plans, superseded
        self._names = {fp12: name for name, fp12 in snapshot.commit.teachers.items()}
        key = subkey(bytes.fromhex(catalog.record.order_key), "against-teacher")
        self._chosen: dict[str, Chosen] = {}
        for text in sorted(sets_named(snapshot)):
            lines = snapshot.table.filter(pc.equal(snapshot.table["set"], text))
            self._chosen[text] = choose(self._store, lines, plans, superseded, count, key)
        generations = {line["generation"] for chosen in self._chosen.values() for line, _ in chosen}
        self._sources = {number: _open_source(plans[number].commit) for number in generations}

    def run(self, terminal: Terminal) -> dict[str, Comparison | None]:
        """Make the rows again and compare them.

        Returns:
            By set; None where its teacher is not run.

        Raises:
            TeacherError: a teacher cannot be had as it was.
            SourceError: a picture cannot be read for a reason that may pass.
        """
        silence_pillow()
        device = pick_device()
        terminal.decide("teachers on", *device)
        total = sum(map(_count, self._chosen.values()))
        by_teacher = groupby(self._chosen, lambda text: SetPath.parse(text).fingerprint12)
        found: dict[str, Comparison | None] = {}
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            terminal.progress("recompute", total, "rows") as meter,
        ):
            for fp12, texts in by_teacher:
                record = read_teacher(self._store, fp12)
                if record.library == "python":
                    # Else whoever wrote a cache could have any function called here.
                    terminal.warn(
                        f"teacher {self._names[fp12]} is a program, {record.model}; what a cache "
                        "names is never run, so its rows are not compared: extract from the same "
                        "configuration again, which compares its fingerprint and its probe"
                    )
                    found |= dict.fromkeys(texts)
                    continue
                # One teacher in memory at a time: it is gone when this call ends.
                found |= self._run_teacher(record, list(texts), device.value, pool, meter)
        return found

    def _run_teacher(
        self,
        record: TeacherRecord,
        texts: list[str],
        device: str,
        pool: ThreadPoolExecutor,
        meter: Meter,
    ) -> dict[str, Comparison]:
        loaded = _load_again(self._names[record.fingerprint12], record, device)
        return {text: self._compare_set(loaded, text, pool, meter) for text in texts}

    def _compare_set(
        self, loaded: LoadedTeacher, text: str, pool: ThreadPoolExecutor, meter: Meter
    ) -> Comparison:
        path, chosen = SetPath.parse(text), self._chosen[text]
        record = unseal(self._store.get(path.codec_json), CodecRecord, path.codec_json)
        codec = open_codec(self._store, record)
        side = loaded.record.pixels(path.grid)
        found = Comparison(_count(chosen))
        rows = self._read(chosen, found)
        while batch := list(islice(rows, BATCH_ROWS)):
            pictures = list(pool.map(self._see, batch, repeat(side)))
            found.add(loaded, codec, batch, pictures)
            meter.advance(len(batch))
        return found

    def _read(self, chosen: Chosen, found: Comparison) -> Iterator[StoredRow]:
        for line, places in chosen:
            plan = self._plans[line["generation"]]
            try:
                yield from read_rows(self._store, plan, line, places, self._superseded)
            except (DamageError, NotFound):
                found.rows_damaged += len(places)

    def _see(self, row: StoredRow, side: int) -> Picture:
        commit = self._plans[row.generation].commit
        order = Order(row.key, {row.view: row.draws}, ((row.view, side),), commit.limits)
        return make_picture(self._sources[row.generation], commit.views, order)


def _count(chosen: Chosen) -> int:
    return sum(len(places) for _, places in chosen)


def _open_source(plan: PlanCommit) -> Source:
    try:
        return open_source(plan.source, plan.columns, plan.limits.max_bytes)
    except ConfigError as error:
        raise ConfigError(
            f"comparing rows with their teachers needs the pictures where they were extracted "
            f"from: {error}; bring them back there, or verify without --against-teacher"
        ) from None


def _load_again(name: str, record: TeacherRecord, device: str) -> LoadedTeacher:
    is_folder = record.library == "teachonce"  # which says by itself what it is
    teacher = Teacher(
        library=record.library,
        model="" if is_folder else record.model,
        weights=record.weights,
        arguments={} if is_folder else json.loads(record.arguments_json),
        pixels=dict(record.pixels_by_grid),
        precision=record.precision,
    )
    try:
        loaded = load_teacher(teacher, record.precision, device)
    except TeachonceError as error:
        raise TeacherError(
            f"running teacher {name} again: {error}; bring back what it was loaded from, or verify "
            "without --against-teacher"
        ) from None
    if loaded.record.fingerprint != record.fingerprint:
        others = [
            field
            for field in VALUE_FIELDS
            if getattr(loaded.record, field) != getattr(record, field)
        ]
        raise TeacherError(
            f"running teacher {name} again: {record.library} {record.model} with weights "
            f"{record.weights} has fingerprint {loaded.record.fingerprint12} here, the cache is "
            f"of {record.fingerprint12}; other than then: {', '.join(others)}. Put the weights it "
            "was extracted with back there, or run extract, which adds the rows of these"
        )
    return loaded
