"""From features to a committed shard.

Order of writing: tokens, CLS table, and last, create-only, the commit: a shard exists if and only
if its commit does. An object left without a commit by a dead attempt is adopted when it decodes to
the rows just computed; a commit that another writer made first wins, and this one's work is
dropped (teachers are not bit-stable across machines, so nothing is ever compared and overwritten).
"""

import uuid

from infra.store import ObjectStore
from pipeline.mend import repair
from pipeline.shard_buffer import ShardBuffer
from schemas import shard
from schemas.errors import AlreadyExists, ConfigError, DamageError
from schemas.records import ObjectRecord, ShardCommit
from schemas.sealed import digest, seal, unseal


def finish(buffer: ShardBuffer, store: ObjectStore) -> tuple[ShardCommit, int]:
    """`commit`, or `repair` where the shard was committed and is damaged.

    Raises:
        ConfigError: its codec loses more than the configuration allows.
    """
    _refuse_lossy(buffer)
    damaged = buffer.task.damaged
    return commit(buffer, store) if damaged is None else repair(buffer, store, damaged)


def commit(buffer: ShardBuffer, store: ObjectStore) -> tuple[ShardCommit, int]:
    """Write a shard and its commit.

    Returns:
        The commit that stands, ours or another writer's, and the bytes this call wrote; 0 if
        the shard turned out to have been committed.

    Raises:
        DamageError: an object without a commit stands in the way and is not this shard.
    """
    task, path = buffer.task, buffer.set.path
    attempt = uuid.uuid4().hex[:12]
    commit_key = path.commit(task.generation, task.shard)
    try:
        tokens, checksums, written = _create_tokens(buffer, store)
        table = buffer.table(checksums)
        cls_key = path.cls_table(task.generation, task.shard, attempt)
        store.create(cls_key, table)
        cls = ObjectRecord(key=cls_key, size=len(table), sha256=digest(table))
        made = buffer.record(tokens, cls, attempt)
        sealed = seal(made)
        store.create(commit_key, sealed)
    except AlreadyExists:
        return unseal(store.get(commit_key), ShardCommit, commit_key), 0
    return made, written + len(table) + len(sealed)


def _refuse_lossy(buffer: ShardBuffer) -> None:
    cosine, made = buffer.error().cosine_mean, buffer.set
    if cosine is not None and cosine < made.min_cosine:
        raise ConfigError(
            f"teacher {made.teacher} at grid {made.path.grid}: stored as {made.path.codec_label} "
            f"its tokens have a mean cosine of {cosine:.4f} to the exact ones in shard "
            f"{buffer.task.shard}, codec.min_cosine asks for {made.min_cosine:g}; choose a codec "
            "of more bits (`teachonce plan` compares them), or lower codec.min_cosine"
        )


def _create_tokens(
    buffer: ShardBuffer, store: ObjectStore
) -> tuple[ObjectRecord, list[int | None], int]:
    """What lies there now, its rows' checksums, and the bytes that were written."""
    task = buffer.task
    key = buffer.set.path.tokens(task.generation, task.shard)
    data: bytes | bytearray = buffer.encode()
    written = len(data)
    try:
        store.create(key, data)
    except AlreadyExists:
        data, written = store.get(key), 0
        _refuse_unless_same(buffer, data, key)
    record = ObjectRecord(key=key, size=len(data), sha256=digest(data))
    return record, shard.checksums(data, key, task.rows_per_shard), written


def _refuse_unless_same(buffer: ShardBuffer, found: bytes, key: str) -> None:
    """An object left without a commit must decode to the rows just computed."""
    try:
        difference = buffer.difference(found, key)
    except DamageError as error:
        raise DamageError(
            f"{error}; no commit names it, a dead attempt left it: remove it and run again",
            key=key,
        ) from None
    if difference:
        raise DamageError(
            f"{key}: an object that no commit names stands here and holds other rows "
            f"({difference}): remove it and run again",
            key=key,
        )
