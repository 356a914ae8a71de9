"""One suite, unchanged, over every object store."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.store import LocalStore, MemoryStore, ObjectStore, open_store
from schemas.errors import AlreadyExists, ConfigError, NotFound, StoreError
from tests.s3server import S3Server


class ObjectStoreContract:
    """What `infra/store.py` promises. A subclass has a fixture `store`, an empty one."""

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 999])
    def test_create__then_get(self, store: ObjectStore, data: bytes) -> None:
        store.create("a/b/c.json", data)
        assert store.get("a/b/c.json") == data
        assert store.size("a/b/c.json") == len(data)

    def test_create__takes_any_buffer(self, store: ObjectStore) -> None:
        values = np.arange(12, dtype="<f4").reshape(3, 4)
        store.create("array", memoryview(bytearray(values.tobytes())))
        store.create("bytearray", bytearray(b"xyz"))
        store.create("view", values.data)
        assert store.get("array") == store.get("view") == values.tobytes()
        assert store.get("bytearray") == b"xyz"

    def test_create__keeps_its_own_copy(self, store: ObjectStore) -> None:
        data = bytearray(b"before")
        store.create("k", data)
        data[:] = b"after!"
        assert store.get("k") == b"before"

    def test_create__never_overwrites(self, store: ObjectStore) -> None:
        store.create("k", b"first")
        with pytest.raises(AlreadyExists, match="k exists already") as caught:
            store.create("k", b"second")
        assert caught.value.key == "k"
        assert store.get("k") == b"first"

    def test_create__of_eight_racing_writers_exactly_one_wins(self, store: ObjectStore) -> None:
        candidates = [bytes([writer]) * 300_000 for writer in range(8)]
        for race in range(5):
            barrier = threading.Barrier(8)
            won: list[int] = []
            lost: list[int] = []

            def write(
                writer: int,
                race: int = race,
                barrier: threading.Barrier = barrier,
                won: list[int] = won,
                lost: list[int] = lost,
            ) -> None:
                barrier.wait()
                try:
                    store.create(f"race/{race}", candidates[writer])
                    won.append(writer)
                except AlreadyExists:
                    lost.append(writer)

            threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (len(won), len(lost)) == (1, 7)
            assert store.get(f"race/{race}") == candidates[won[0]]

    @pytest.mark.parametrize("key", ["nothing", "a/nothing", "a", "a/b/c"])
    def test_reading__what_is_not_there(self, store: ObjectStore, key: str) -> None:
        store.create("a/b", b"x")
        reads = (store.get, store.size, lambda key: store.get_range(key, 0, 1))
        for read in (*reads, lambda key: store.fill(key, 0, [np.zeros(1)])):
            with pytest.raises(NotFound, match=f"no object {key}"):
                read(key)

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, 3, b"012"),
            (3, 3, b""),
            (7, 10, b"789"),
            (7, 99, b"789"),
            (10, 20, b""),
            (50, 60, b""),
        ],
    )
    def test_get_range__ends_where_the_object_does(
        self, store: ObjectStore, start: int, end: int, expected: bytes
    ) -> None:
        store.create("digits", b"0123456789")
        assert bytes(store.get_range("digits", start, end)) == expected

    @pytest.mark.parametrize("start", [0, 3, 6, 9, 10, 50])
    def test_fill__as_far_as_the_object_goes(self, store: ObjectStore, start: int) -> None:
        store.create("digits", b"0123456789")
        room = np.full(9, ord("-"), np.uint8)
        buffers = [room[:2], room[3:7].view("<u2").reshape(2, 1), room[8:]]
        expected = b"0123456789"[start : start + 7]
        assert store.fill("digits", start, buffers) == len(expected)
        assert b"".join(buffer.tobytes() for buffer in buffers) == expected.ljust(7, b"-")
        assert room[2:8:5].tobytes() == b"--"

    def test_keys__are_by_prefix_of_the_text_not_of_folders(self, store: ObjectStore) -> None:
        everything = {"a/b/1.json", "a/b/10.json", "a/c/1.json", "ab/1.json", "b"}
        for key in everything:
            store.create(key, b"")
        for prefix in ("", "a", "a/", "a/b", "a/b/", "a/b/1", "a/b/1.json", "a/x", "x/y/", "b"):
            expected = sorted(key for key in everything if key.startswith(prefix))
            assert sorted(store.keys(prefix)) == expected, prefix

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            "a/..",
            ".",
            "a/./b",
            "a//b",
            "a/",
            "a\0b",
            "a\nb",
            "a\x7f",
            "a\udcffb",
            ".partial/a",
        ],
    )
    def test_keys__that_are_none_are_refused_everywhere(self, store: ObjectStore, key: str) -> None:
        reads = (store.get, store.size, lambda key: store.get_range(key, 0, 1))
        for use in (*reads, store.delete, lambda key: store.create(key, b"")):
            with pytest.raises(StoreError, match="is not a key") as caught:
                use(key)
            assert not isinstance(caught.value, NotFound)

    @pytest.mark.parametrize("prefix", ["../", "/", "/etc/", "a/../../"])
    def test_keys__a_prefix_cannot_leave_the_store(self, store: ObjectStore, prefix: str) -> None:
        with pytest.raises(StoreError, match="is not a key"):
            list(store.keys(prefix))

    def test_keys__with_odd_characters(self, store: ObjectStore) -> None:
        keys = {"a b/c%20.json", "ü/é.json", "a..b/...c", "[x]*?.json", "~a#b/+&=;@.json", "日本"}
        for key in keys:
            store.create(key, key.encode())
        assert set(store.keys("")) == keys
        assert all(store.get(key) == key.encode() for key in keys)

    def test_delete__removes_the_object_and_no_other(self, store: ObjectStore) -> None:
        for key in ("a/b", "a/bc", "a/b2/c"):
            store.create(key, b"x")
        store.delete("a/b")
        assert sorted(store.keys("")) == ["a/b2/c", "a/bc"]
        with pytest.raises(NotFound):
            store.get("a/b")
        store.create("a/b", b"again")
        assert store.get("a/b") == b"again"

    @pytest.mark.parametrize("key", ["nothing", "a/nothing", "a", "a/b/c"])
    def test_delete__of_what_is_not_there_is_no_error(self, store: ObjectStore, key: str) -> None:
        store.create("a/b", b"x")
        store.delete(key)
        assert store.get("a/b") == b"x"


class TestMemoryStore(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryStore()


WRITE = """
import sys
from pathlib import Path
from infra.store import LocalStore
print("writing", flush=True)
for number in range(1000):
    LocalStore(Path(sys.argv[1])).create(f"big/{number}", bytes(32 << 20))
