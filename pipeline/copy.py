"""`teachonce copy`: part of a cache as a cache of its own, to be published or carried elsewhere.

Objects are copied byte for byte, whole shards of them; the plan comes whole, so every row keeps its
number and its key. Where another codec is asked for than stands, it is made from float16 on the
way. What is there already is not copied again, so a copy that was stopped goes on.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np

from infra.catalog import Catalog, Snapshot, read_teacher
from infra.codec.codec import open_codec
from infra.command import Outcome
from infra.devices import pick_device
from infra.store import ObjectStore, open_store
from infra.store_check import refuse_unsafe_store
from infra.terminal import Terminal, human_bytes
from pipeline.checks import Line
from pipeline.derive import EXACT, derive, source_of
from pipeline.gc import keys_beside
from pipeline.job import FeatureSet, ShardTask
from pipeline.lease import lease
from pipeline.publish import publish, read_commit
from pipeline.sets import create
from pipeline.shard_buffer import ShardBuffer
from pipeline.writer import commit
from schemas import layout, shard
from schemas.codec import choice_of, codec_folder, codec_record
from schemas.errors import AlreadyExists, CacheError, ConfigError, DamageError, NotFound
from schemas.layout import SetPath
from schemas.options import CopyOptions
from schemas.records import Calibration, PlanCommit, ShardCommit
from schemas.sealed import digest, seal, unseal
from schemas.spans import images_and_views

THREADS = 8


def run(options: CopyOptions, terminal: Terminal) -> Outcome:
    """The command.

    Raises:
        CacheError: there is no cache, or no snapshot of it.
        ConfigError: it has not what is asked for, or another cache stands in the way.
        DamageError: what is to be copied is missing or damaged.
    """
    catalog = Catalog(open_store(options.cache, options.store))
    number = catalog.latest_snapshot()
    if number is None:
        raise CacheError(f"{options.cache}: has no snapshot yet; let extract finish first")
    snapshot = catalog.snapshot(number)
    lines = list(_chosen(options, snapshot, catalog.generations()))
    target = open_store(options.out, options.store)
    refuse_unsafe_store(target)
    with lease(target, "extract"):
        copying = _Copying(catalog.store, target, options)
        copying.records(snapshot, lines)
        with (
            ThreadPoolExecutor(THREADS, thread_name_prefix="copy") as pool,
            terminal.progress("copy", len(lines), "shards") as meter,
        ):
            commits = []
            for done in pool.map(copying.shard, lines):
                commits.append(done)
                meter.advance(1)
        named = {SetPath.parse(line["set"]).fingerprint12 for line in lines}
        teachers = {name: fp for name, fp in snapshot.commit.teachers.items() if fp in named}
        made = publish(Catalog(target), teachers, [], commits, snapshot.commit.generations)
    rows, size = sum(line["rows"] for line in lines), copying.written
    terminal.say(
        f"cache        {target.url}: snapshot {made.commit.number}, {len(lines):,} shards, "
        f"{rows:,} rows in all sets together; wrote {human_bytes(size)}"
    )
    found = {"shards": len(lines), "rows": rows, "bytes_written": size}
    return Outcome({**found, "snapshot": made.commit.number})


def _chosen(
    options: CopyOptions, snapshot: Snapshot, generations: list[PlanCommit]
) -> Iterator[Line]:
    """The shards that hold something of what is asked for."""
    names = snapshot.commit.teachers
    unknown = [name for name in options.teachers if name not in names]
    if unknown:
        raise ConfigError(f"teachers: no {', '.join(unknown)} here; there are {', '.join(names)}")
    wanted = {names[name] for name in options.teachers or names}
    lines = [
        line
        for line in snapshot.table.to_pylist()
        if (path := SetPath.parse(line["set"])).fingerprint12 in wanted
        and (not options.grids or path.grid in options.grids)
    ]
    labels = _labels(lines)
    for place, there in labels.items():
        if options.codec is not None and not {options.codec, EXACT} & there:
            raise ConfigError(
                f"codec: grid {place[1]} of {place[0]} is stored as {', '.join(sorted(there))}, "
                f"of which {options.codec} cannot be made; extract it first"
            )
    found = 0
    for line in lines:
        path = SetPath.parse(line["set"])
        there = labels[path.fingerprint12, path.grid]
        label = options.codec if options.codec in there else EXACT
        if options.codec is not None and path.codec_label != label:
            continue
        rows = np.arange(line["first_row"], line["first_row"] + line["rows"])
        _, views = images_and_views(generations[line["generation"]], rows)
        if not options.views or np.isin(views, options.views).any():
            found += 1
            yield line
    if not found:
        raise ConfigError("there is nothing of what is asked for: look at views and grids")


def _labels(lines: list[Line]) -> dict[tuple[str, int], set[str]]:
    """The codecs of each (teacher, grid)."""
    labels: dict[tuple[str, int], set[str]] = {}
    for line in lines:
        path = SetPath.parse(line["set"])
        labels.setdefault((path.fingerprint12, path.grid), set()).add(path.codec_label)
    return labels


class _Copying:
    """From one store to another."""

    def __init__(self, source: ObjectStore, target: ObjectStore, options: CopyOptions) -> None:
        self._source, self._target, self._codec = source, target, options.codec
        self._generations = Catalog(source).generations()
        self._device = pick_device().value
        self._made: dict[str, FeatureSet] = {}
        """By the set that they are made from."""
        self.written = 0

    def records(self, snapshot: Snapshot, lines: list[Line]) -> None:
        """The plan, and what belongs to each set beside its shards."""
        self._copy(layout.CACHE)
        for generation in self._generations[: snapshot.commit.generations]:
            for part in (*generation.parts, generation.superseded):
                if part is not None:
                    self._copy(part.key, part.sha256)
            self._copy(layout.plan_commit(generation.generation))
        for text in sorted({line["set"] for line in lines}):
            path = SetPath.parse(text)
            made = self._set_to_make(path)
            for key in keys_beside(self._source, path):
                if made is None or key != path.codec_json:
                    self._copy(key)
            if made is not None:
                self._made[text] = made
                create(self._target, made.path.codec_json, seal(made.codec.record))

    def shard(self, line: Line) -> ShardCommit:
        """One shard and its commit, which comes last."""
        made = self._made.get(line["set"])
        if made is not None:
            return self._derive(line, made)
        path, generation, number = SetPath.parse(line["set"]), line["generation"], line["shard"]
        found = read_commit(self._source, (line["set"], generation, number), line["revision"])
        self._copy(path.array(generation), found.array_sha256)
        for record in (found.tokens, found.cls):
            self._copy(record.key, record.sha256)
        self._copy(path.commit(generation, number, line["revision"]), line["commit_sha256"])
        return found

    def _copy(self, key: str, sha256: str | None = None) -> None:
        data = self._source.get(key)
        if sha256 is not None and digest(data) != sha256:
            raise DamageError(f"{self._source.url}: {key} is damaged: verify the cache", key=key)
        try:
            self._target.create(key, data)
            self.written += len(data)
        except AlreadyExists:
            if self._target.get(key) != data:
                raise ConfigError(
                    f"{self._target.url}: {key} is of another cache; copy into a new folder"
                ) from None

    def _set_to_make(self, path: SetPath) -> FeatureSet | None:
        """What a set in fp16 is turned into; None where it is copied as it stands."""
        if self._codec in (None, path.codec_label):
            return None
        key = layout.calibration(path.fingerprint12, path.grid)
        calibration = unseal(self._source.get(key), Calibration, key)
        record = codec_record(choice_of(self._codec), calibration)
        return FeatureSet(
            teacher=path.fingerprint12,
            path=replace(path, codec=codec_folder(record)),
            record=read_teacher(self._source, path.fingerprint12),
            codec=open_codec(self._source, record),
            codec_sha256=digest(seal(record)),
        )

    def _derive(self, line: Line, made: FeatureSet) -> ShardCommit:
        generation = line["generation"]
        place = (str(made.path), generation, line["shard"])
        with suppress(NotFound):
            return read_commit(self._target, place)
        exact = self._source.get(SetPath.parse(line["set"]).array(generation))
        rows_per_shard, (count, _) = shard.rows_per_shard_of(exact), shard.form_of(exact)
        array = shard.array_metadata(count, made.row_form, rows_per_shard)
        create(self._target, made.path.array(generation), array)
        task = ShardTask(
            feature_set=0,
            generation=generation,
            shard=line["shard"],
            first_row=line["first_row"],
            rows=line["rows"],
            rows_per_shard=rows_per_shard,
            array_sha256=digest(array),
            sources=(source_of(line, rows_per_shard),),
        )
        buffer = ShardBuffer(task, made, self._generations[generation].first_row)
        derive(buffer, self._source, self._device)
        done, written = commit(buffer, self._target)
        self.written += written
        return done
