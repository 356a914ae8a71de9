"""The self-test at the start: an honest store passes, one that lies is refused by name."""

import contextlib
import threading
import time
from pathlib import Path

import pytest

from infra.store import Bytes, LocalStore, MemoryStore, ObjectStore
from infra.store_check import refuse_unsafe_store
from schemas.errors import AlreadyExists, ConfigError, NotFound, StoreError
from tests.s3server import FaultyGateway, s3_server


class Overwriting(MemoryStore):
    """Takes no notice of create-only."""

    def create(self, key: str, data: Bytes) -> None:
        self._objects[key] = bytes(data)


class Looking(MemoryStore):
    """Looks first and writes afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._looked = threading.Barrier(2)

    def create(self, key: str, data: Bytes) -> None:
        if key in self._objects:
            raise AlreadyExists("", key=key)
        with contextlib.suppress(threading.BrokenBarrierError):
            self._looked.wait(0.2)
        self._objects[key] = bytes(data)


class OverwritingInSilence(MemoryStore):
    """Says that the object was there, and replaces it."""

    def create(self, key: str, data: Bytes) -> None:
        there = key in self._objects
        self._objects[key] = bytes(data)
        if there:
            raise AlreadyExists("", key=key)


@pytest.mark.parametrize("kind", [Overwriting, Looking, OverwritingInSilence])
def test_refuse_unsafe_store__one_that_lies(kind: type[MemoryStore]) -> None:
    store = kind()
    with pytest.raises(ConfigError, match=r"cache memory://: .* overwrite .* If-None-Match"):
        refuse_unsafe_store(store)


class Forgetful(MemoryStore):
    def get(self, key: str) -> bytes:
        raise NotFound(f"memory: no object {key}", key=key)


class Keeping(MemoryStore):
    def delete(self, key: str) -> None:
        raise StoreError("memory: not allowed", key=key)


def test_refuse_unsafe_store__one_that_cannot_be_read_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="no object"):
        refuse_unsafe_store(Forgetful())


def test_refuse_unsafe_store__whoever_may_not_delete_may_write() -> None:
    refuse_unsafe_store(Keeping())


def passes(store: ObjectStore) -> None:
    start = time.monotonic()
    refuse_unsafe_store(store)
    assert time.monotonic() - start < 1
    assert list(store.keys("")) == []


def test_refuse_unsafe_store__honest_ones_in_less_than_a_second(tmp_path: Path) -> None:
    passes(MemoryStore())
    passes(LocalStore(tmp_path / "cache"))


@pytest.mark.s3
def test_refuse_unsafe_store__the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server().enter(monkeypatch)
    passes(s3_server().store())


@pytest.mark.s3
def test_refuse_unsafe_store__a_proxy_that_drops_the_condition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3_server().enter(monkeypatch)
    s3_server().open_to_all("anyone/*")
    # Unsigned: a server that checks signatures notices that a header of a signed request is gone.
    with FaultyGateway(s3_server(), drops="if-none-match").running() as gateway:
        store = gateway.server.store("anyone", anonymous=True)
        with pytest.raises(ConfigError, match=rf"{store.url}.* 4 were .* drops that header"):
            refuse_unsafe_store(store)


@pytest.mark.s3
def test_refuse_unsafe_store__says_what_keeps_it_from_being_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3_server().enter(monkeypatch)
    with FaultyGateway(s3_server()).running() as gateway:
        gateway.strike("answer", times=4, status=403, code="AccessDenied")
        with pytest.raises(ConfigError, match="403 AccessDenied: access was denied"):
            refuse_unsafe_store(gateway.server.store())