"""


def file_sizes(root: Path) -> Iterator[int]:
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it may have got its name in between
            yield path.stat().st_size if path.is_file() else 0


class TestLocalStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return LocalStore(tmp_path / "cache")

    def test_create__a_killed_writer_leaves_no_object(self, tmp_path: Path) -> None:
        root = tmp_path / "cache"
        command = [sys.executable, "-c", WRITE, str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            deadline = time.monotonic() + 10
            # In the middle of an object: something lies there that is not whole yet.
            while not any(0 < size < 32 << 20 for size in file_sizes(root)):
                if time.monotonic() > deadline:
                    break
            process.kill()
        store = LocalStore(root)
        assert {store.size(key) for key in store.keys("")} <= {32 << 20}
        assert all(not key.startswith(".partial") for key in store.keys(""))
        # Nothing that was left behind is in the way of the next writer.
        store.create("big/next", b"whole")
        assert store.get("big/next") == b"whole"

    def test_create__goes_on_after_a_short_write(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data)[:7]))
        values = np.arange(30, dtype="<f4").reshape(5, 6)
        store.create("k", values.data)
        assert store.get("k") == values.tobytes()

    def test_create__leaves_nothing_but_the_object(self, store: LocalStore) -> None:
        store.create("a/b", b"x")
        with pytest.raises(AlreadyExists):
            store.create("a/b", b"y")
        assert [path for path in store.root.rglob("*") if path.is_file()] == [store.root / "a/b"]

    def test_create__a_full_or_forbidden_folder_is_an_error_that_names_it(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StoreError, match=r"file/cache: writing a failed"):
            LocalStore(tmp_path / "file" / "cache").create("a", b"x")

    def test_store__two_openings_are_one_store(self, tmp_path: Path) -> None:
        open_store(f"file://{tmp_path}/c").create("k", b"x")
        assert open_store(os.path.relpath(tmp_path / "c")).get("k") == b"x"


@pytest.mark.s3
class TestS3Store(ObjectStoreContract):
    """Over the server that TEACHONCE_TEST_S3 names, or moto."""

    @pytest.fixture
    def store(self, server: S3Server) -> ObjectStore:
        return server.store()

    def test_keys__of_several_pages(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("infra.s3_store._PAGE", 4)
        keys = {f"a/{number}" for number in range(10)} | {"a/3/b", "b"}
        for key in keys:
            store.create(key, b"")
        assert sorted(store.keys("")) == sorted(keys)
        assert sorted(store.keys("a/")) == sorted(keys - {"b"})


def test_open_store__memory_is_the_same_for_the_same_name() -> None:
    open_store("memory://contract-one").create("k", b"x")
    assert open_store("memory://contract-one").get("k") == b"x"
    assert list(open_store("memory://contract-two").keys("")) == []


def test_open_store__a_scheme_without_a_store() -> None:
    with pytest.raises(ConfigError, match=r"gs://b/c: .*give a path"):
        open_store("gs://b/c")
