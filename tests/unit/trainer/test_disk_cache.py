"""What is kept of a remote cache on a local disk: never wrong, never too much, the right part."""

import os
import threading
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch

import trainer.cache
from infra.store import Bytes, LocalStore, MemoryStore
from schemas.errors import ConfigError, DamageError, NotFound
from tests.unit.trainer.streams import Cached, assert_equal, epoch_of, joined, stream_of
from trainer.disk_cache import PARTIAL, DiskCache

KEY = "features/x/tokens/c/0/0/0"
PIECE = 1000


class Remote(MemoryStore):
    """Counts ranged reads."""

    def __init__(self) -> None:
        super().__init__()
        self.create(KEY, bytes(range(250)) * 400)
        self.reads: Counter[int] = Counter()

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        self.reads[start // PIECE] += 1
        return super().get_range(key, start, end)


def read(cache: DiskCache, piece: int, when: int = 0) -> bytes:
    with cache.needed_again(when):
        return bytes(cache.get_range(KEY, piece * PIECE, (piece + 1) * PIECE))


def expected(remote: Remote, piece: int) -> bytes:
    return remote.get(KEY)[piece * PIECE : (piece + 1) * PIECE]


def test_get_range__is_remote_once(tmp_path: Path) -> None:
    remote = Remote()
    cache = DiskCache(remote, tmp_path, 1 << 20)
    for _ in range(3):
        assert read(cache, 4) == expected(remote, 4)
    again = DiskCache(remote, tmp_path, 1 << 20)
    assert read(again, 4) == expected(remote, 4)
    assert remote.reads == {4: 1}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_get_range__damage_on_the_disk_is_read_again(tmp_path: Path, damage: str) -> None:
    remote = Remote()
    cache = DiskCache(remote, tmp_path, 1 << 20)
    read(cache, 4)
    path = next(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": data, "cut": data[:700], "empty": b""}[damage])
    assert read(cache, 4) == expected(remote, 4)
    assert read(DiskCache(remote, tmp_path, 1 << 20), 4) == expected(remote, 4)
    assert remote.reads == {4: 2}


def test_get_range__what_is_needed_latest_goes_first(tmp_path: Path) -> None:
    """Two epochs in known orders over 100 pieces, of which 40 have room."""
    remote = Remote()
    cache = DiskCache(remote, tmp_path, 40 * (PIECE + 4))
    orders = [torch.randperm(100, generator=torch.Generator().manual_seed(e)) for e in range(4)]
    times = [{int(p): 100 * e + t for t, p in enumerate(order)} for e, order in enumerate(orders)]
    for epoch in range(3):
        remote.reads.clear()
        for piece in orders[epoch].tolist():
            assert read(cache, piece, times[epoch + 1][piece]) == expected(remote, piece)
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 40 * (PIECE + 4)
    # With the oldest going first it would be nearly all, because each is needed once an epoch.
    assert remote.reads.total() < 72


def test_init__takes_over_what_another_process_kept(tmp_path: Path) -> None:
    remote = Remote()
    first, other = DiskCache(remote, tmp_path, 1 << 20), DiskCache(remote, tmp_path, 1 << 20)
    read(first, 1, 7)
    assert read(other, 1, 7) == expected(remote, 1)
    smaller = DiskCache(remote, tmp_path, 3 * (PIECE + 4))
    for piece in range(10, 16):
        assert read(smaller, piece, 8) == expected(remote, piece)
    assert read(first, 1, 9) == expected(remote, 1)


def test_init__removes_what_a_killed_process_was_writing(tmp_path: Path) -> None:
    (tmp_path / f"{PARTIAL}999999999-x").write_bytes(b"half")
    alive = tmp_path / f"{PARTIAL}{os.getpid()}-x"
    alive.write_bytes(b"half")
    (tmp_path / "not ours.txt").write_bytes(b"kept")
    DiskCache(Remote(), tmp_path, 1 << 20)
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, "not ours.txt"}


def test_get_range__goes_on_when_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote()
    cache = DiskCache(remote, tmp_path, 1 << 20)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    assert read(cache, 4) == expected(remote, 4)
    assert list(tmp_path.iterdir()) == []


def test_init__a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"loader\.local_cache .*file: "):
        DiskCache(Remote(), tmp_path / "file", 1)


