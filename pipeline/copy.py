"""`teachonce copy`: part of a cache as a cache of its own, to be published or carried elsewhere.

Objects are copied byte for byte, whole shards of them; the plan comes whole, so every row keeps its
number and its key. Where another codec is asked for than stands, it is made from float16 on the
way. What is there already is not copied again, so a copy that was stopped goes on.
"""

from collections.abc import Iterator, Sequence
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
from schemas.measured import Calibration
from schemas.options import CopyOptions
from schemas.records import PlanCommit, ShardCommit
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
    generations = catalog.generations()[: snapshot.commit.generations]
    lines = list(_chosen(options, snapshot, generations))
    target = open_store(options.out, options.store)
    refuse_unsafe_store(target)
    with lease(target, "extract"):
        copying = _Copying(catalog.store, target, generations, options.codec)
        written = copying.records(lines)
        with (
            ThreadPoolExecutor(THREADS, thread_name_prefix="copy") as pool,
            terminal.progress("copy", len(lines), "shards") as meter,
        ):
            commits = []
            for done, size in pool.map(copying.shard, lines):
                commits.append(done)
                written += size
                meter.advance(1)
        named = {SetPath.parse(line["set"]).fingerprint12 for line in lines}
        teachers = {name: fp for name, fp in snapshot.commit.teachers.items() if fp in named}
        made = publish(Catalog(target), teachers, [], commits, len(generations))
    rows = sum(line["rows"] for line in lines)
    terminal.say(
        f"cache        {target.url}: snapshot {made.commit.number}, {len(lines):,} shards, "
        f"{rows:,} rows in all sets together; wrote {human_bytes(written)}"
    )
    found = {"shards": len(lines), "rows": rows, "bytes_written": written}
    return Outcome({**found, "snapshot": made.commit.number})


def _chosen(
    options: CopyOptions, snapshot: Snapshot, generations: Sequence[PlanCommit]
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
    """From one store to another; each call returns the bytes that it wrote as well."""

    def __init__(
        self,
        source: ObjectStore,
        target: ObjectStore,
        generations: Sequence[PlanCommit],
        codec: str | None,
    ) -> None:
        self._source, self._target, self._codec = source, target, codec
        self._generations = generations
        self._device = pick_device().value
        self._made: dict[str, FeatureSet] = {}
        """By the set that they are made from."""

    def records(self, lines: Sequence[Line]) -> int:
        """The plan, and what belongs to each set beside its shards."""
        written = self._copy(layout.CACHE)
        for generation in self._generations:
            for part in (*generation.parts, generation.superseded):
                if part is not None:
                    written += self._copy(part.key, part.sha256)
            written += self._copy(layout.plan_commit(generation.generation))
        for text in sorted({line["set"] for line in lines}):
            path = SetPath.parse(text)
            made = self._set_to_make(path)
            for key in keys_beside(self._source, path):
                if made is None or key != path.codec_json:
                    written += self._copy(key)
            if made is not None:
                self._made[text] = made
                create(self._target, made.path.codec_json, seal(made.codec.record))
        for text, generation, array in sorted(
            {(line["set"], line["generation"], line["array_sha256"]) for line in lines}
        ):
            written += self._array(text, generation, array)
        return written

    def _array(self, text: str, number: int, sha256: str) -> int:
        key, made = SetPath.parse(text).array(number), self._made.get(text)
        if made is None:
            return self._copy(key, sha256)
        create(self._target, made.path.array(number), self._made_array(key, made))
        return 0

    def _made_array(self, key: str, made: FeatureSet) -> bytes:
        exact = self._source.get(key)
        rows, _ = shard.form_of(exact)
        return shard.array_metadata(rows, made.row_form, shard.rows_per_shard_of(exact))

    def shard(self, line: Line) -> tuple[ShardCommit, int]:
        """One shard and its commit, which comes last; one that is there is left alone."""
        made = self._made.get(line["set"])
        text = line["set"] if made is None else str(made.path)
        place = (text, line["generation"], line["shard"])
        with suppress(NotFound):
            there = read_commit(self._target, place, line["revision"] if made is None else 0)
            if made is not None or digest(seal(there)) == line["commit_sha256"]:
                return there, 0
            raise ConfigError(
                f"{self._target.url}: shard {place[2]} of {text} is of another cache; copy into a "
                "new folder"
            )
        if made is not None:
            return self._derive(line, made)
        found = read_commit(self._source, place, line["revision"])
        written = sum(self._copy(each.key, each.sha256) for each in (found.tokens, found.cls))
        key = SetPath.parse(text).commit(*place[1:], line["revision"])
        return found, written + self._copy(key, line["commit_sha256"])

    def _copy(self, key: str, sha256: str | None = None) -> int:
        data = self._source.get(key)
        if sha256 is not None and digest(data) != sha256:
            raise DamageError(f"{self._source.url}: {key} is damaged: verify the cache", key=key)
        try:
            self._target.create(key, data)
        except AlreadyExists:
            if self._target.get(key) != data:
                raise ConfigError(
                    f"{self._target.url}: {key} is of another cache; copy into a new folder"
                ) from None
            return 0
        return len(data)

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

    def _derive(self, line: Line, made: FeatureSet) -> tuple[ShardCommit, int]:
        generation = line["generation"]
        array = self._made_array(SetPath.parse(line["set"]).array(generation), made)
        rows_per_shard = shard.rows_per_shard_of(array)
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
        return commit(buffer, self._target)
