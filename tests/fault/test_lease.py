"""A job at work is seen to be, whatever its store does; a dead one is in nobody's way."""

import threading

import pytest

import pipeline.lease
from infra.store import Bytes, MemoryStore
from pipeline.lease import lease, live_jobs
from schemas.errors import ConfigError, StoreError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As seconds are to a person, so these are to a test."""
    monkeypatch.setattr(pipeline.lease, "BEAT_S", 0.05)
    monkeypatch.setattr(pipeline.lease, "WATCH_S", 0.5)


def test_lease__a_dead_job_is_not_live() -> None:
    store = MemoryStore()
    store.create("jobs/0123456789ab/1234", b"\n")
    assert live_jobs(store) == {}
    with lease(store, "extract", ("a",)) as job:
        assert set(live_jobs(store)) == {job}
    assert live_jobs(store) == {}


class Flaky(MemoryStore):
    """Each second beat is written, though its reply is lost; and nothing may be removed."""

    def create(self, key: str, data: Bytes) -> None:
        super().create(key, data)
        if key[-1] in "13579":
            raise StoreError(f"{key}: the connection was closed")

    def delete(self, key: str) -> None:
        raise StoreError(f"{key}: not allowed")


def test_lease__a_beat_whose_reply_is_lost_does_not_end_a_job() -> None:
    store = Flaky()
    with lease(store, "extract", ("a",)) as job:
        for _ in range(3):
            assert set(live_jobs(store)) == {job}
    assert live_jobs(store) == {}


def test_lease__of_a_store_that_cannot_be_written() -> None:
    class Full(MemoryStore):
        def create(self, key: str, data: Bytes) -> None:
            raise StoreError(f"{key}: the disk is full")

    message = r"memory://: nothing can be written .* is full"
    with pytest.raises(ConfigError, match=message), lease(Full(), "extract"):
        pass


def test_lease__a_job_waits_for_a_gc_at_work() -> None:
    store = MemoryStore()
    began = threading.Event()

    def job() -> None:
        with lease(store, "extract", ("a",)):
            began.set()

    thread = threading.Thread(target=job)
    with lease(store, "gc"):
        thread.start()
        assert not began.wait(1.5)
    assert began.wait(5)
    thread.join()
