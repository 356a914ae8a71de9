"""A committed shard of which something is damaged, put right with its rows computed anew.

Where they give the bytes that were there, those are put back, and every snapshot is whole again.
Where they do not (features repeat to the bit on one kind of machine only), the shard gets a commit
of a further revision, for the snapshots to come.
"""

import uuid

from infra.store import ObjectStore
from pipeline.job import Damaged
from pipeline.shard_buffer import ShardBuffer
from schemas import shard
from schemas.errors import AlreadyExists, NotFound
from schemas.records import ObjectRecord, ShardCommit
from schemas.sealed import digest, seal, unseal


def repair(buffer: ShardBuffer, store: ObjectStore, was: Damaged) -> tuple[ShardCommit, int]:
    """Put right what is damaged of a committed shard, with the rows just computed.

    Returns:
        The commit that stands, ours, another job's or the one that stood, and the bytes this call
        wrote; 0 if another job has repaired it meanwhile.

    Raises:
        DamageError: tokens that the snapshot names lie there whole and cannot be read.
        StoreError: another job puts other bytes there at this moment.
    """
    task, path = buffer.task, buffer.set.path
    key = path.commit(task.generation, task.shard, was.revision + 1)
    if _digest_of(store, key) is not None:  # another job has repaired it meanwhile
        return unseal(store.get(key), ShardCommit, key), 0
    data = _sound(store, was.tokens)
    written = 0
    # The new table is of the pictures as they are now, and of no others that tokens may be of.
    if data is None or buffer.difference(data, was.tokens.key):
        data = bytes(buffer.encode())
        written += put(store, was.tokens.key, data)
    tokens = ObjectRecord(key=was.tokens.key, size=len(data), sha256=digest(data))
    checksums = shard.checksums(data, tokens.key, task.rows_per_shard)
    table = buffer.table(checksums)
    commit_key = path.commit(task.generation, task.shard, was.revision)
    cls = was.cls
    if digest(table) == was.cls.sha256:
        if _sound(store, was.cls) is None:
            written += put(store, was.cls.key, table)
        if tokens == was.tokens and _digest_of(store, commit_key) == was.commit_sha256:
            return unseal(store.get(commit_key), ShardCommit, commit_key), written
    else:
        cls_key = path.cls_table(task.generation, task.shard, uuid.uuid4().hex[:12])
        store.create(cls_key, table)
        written += len(table)
        cls = ObjectRecord(key=cls_key, size=len(table), sha256=digest(table))
    commit = buffer.record(tokens, cls, uuid.uuid4().hex[:12], was.revision + 1)
    sealed = seal(commit)
    try:
        store.create(key, sealed)
    except AlreadyExists:
        return unseal(store.get(key), ShardCommit, key), 0
    return commit, written + len(sealed)


def put(store: ObjectStore, key: str, data: bytes) -> int:
    """Make `data` what lies at a key whose object is missing or proven damaged; the bytes written.
    Whoever stops in between leaves it missing, which the next repair finds.

    Raises:
        StoreError: another job puts other bytes there at this moment.
    """
    store.delete(key)
    try:
        store.create(key, data)
    except AlreadyExists:
        if store.get(key) != data:
            raise
        return 0
    return len(data)


def _sound(store: ObjectStore, record: ObjectRecord) -> bytes | None:
    """The object, if it is the one that the record names."""
    try:
        data = store.get(record.key)
    except NotFound:
        return None
    return data if (len(data), digest(data)) == (record.size, record.sha256) else None


def _digest_of(store: ObjectStore, key: str) -> str | None:
    try:
        return digest(store.get(key))
    except NotFound:
        return None
