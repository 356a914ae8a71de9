"""What `verify` checks of each span and set."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.catalog import get_checked, is_record_of, is_superseded, read_teacher
from infra.plan_reader import PlanReader
from infra.store import ObjectStore
from pipeline.findings import Findings
from pipeline.publish import read_commit
from schemas import layout, shard, tables
from schemas.codec import choice_of, codec_record
from schemas.errors import DamageError, NotFound
from schemas.layout import SetPath
from schemas.measured import Calibration, CodecRecord, Probe
from schemas.records import ObjectRecord, ShardCommit, TeacherRecord
from schemas.sealed import Record, digest, seal, unseal

Line = dict[str, Any]
"""One line of a snapshot's table."""


def check_span(
    store: ObjectStore,
    plans: list[PlanReader],
    lines: list[Line],
    superseded: npt.NDArray[np.int64],
    findings: Findings,
) -> None:
    """Every shard of a span, and that all its sets are of the same pictures where rows count."""
    pictures: dict[str, bytes] = {}
    for line in lines:
        table = _check_shard(store, plans, line, findings)
        if table is None:
            continue
        counts = ~is_superseded(superseded, np.asarray(table["row"]))
        good = table.filter(pc.and_(pc.equal(table["status"], tables.OK), pa.array(counts)))
        others = sum(
            pictures.setdefault(key, sha256) != sha256
            for key, sha256 in zip(good["key"].to_pylist(), good["image_sha256"].to_pylist())
        )
        if others:
            what = f"{others} rows were computed from other pictures than another set's"
            findings.misalign(line["cls_key"], others, what)


def _check_shard(
    store: ObjectStore, plans: list[PlanReader], line: Line, findings: Findings
) -> pa.Table | None:
    """Everything about one shard; returns its CLS table if that is sound."""
    path = SetPath.parse(line["set"])
    commit_key = path.commit(line["generation"], line["shard"], line["revision"])
    try:
        place = (line["set"], line["generation"], line["shard"])
        commit = read_commit(store, place, line["revision"])
    except NotFound:
        findings.damage(commit_key, "the commit is missing", missing=True)
        return None
    except DamageError as error:
        findings.damage(commit_key, str(error))
        return None
    if digest(seal(commit)) != line["commit_sha256"]:
        findings.damage(commit_key, "is another commit than the snapshot names")
    array = path.array(commit.generation)
    try:
        rows_per_shard = shard.rows_per_shard_of(
            get_checked(
                store, ObjectRecord(key=array, size=store.size(array), sha256=commit.array_sha256)
            )
        )
    except (NotFound, DamageError) as error:
        findings.damage(array, str(error), missing=isinstance(error, NotFound))
        return None
    table = _cls_table(store, path, commit, findings)
    if table is not None:
        _check_alignment(plans[commit.generation], commit, table, findings)
    try:
        tokens = store.get(commit.tokens.key)
    except NotFound:
        findings.damage(commit.tokens.key, "is missing", missing=True)
        return table
    _check_tokens(commit, tokens, rows_per_shard, table, findings)
    return table


def check_object(store: ObjectStore, record: ObjectRecord, findings: Findings) -> bytes | None:
    try:
        store.size(record.key)
        return get_checked(store, record)
    except NotFound:
        findings.damage(record.key, "is missing", missing=True)
    except DamageError as error:
        findings.damage(record.key, str(error))
    return None


def _cls_table(
    store: ObjectStore, path: SetPath, commit: ShardCommit, findings: Findings
) -> pa.Table | None:
    data = check_object(store, commit.cls, findings)
    if data is None:
        return None
    try:
        teacher = read_teacher(store, path.fingerprint12)
    except DamageError as error:
        findings.damage(layout.teacher(path.fingerprint12), str(error))
        return None
    schema = tables.cls_schema(teacher.cls_width)
    try:
        tables.Blocks(data, commit.cls.key, schema)
        return tables.from_parquet(data, commit.cls.key, schema)
    except DamageError as error:
        findings.damage(commit.cls.key, str(error))
    return None


