from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from infra.store import MemoryStore, ObjectStore
from pipeline.job import ShardTask
from pipeline.shard_buffer import RowNote, ShardBuffer
from pipeline.writer import commit
from schemas import shard, tables
from schemas.errors import AlreadyExists, DamageError
from schemas.records import ShardCommit
from schemas.sealed import digest, seal, unseal
from tests.unit.pipeline.fixtures import feature_set

BAD = {3: "the file is empty", 7: "not a picture in any known format"}
ROWS = 9
FIRST = 64
COST: Any = {"relative_rms": 0.5, "cosine": np.float32([0.8, 0.9, 0.9, 1.0]), "saturated": 0.25}
Halves = npt.NDArray[np.float16]


class Shard:
    """A short shard (rows 64 to 72 of its generation) with two bad rows."""

    def __init__(self, seed: int = 0, cls_width: int | None = 3) -> None:
        random = np.random.default_rng(seed)
        self.set = feature_set(cls_width=cls_width)
        self.tokens: Halves = random.standard_normal((ROWS, 4, 4)).astype(np.float16)
        self.cls: Halves | None = None
        if cls_width:
            self.cls = random.standard_normal((ROWS, cls_width)).astype(np.float16)
        self.task = ShardTask(0, 0, 2, FIRST, ROWS, 32, "a" * 64)

    def buffer(self, **changes: Any) -> ShardBuffer:
        buffer = ShardBuffer(self.task, self.set, global_first_row=1000)
        for row in range(ROWS):
            note = RowNote(f"{row}.jpg", 0, BAD.get(row), **COST)
            if row in BAD:
                buffer.put(FIRST + row, RowNote(f"{row}.jpg", 0, BAD[row]))
            else:
                cls = None if self.cls is None else self.cls[row]
                buffer.put(FIRST + row, note, self.tokens[row], cls)
        return buffer

    def commit(self, store: ObjectStore) -> tuple[ShardCommit, int]:
        return commit(self.buffer(), store)

    @property
    def commit_key(self) -> str:
        return self.set.path.commit(0, 2)

    @property
    def tokens_key(self) -> str:
        return self.set.path.tokens(0, 2)

    def stored(self, store: ObjectStore) -> Halves:
        return shard.decode(store.get(self.tokens_key), self.tokens_key, self.set.row_form, 32)


def table_of(store: ObjectStore, commit: ShardCommit, cls_width: int | None = 3) -> pa.Table:
    data = store.get(commit.cls.key)
    assert (len(data), digest(data)) == (commit.cls.size, commit.cls.sha256)
    return tables.from_parquet(data, commit.cls.key, tables.cls_schema(cls_width))


def test_buffer__is_complete_with_its_last_row() -> None:
    one = Shard()
    buffer = ShardBuffer(one.task, one.set, 0)
    for row in range(ROWS):
        assert not buffer.complete
        buffer.put(FIRST + row, RowNote("k", 0, "bad"))
        buffer.put(FIRST + row, RowNote("k", 0, "bad"))
    assert buffer.complete


def test_commit__names_what_lies_there() -> None:
    store, one = MemoryStore(), Shard()
    commit, written = one.commit(store)
    assert unseal(store.get(one.commit_key), ShardCommit, one.commit_key) == commit
    assert written == sum(store.size(key) for key in store.keys(""))
    data = store.get(commit.tokens.key)
    assert (len(data), digest(data)) == (commit.tokens.size, commit.tokens.sha256)
    assert (commit.rows, commit.ok, commit.bad) == (ROWS, ROWS - 2, 2)
    assert commit.error.cosine_mean == pytest.approx(0.9)
    assert commit.error.cosine_p1 == pytest.approx(0.8)
    assert commit.error.cosine_min == pytest.approx(0.9)
    assert commit.error.relative_rms == pytest.approx(0.5)
    assert commit.error.saturated == pytest.approx(0.25)
    good = [row for row in range(ROWS) if row not in BAD]
    np.testing.assert_array_equal(one.stored(store)[good], one.tokens[good])
    assert np.isnan(one.stored(store)[[*BAD, *range(ROWS, 32)]]).all()


def test_commit__table_has_every_row_with_its_reason() -> None:
    store, one = MemoryStore(), Shard()
    table = table_of(store, one.commit(store)[0]).to_pylist()
    assert [line["row"] for line in table] == list(range(1064, 1064 + ROWS))
    assert {place: line["reason"] for place, line in enumerate(table) if line["reason"]} == BAD
    assert [line["status"] for line in table] == ["bad" if r in BAD else "ok" for r in range(ROWS)]
    assert one.cls is not None
    np.testing.assert_array_equal(np.array(table[0]["cls"], np.float16), one.cls[0])