def test_get__of_cls_tables_is_remote_once(tmp_path: Path) -> None:
    remote = Remote()
    remote.create("features/x/cls/0.parquet", b"table")
    remote.create("features/x/codec.json", b"codec")
    for _ in range(2):
        cache = DiskCache(remote, tmp_path, 1 << 20)
        assert cache.get("features/x/cls/0.parquet") == b"table"
    remote.delete("features/x/cls/0.parquet")
    assert cache.get("features/x/cls/0.parquet") == b"table"
    remote.delete("features/x/codec.json")
    with pytest.raises(NotFound):
        cache.get("features/x/codec.json")


def test_forget__is_read_again(tmp_path: Path) -> None:
    remote = Remote()
    cache = DiskCache(remote, tmp_path, 1 << 20)
    assert not cache.forget(KEY, 0, 9)
    for expected in (b"damaged!!", b"repaired!"):
        remote.delete(KEY)
        remote.create(KEY, expected)
        assert bytes(cache.get_range(KEY, 0, 9)) == expected
        assert cache.forget(KEY, 0, 9)
    assert list(tmp_path.iterdir()) == []
    assert cache._bytes == 0


def test_get_range__two_at_once_are_counted_once(tmp_path: Path) -> None:
    """Both miss, and both keep: what lies there and what is counted agree."""
    remote, both = Remote(), threading.Barrier(2)
    read_remotely = remote.get_range

    def together(key: str, start: int, end: int) -> memoryview:
        both.wait()
        return read_remotely(key, start, end)

    remote.get_range = together  # type: ignore[method-assign]
    cache = DiskCache(remote, tmp_path, 1 << 20)
    threads = [threading.Thread(target=read, args=(cache, 4, when)) for when in (7, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = tmp_path.iterdir()
    assert cache._bytes == path.stat().st_size


class Counting(LocalStore):
    reads = 0

    def get(self, key: str) -> bytes:
        if "/cls/" in key:
            Counting.reads += 1
        return super().get(key)

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        if "/tokens/c/" in key:
            Counting.reads += 1
        return super().get_range(key, start, end)


def test_stream__serves_the_same_and_reads_less(
    cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = joined(epoch_of(stream_of(cached, pixels=None)))
    monkeypatch.setattr(trainer.cache, "open_store", lambda *_: Counting(cached.cache))
    reads = []
    for _ in range(2):
        Counting.reads = 0
        stream = stream_of(cached, pixels=None, memory_bytes=1, disk=(tmp_path, 1 << 30))
        with closing(iter(stream)) as batches:
            served = joined(list(islice(batches, 9)))
        for name, values in expected.items():
            assert torch.equal(served[name], values), name
        reads.append(Counting.reads)
    assert reads[0] > 0
    assert reads[1] == 0


@pytest.mark.parametrize("what", ["table", "index", "tokens"])
def test_stream__what_was_damaged_when_it_was_kept_is_read_again(
    cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    expected = joined(epoch_of(stream_of(cached, pixels=None)))
    for store in (Damaging(cached.cache, what), LocalStore(cached.cache)):
        monkeypatch.setattr(trainer.cache, "open_store", lambda *_, store=store: store)
        stream = stream_of(cached, pixels=None, disk=(tmp_path, 1 << 30))
        if isinstance(store, Damaging):
            with pytest.raises(DamageError):
                epoch_of(stream)
            assert list(tmp_path.iterdir())
        else:
            assert_equal(joined(epoch_of(stream)), expected)


class Damaging(LocalStore):
    """Reads of one kind have a flipped bit."""

    def __init__(self, root: Path, what: str) -> None:
        super().__init__(root)
        self._what = what

    def get(self, key: str) -> bytes:
        data = super().get(key)
        return bytes(_flipped(data)) if self._what == "table" and "/cls/" in key else data

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        data = super().get_range(key, start, end)
        is_it = "/tokens/c/" in key and self._what == ("tokens" if start else "index")
        return memoryview(_flipped(data)) if is_it else data


def _flipped(data: Bytes) -> bytearray:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 1
    return changed
