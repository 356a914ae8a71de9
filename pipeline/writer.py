"""From features to a committed shard.

Order of writing: tokens, CLS table, and last, create-only, the commit: a shard exists if and only
if its commit does. An object left without a commit by a dead attempt is adopted when it decodes to
the rows just computed; a commit that another writer made first wins, and this one's work is
dropped (teachers are not bit-stable across machines, so nothing is ever compared and overwritten).
"""

import uuid
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.store import ObjectStore
from pipeline.job import Damaged, FeatureSet, ShardTask
from schemas import shard, tables
from schemas.errors import AlreadyExists, DamageError, NotFound
from schemas.records import ObjectRecord, ShardCommit, ShardError
from schemas.sealed import digest, seal, unseal

ADOPTION_COSINE = 0.999


@dataclass
class RowNote:
    """What the CLS table says of a row beside its vector."""

    key: str
    view: int
    reason: str | None
    image_sha256: bytes | None = None
    width: int | None = None
    height: int | None = None
    pixels_sha256: bytes | None = None
    relative_rms: float | None = None
    cosine: float | None = None


class ShardBuffer:
    """The rows of one shard, gathered until all are there."""

    def __init__(self, task: ShardTask, feature_set: FeatureSet, global_first_row: int) -> None:
        self.task, self.set = task, feature_set
        self._global_first_row = global_first_row
        self._notes: list[RowNote | None] = [None] * task.rows
        self._left = task.rows

    @property
    def complete(self) -> bool:
        return self._left == 0

    # Made when the first row comes: most shards of a span are not begun while others are filled.
    @cached_property
    def _tokens(self) -> npt.NDArray[np.float16]:
        shape = (self.task.rows, self.set.token_count, self.set.record.patch_width)
        return np.full(shape, np.nan, np.float16)

    @cached_property
    def _cls(self) -> npt.NDArray[np.float16] | None:
        width = self.set.record.cls_width
        return None if width is None else np.full((self.task.rows, width), np.nan, np.float16)

    def put(
        self,
        row: int,
        note: RowNote,
        tokens: npt.NDArray[np.float16] | None = None,
        cls: npt.NDArray[np.float16] | None = None,
    ) -> None:
        """Take in a row of the generation; without tokens it is bad, for the note's reason."""
        place = row - self.task.first_row
        if self._notes[place] is None:
            self._left -= 1
        self._notes[place] = note
        if tokens is not None:
            self._tokens[place] = tokens
            if self._cls is not None and cls is not None:
                self._cls[place] = cls

    def finish(self, store: ObjectStore) -> tuple[ShardCommit, int]:
        """`commit`, or `repair` where the shard was committed and is damaged."""
        damaged = self.task.damaged
        return self.commit(store) if damaged is None else self.repair(store, damaged)

    def commit(self, store: ObjectStore) -> tuple[ShardCommit, int]:
        """Write the shard and its commit.

        Returns:
            The commit that stands, ours or another writer's, and the bytes this call wrote; 0 if
            the shard turned out to have been committed.

        Raises:
            DamageError: an object without a commit stands in the way and is not this shard.
        """
        task, path = self.task, self.set.path
        notes = [note for note in self._notes if note is not None]
        present = [note.reason is None for note in notes]
        attempt = uuid.uuid4().hex[:12]
        commit_key = path.commit(task.generation, task.shard)
        try:
            tokens, checksums, written = self._create_tokens(store, present)
            table = tables.to_parquet(self._table(notes, checksums))
            cls_key = path.cls_table(task.generation, task.shard, attempt)
            store.create(cls_key, table)
            cls = ObjectRecord(key=cls_key, size=len(table), sha256=digest(table))
            commit = self._commit(tokens, cls, attempt, notes)
            sealed = seal(commit)
            store.create(commit_key, sealed)
        except AlreadyExists:
            return unseal(store.get(commit_key), ShardCommit, commit_key), 0
        return commit, written + len(table) + len(sealed)

    def repair(self, store: ObjectStore, was: Damaged) -> tuple[ShardCommit, int]:
        """Put right what is damaged of a committed shard, with the rows just computed.

        Where they give the bytes that were there, those are put back, and every snapshot is whole
        again. Where they do not (features repeat to the bit on one kind of machine only), the
        shard gets a commit of a further revision, for the snapshots to come.

        Returns:
            As `commit`.
        """
        task, path = self.task, self.set.path
        notes = [note for note in self._notes if note is not None]
        key = path.commit(task.generation, task.shard, was.revision + 1)
        if _digest_of(store, key) is not None:  # another job has repaired it meanwhile
            return unseal(store.get(key), ShardCommit, key), 0
        data = _sound(store, was.tokens)
        written = 0
        present = [note.reason is None for note in notes]
        # The new table is of the pictures as they are now, and of no others that tokens may be of.
        if data is None or self._difference(data, was.tokens.key, present):
            data = bytes(shard.encode(self._tokens, present, task.rows_per_shard))
            written += put(store, was.tokens.key, data)
        tokens = ObjectRecord(key=was.tokens.key, size=len(data), sha256=digest(data))
        checksums = shard.checksums(data, tokens.key, task.rows_per_shard)
        table = tables.to_parquet(self._table(notes, checksums))
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
        commit = self._commit(tokens, cls, uuid.uuid4().hex[:12], notes, was.revision + 1)
        sealed = seal(commit)
        try:
            store.create(key, sealed)
        except AlreadyExists:
            return unseal(store.get(key), ShardCommit, key), 0
        return commit, written + len(sealed)

    def _commit(
        self,
        tokens: ObjectRecord,
        cls: ObjectRecord,
        attempt: str,
        notes: list[RowNote],
        revision: int = 0,
    ) -> ShardCommit:
        task = self.task
        ok = sum(note.reason is None for note in notes)
        return ShardCommit(
            set=str(self.set.path),
            generation=task.generation,
            shard=task.shard,
            first_row=task.first_row,
            rows=task.rows,
            ok=ok,
            bad=task.rows - ok,
            tokens=tokens,
            cls=cls,
            codec_sha256=self.set.codec_sha256,
            array_sha256=task.array_sha256,
            attempt=attempt,
            revision=revision,
            error=_error(notes),
        )

    def _create_tokens(
        self, store: ObjectStore, present: list[bool]
    ) -> tuple[ObjectRecord, list[int | None], int]:
        """What lies there now, its rows' checksums, and the bytes that were written."""
        task = self.task
        key = self.set.path.tokens(task.generation, task.shard)
        data: bytes | bytearray = shard.encode(self._tokens, present, task.rows_per_shard)
        written = len(data)
        try:
            store.create(key, data)
        except AlreadyExists:
            data, written = store.get(key), 0
            self._refuse_unless_same(data, key, present)
        record = ObjectRecord(key=key, size=len(data), sha256=digest(data))
        return record, shard.checksums(data, key, task.rows_per_shard), written

    def _refuse_unless_same(self, found: bytes, key: str, present: list[bool]) -> None:
        """An object left without a commit must decode to the rows just computed."""
        try:
            difference = self._difference(found, key, present)
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

    def _difference(self, found: bytes, key: str, present: list[bool]) -> str:
        """How the rows of an object differ from those just computed; empty where they do not.
        Raises DamageError."""
        stored = shard.decode(found, key, self._tokens.shape[1:], self.task.rows_per_shard)
        wanted = np.zeros(len(stored), bool)
        wanted[: len(present)] = present
        held = np.isfinite(stored).all(axis=(1, 2))
        if not np.array_equal(held, wanted):
            return f"{held.sum()} good ones, not the {wanted.sum()} just computed"
        worst = _worst_cosine(self._tokens[present], stored[wanted])
        if worst >= ADOPTION_COSINE:
            return ""
        return f"cosine {worst:.4f}, {ADOPTION_COSINE} needed to adopt it"

    def _table(self, notes: list[RowNote], checksums: list[int | None]) -> pa.Table:
        first = self._global_first_row + self.task.first_row
        columns: dict[str, object] = {
            "row": range(first, first + len(notes)),
            "key": [note.key for note in notes],
            "view": [note.view for note in notes],
            "status": [tables.OK if note.reason is None else tables.BAD for note in notes],
            "reason": [note.reason for note in notes],
            "image_sha256": [note.image_sha256 for note in notes],
            "width": [note.width for note in notes],
            "height": [note.height for note in notes],
            "pixels_sha256": [note.pixels_sha256 for note in notes],
            "tokens_crc32c": checksums[: len(notes)],
            "relative_rms": [note.relative_rms for note in notes],
        }
        width = self.set.record.cls_width
        if width is not None and self._cls is not None:
            flat = pa.array(self._cls.reshape(-1))
            columns["cls"] = pa.FixedSizeListArray.from_arrays(flat, width)
        return pa.table(columns, schema=tables.cls_schema(width))


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


def _worst_cosine(mine: npt.NDArray[np.float16], theirs: npt.NDArray[np.float16]) -> float:
    """The smallest cosine between the rows [rows, tokens, channels] of two shards."""
    a, b = (rows.reshape(len(rows), -1).astype(np.float32) for rows in (mine, theirs))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(norms, 1e-12)).min(initial=1.0))


def _error(notes: list[RowNote]) -> ShardError:
    cosines = [note.cosine for note in notes if note.cosine is not None]
    rms = [note.relative_rms for note in notes if note.relative_rms is not None]
    return ShardError(
        cosine_mean=float(np.mean(cosines)) if cosines else None,
        cosine_min=float(np.min(cosines)) if cosines else None,
        relative_rms=float(np.sqrt(np.mean(np.square(rms)))) if rms else None,
    )
