"""`extract --repair`: what is damaged, put right where it can be computed or derived anew.

The one place where an object is replaced: one that is missing, or proven not to be what its commit
names. Shards are computed again (pipeline/mend.py); the records beside them are derived.
"""

from collections.abc import Sequence

from infra.catalog import Catalog
from infra.codec.codec import TokenCodec
from infra.devices import pick_device
from infra.plan_reader import PlanReader
from infra.store import ObjectStore
from infra.terminal import Terminal
from pipeline.checks import Line, check_set
from pipeline.findings import Findings
from pipeline.job import Damaged, TeacherTask
from pipeline.mend import put
from pipeline.probe import guard
from pipeline.publish import Place
from pipeline.teachers import load_teacher
from pipeline.verify import walk
from schemas import layout, shard
from schemas.codec import choice_of, codec_record
from schemas.errors import DamageError, NotFound
from schemas.layout import SetPath
from schemas.measured import Calibration, CodecRecord, Probe
from schemas.names import BLOCK_ROWS, MAX_SPAN_IMAGES
from schemas.records import ObjectRecord, PlanCommit, TeacherRecord
from schemas.sealed import Record, digest, seal, unseal


def find_damaged(
    catalog: Catalog, teachers: Sequence[TeacherTask], terminal: Terminal
) -> dict[Place, Damaged]:
    """Check the newest snapshot's sets of these teachers, put their records right, and name the
    shards that are to be computed again.

    Raises:
        DamageError: something is damaged that cannot be derived.
    """
    number = catalog.latest_snapshot()
    if number is None:
        return {}
    snapshot = catalog.snapshot(number)
    plans = catalog.generations(snapshot.commit.generations)
    known = {task.record.fingerprint12: task for task in teachers}
    lines = [
        line
        for line in snapshot.table.to_pylist()
        if SetPath.parse(line["set"]).fingerprint12 in known
    ]
    others = len(set(snapshot.table["set"].to_pylist())) - len({line["set"] for line in lines})
    if others:
        terminal.say(f"repair       {others} sets are of teachers that do not run now")
    for path, codec_sha256 in sorted({(line["set"], line["codec_sha256"]) for line in lines}):
        set_path = SetPath.parse(path)
        _mend_records(catalog.store, set_path, known[set_path.fingerprint12], codec_sha256)
    for line in lines:
        _mend_array(catalog.store, line, plans[line["generation"]])
    findings = Findings()
    for path, codec_sha256 in sorted({(line["set"], line["codec_sha256"]) for line in lines}):
        check_set(catalog.store, SetPath.parse(path), codec_sha256, findings)
    if not findings.clean:
        raise DamageError("cannot be repaired: " + "; ".join(findings.notes))
    readers = [PlanReader(catalog.store, plan) for plan in plans]
    superseded = catalog.superseded(plans[: snapshot.commit.generations])
    walk(catalog.store, readers, lines, superseded, findings, terminal)
    for note in findings.notes:
        terminal.warn(note)
    damaged = {_place(line): _damaged(line) for line in lines if _keys(line) & findings.keys}
    terminal.decide("repair", f"{len(damaged)} shards", f"{len(findings.notes)} faults found")
    return damaged


def _place(line: Line) -> Place:
    return line["set"], line["generation"], line["shard"]


def _keys(line: Line) -> set[str]:
    """Of the objects that make a shard."""
    path = SetPath.parse(line["set"])
    commit = path.commit(line["generation"], line["shard"], line["revision"])
    return {line["tokens_key"], line["cls_key"], commit}


def _damaged(line: Line) -> Damaged:
    tokens, cls = (
        ObjectRecord(
            key=line[f"{kind}_key"], size=line[f"{kind}_size"], sha256=line[f"{kind}_sha256"]
        )
        for kind in ("tokens", "cls")
    )
    return Damaged(tokens, cls, line["revision"], line["commit_sha256"])


def _mend_records(store: ObjectStore, path: SetPath, task: TeacherTask, codec_sha256: str) -> None:
    """teacher.json, codec.json and probe.json of a set, where they are damaged."""
    key = layout.teacher(path.fingerprint12)
    if not _is_sound(store, key, TeacherRecord):
        put(store, key, seal(task.record))
    key = layout.probe(path.fingerprint12, path.grid)
    if not _is_sound(store, key, Probe):
        store.delete(key)
        loaded = load_teacher(task.teacher, task.precision, pick_device().value)
        guard(store, loaded, path.grid)
    calibration_key = layout.calibration(path.fingerprint12, path.grid)
    if _is_sound(store, path.codec_json, CodecRecord):
        return
    try:
        calibration = unseal(store.get(calibration_key), Calibration, calibration_key)
    except NotFound:
        raise DamageError(
            f"{path.codec_json}: is damaged, and {calibration_key}, which gives it, is missing",
            key=calibration_key,
        ) from None
    sealed = seal(codec_record(choice_of(path.codec_label), calibration))
    if digest(sealed) != codec_sha256:
        raise DamageError(f"{path.codec_json}: is damaged, and {calibration_key} gives another")
    put(store, path.codec_json, sealed)


def _mend_array(store: ObjectStore, line: Line, plan: PlanCommit) -> None:
    """A set's zarr.json of a generation: made anew for the shard size that the commits name."""
    path = SetPath.parse(line["set"])
    key = path.array(line["generation"])
    try:
        if digest(store.get(key)) == line["array_sha256"]:
            return
    except NotFound:
        pass
    record = unseal(store.get(path.codec_json), CodecRecord, path.codec_json)
    form = TokenCodec(record).row_form(path.grid**2)
    rows = BLOCK_ROWS
    while rows <= MAX_SPAN_IMAGES:
        data = shard.array_metadata(plan.rows, form, rows)
        if digest(data) == line["array_sha256"]:
            put(store, key, data)
            return
        rows *= 2
    raise DamageError(f"{key}: is damaged, and no shard size gives what the commits name", key=key)


def _is_sound(store: ObjectStore, key: str, kind: type[Record]) -> bool:
    try:
        unseal(store.get(key), kind, key)
    except (NotFound, DamageError):
        return False
    return True
