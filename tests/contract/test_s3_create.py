"""A create through a gateway that loses, delays and refuses: one object or none, and whose."""

import mmap
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from infra import s3_client, s3_store
from infra.s3_store import S3Store
from schemas.errors import AlreadyExists, StoreError
from tests.s3server import FaultyGateway, s3_server

pytestmark = pytest.mark.s3
DATA = bytes(range(256)) * 40


@pytest.fixture
def store(gateway: FaultyGateway) -> S3Store:
    return gateway.server.store()


@pytest.mark.parametrize("status", [0, 500, 503])
def test_create__whose_reply_was_lost_finds_its_own_object(
    gateway: FaultyGateway, store: S3Store, status: int
) -> None:
    gateway.strike("lose", status=status, code="InternalError")
    store.create("k", DATA)
    assert [method for method, _ in gateway.requests] == ["PUT", "PUT", "GET"]
    assert store.get("k") == DATA


def test_create__that_never_arrived_loses_to_who_came_between(
    gateway: FaultyGateway, store: S3Store
) -> None:
    s3_server().store(store.url.rpartition("/")[2]).create("k", b"of another")
    gateway.strike("answer", status=0)
    with pytest.raises(AlreadyExists, match="k exists already"):
        store.create("k", DATA)
    assert store.get("k") == b"of another"


def test_create__of_equal_bytes_without_a_lost_reply_is_another_writers(
    gateway: FaultyGateway, store: S3Store
) -> None:
    store.create("k", DATA)
    with pytest.raises(AlreadyExists):
        store.create("k", DATA)
    assert [method for method, _ in gateway.requests] == ["PUT", "PUT"]


def test_create__after_a_conflict_without_a_winner_is_tried_again(
    gateway: FaultyGateway, store: S3Store
) -> None:
    gateway.strike("answer", status=409, code="ConditionalRequestConflict")
    store.create("k", DATA)
    assert store.get("k") == DATA


def test_create__when_reading_back_fails_as_well(gateway: FaultyGateway, store: S3Store) -> None:
    gateway.strike("lose")
    gateway.strike("cut", method="GET")
    store.create("k", DATA)
    assert store.get("k") == DATA


@pytest.mark.parametrize("size", [0, 1, s3_client.LARGE_BYTES + 1])
def test_create__is_one_conditional_put(gateway: FaultyGateway, store: S3Store, size: int) -> None:
    store.create("k", bytes(size))
    [(method, headers)] = gateway.requests
    assert (method, headers["if-none-match"]) == ("PUT", "*")
    assert store.size("k") == size


def test_create__of_more_than_one_put_takes_is_refused(store: S3Store) -> None:
    # Pages that nobody touches cost nothing.
    with (
        mmap.mmap(-1, s3_store.MOST_BYTES + 1) as pages,
        memoryview(pages) as data,
        pytest.raises(StoreError, match=r"5368709121 bytes, .* use smaller shards"),
    ):
        store.create("k", data)


def test_create__a_large_one_may_take_longer(
    gateway: FaultyGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "REPLY", timedelta(seconds=0.3))
    store = gateway.server.store()
    gateway.strike("stall", seconds=0.8)
    store.create("k", bytes(s3_client.LARGE_BYTES + 1))
    assert len(gateway.requests) == 1


def test_create__a_killed_writer_leaves_no_object(store: S3Store) -> None:
    script = (
        "import sys; from infra.store import open_store; "
        "from schemas.store_config import StoreOptions; "
        "store = open_store(sys.argv[1], StoreOptions(endpoint=sys.argv[2]))\n"
        "for number in range(1000):\n"
        "    print(number, flush=True); store.create(f'big/{number}', bytes(8 << 20))"
    )
    command = [sys.executable, "-c", script, store.url, s3_server().endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.01)
        process.kill()
    sizes = {key: store.size(key) for key in store.keys("big/")}
    assert len(sizes) >= 2
    assert set(sizes.values()) == {8 << 20}
    store.create("big/next", b"whole")