def _check_alignment(
    plan: PlanReader, commit: ShardCommit, table: pa.Table, findings: Findings
) -> None:
    try:
        expected = plan.rows(commit.first_row, commit.rows)
    except DamageError as error:
        findings.damage(str(error.__dict__.get("key", commit.cls.key)), str(error))
        return
    first = plan.commit.first_row + commit.first_row
    if len(table) != commit.rows:
        findings.misalign(commit.cls.key, commit.rows, f"has {len(table)} rows, not {commit.rows}")
        return
    same = np.asarray(pc.equal(table["row"], pa.array(range(first, first + commit.rows))))
    for name in ("key", "view"):
        same = same & np.asarray(pc.equal(table[name], expected[name]))
    if not same.all():
        wrong = int((~same).sum())
        findings.misalign(commit.cls.key, wrong, f"{wrong} rows are not those of the plan")
    bad = np.flatnonzero(np.asarray(pc.equal(table["status"], tables.BAD)))
    findings.mark_bad((first + bad).tolist())
    if len(bad) != commit.bad or commit.ok + commit.bad != commit.rows:
        findings.damage(commit.cls.key, f"has {len(bad)} bad rows, its commit says {commit.bad}")


def _check_tokens(
    commit: ShardCommit,
    tokens: bytes,
    rows_per_shard: int,
    table: pa.Table | None,
    findings: Findings,
) -> None:
    """Names the rows that are damaged, as far as the index tells where they are."""
    key = commit.tokens.key
    try:
        index = shard.decode_index(tokens, key, rows_per_shard)
    except DamageError as error:
        findings.damage(key, f"{error}: none of its rows can be found")
        return
    absent = shard.is_absent(index)
    damaged = []
    for row in np.flatnonzero(~absent).tolist():
        offset, length = (int(value) for value in index[row])
        try:
            shard.check_chunk(memoryview(tokens)[offset : offset + length], key, row)
        except DamageError:
            damaged.append(commit.first_row + row)
    if damaged:
        findings.damage(key, f"rows {_ranges(damaged)} of generation {commit.generation} damaged")
    elif len(tokens) != commit.tokens.size or digest(tokens) != commit.tokens.sha256:
        findings.damage(key, "is another object than its commit names")
    elif table is not None and len(table) == commit.rows:
        stored = shard.checksums(tokens, key, rows_per_shard)
        named = table["tokens_crc32c"].to_pylist()
        if stored != named + [None] * (rows_per_shard - commit.rows):
            findings.damage(key, "holds other rows than its CLS table names")


def _ranges(rows: list[int]) -> str:
    """Sorted rows as `3, 5-9`."""
    cuts = np.flatnonzero(np.diff(rows) > 1) + 1
    runs = np.split(np.asarray(rows), cuts)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def check_set(store: ObjectStore, path: SetPath, codec_sha256: str, findings: Findings) -> None:
    """The sealed records beside a set's shards, each the one that belongs there."""
    _check_teacher(store, path, findings)
    codec = _check_sealed(store, path.codec_json, CodecRecord, findings)
    if codec is not None and digest(seal(codec)) != codec_sha256:
        findings.damage(path.codec_json, "is another codec than the commits name")
        codec = None
    key = layout.calibration(path.fingerprint12, path.grid)
    calibration = _check_sealed(store, key, Calibration, findings)
    if calibration is not None:
        for record in (
            calibration.tokens_covariance,
            calibration.cls_covariance,
            calibration.tokens_shape.axes,
        ):
            if record is not None:
                check_object(store, record, findings)
    if codec is None or calibration is None:
        return
    if codec_record(choice_of(path.codec_label), calibration) != codec:
        findings.damage(key, f"is another measurement than {path.codec_json} derives from")


def _check_teacher(store: ObjectStore, path: SetPath, findings: Findings) -> None:
    """The teacher's record, and what it said when the set began."""
    key = layout.teacher(path.fingerprint12)
    teacher = _check_sealed(store, key, TeacherRecord, findings)
    if teacher is not None and not is_record_of(teacher, path.fingerprint12):
        findings.damage(key, f"is the record of another teacher than {path.fingerprint12}")
    key = layout.probe(path.fingerprint12, path.grid)
    probe = _check_sealed(store, key, Probe, findings)
    if probe is None or teacher is None:
        return
    if (probe.fingerprint, probe.grid) != (teacher.fingerprint, path.grid):
        findings.damage(key, f"is the probe of {probe.fingerprint} at grid {probe.grid}")


def _check_sealed(
    store: ObjectStore, key: str, kind: type[Record], findings: Findings
) -> Record | None:
    try:
        return unseal(store.get(key), kind, key)
    except NotFound:
        findings.damage(key, "is missing", missing=True)
    except DamageError as error:
        findings.damage(key, str(error))
    return None