def checksums(data: bytes) -> list[int | None]:
    """The last four bytes of each row's chunk, as the shard's index places them."""
    index = np.frombuffer(data, "<u8", 64).reshape(32, 2).tolist()
    ends = [None if length == 2**64 - 1 else start + length for start, length in index]
    return [end and int.from_bytes(data[end - 4 : end], "little") for end in ends]


def test_commit__table_names_each_rows_checksum() -> None:
    store, one = MemoryStore(), Shard()
    named = table_of(store, one.commit(store)[0])["tokens_crc32c"].to_pylist()
    assert named == checksums(store.get(one.tokens_key))[:ROWS]
    assert {place for place, value in enumerate(named) if value is None} == set(BAD)
    assert len(set(named)) == ROWS - 1


def test_commit__without_cls_has_no_such_column() -> None:
    store, one = MemoryStore(), Shard(cls_width=None)
    assert "cls" not in table_of(store, one.commit(store)[0], None).column_names


def test_commit__adopts_what_a_dead_attempt_left() -> None:
    """Its tokens, in its own bits; its CLS table stays where it is and is named by nobody."""
    store, dead, living = MemoryStore(), Shard(), Shard()
    dead.commit(store)
    left = store.get(dead.tokens_key)
    orphan = next(store.keys(f"{dead.set.path}/000000/cls/"))
    store = MemoryStore()
    store.create(dead.tokens_key, left)
    store.create(orphan, b"half a life")
    living.tokens = (living.tokens.astype(np.float32) * 1.001).astype(np.float16)
    commit, written = living.commit(store)
    assert store.get(living.tokens_key) == left
    assert (commit.tokens.size, commit.tokens.sha256) == (len(left), digest(left))
    assert commit.cls.key != orphan
    assert table_of(store, commit)["tokens_crc32c"].to_pylist() == checksums(left)[:ROWS]
    assert written == commit.cls.size + store.size(living.commit_key)


def test_commit__refuses_a_foreign_object_by_name() -> None:
    store = MemoryStore()
    Shard(seed=1).commit(store)
    foreign, one = store.get(Shard().tokens_key), Shard(seed=2)
    store = MemoryStore()
    store.create(one.tokens_key, foreign)
    with pytest.raises(DamageError, match=r"holds other rows \(cosine .* remove it") as caught:
        one.commit(store)
    assert caught.value.__dict__["key"] == one.tokens_key
    assert str(caught.value).startswith(one.tokens_key)
    assert list(store.keys("commits/")) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_commit__refuses_a_damaged_leftover_by_name(damage: str) -> None:
    store, one = MemoryStore(), Shard()
    one.commit(store)
    data = bytearray(store.get(one.tokens_key))
    data[-9] ^= 1
    spoilt = {"cut": data[:-5], "flipped": data, "empty": b""}[damage]
    store = MemoryStore()
    store.create(one.tokens_key, spoilt)
    with pytest.raises(DamageError, match="a dead attempt left it: remove it") as caught:
        one.commit(store)
    assert caught.value.__dict__["key"] == one.tokens_key


def test_commit__refuses_a_leftover_with_other_bad_rows() -> None:
    store, dead, one = MemoryStore(), Shard(), Shard()
    present = [row not in {1, 3} for row in range(ROWS)]
    store.create(one.tokens_key, shard.encode(dead.tokens, present, 32))
    with pytest.raises(DamageError, match=r"holds other rows \(7 good ones, not the 7"):
        one.commit(store)


def test_commit__refuses_a_leftover_with_more_rows_than_are_good() -> None:
    store, one = MemoryStore(), Shard()
    store.create(one.tokens_key, shard.encode(one.tokens, [True] * ROWS, 32))
    with pytest.raises(DamageError, match=r"\(9 good ones, not the 7 just computed\)"):
        one.commit(store)


def test_commit__the_loser_of_a_race_takes_the_winners() -> None:
    store, winner, loser = MemoryStore(), Shard(), Shard()
    won, _ = winner.commit(store)
    before = {key: store.get(key) for key in store.keys("commits/")}
    lost, written = loser.commit(store)
    assert lost == won
    assert written == 0
    assert {key: store.get(key) for key in store.keys("commits/")} == before
    assert store.get(loser.commit_key) == seal(won)


def test_commit__another_writers_commit_under_its_feet() -> None:
    """The winner commits between the loser's table and the loser's commit."""

    class Overtaken(MemoryStore):
        def create(self, key: str, data: Any) -> None:
            if key == Shard().commit_key and not list(self.keys(key)):
                winner = MemoryStore()
                self.won = Shard().commit(winner)[0]
                super().create(key, winner.get(key))
            super().create(key, data)

    store = Overtaken()
    commit, written = Shard().commit(store)
    assert commit == store.won
    assert written == 0
    with pytest.raises(AlreadyExists):
        store.create(Shard().commit_key, b"")
