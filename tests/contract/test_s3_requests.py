"""What becomes of a request whose reply is lost, late, cut short, or says no."""

import contextlib
import os
import random
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from infra import s3_client, s3_requests
from infra.s3_store import S3Store
from schemas.errors import AlreadyExists, NotFound, StoreError
from tests.s3server import FaultyGateway, S3Server, s3_server

pytestmark = pytest.mark.s3
DATA = bytes(range(256)) * 40
TOKEN = "the-token-of-a-session"


@pytest.fixture
def store(gateway: FaultyGateway) -> S3Store:
    return gateway.server.store()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "PATIENCE_S", 0.5)
    monkeypatch.setattr(s3_requests, "UNREACHABLE_PATIENCE_S", 0.5)


def beside(store: S3Store) -> S3Store:
    """The same objects, not through the gateway."""
    return s3_server().store(store.url.rpartition("/")[2])


Use = Callable[[S3Store], object]
USES: dict[str, Use] = {
    "create": lambda store: store.create("new", DATA),
    "get": lambda store: store.get("k"),
    "get_range": lambda store: bytes(store.get_range("k", 5, 500)),
    "size": lambda store: store.size("k"),
    "keys": lambda store: sorted(store.keys("")),
    "delete": lambda store: store.delete("k"),
}
every_use = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


@every_use
@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (0, "")])
def test_ask__passes_over_what_passes(
    gateway: FaultyGateway, store: S3Store, use: Use, status: int, code: str
) -> None:
    beside(store).create("k", DATA)
    expected = use(store)
    if use is USES["create"]:
        store.delete("new")
    gateway.requests.clear()
    gateway.strike("answer", times=2, status=status, code=code)
    assert use(store) == expected
    assert len(gateway.requests) == 3


# Not a whole object with another length in its header: nothing else tells its size.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("get", "cut"),
        ("get_range", "cut"),
        ("get_range", "shorten"),
        ("keys", "cut"),
        ("keys", "shorten"),
    ],
)
def test_ask__never_takes_half_a_reply(
    gateway: FaultyGateway, store: S3Store, name: str, kind: str
) -> None:
    store.create("k", DATA)
    gateway.strike(kind, times=2)
    expected = {"get": DATA, "get_range": DATA[5:500], "keys": ["k"]}[name]
    assert USES[name](store) == expected
    assert len(gateway.requests) == 4


@pytest.mark.usefixtures("impatient")
def test_ask__names_a_reply_that_is_always_short(gateway: FaultyGateway, store: S3Store) -> None:
    store.create("k", DATA)
    gateway.strike("shorten", times=99)
    with pytest.raises(StoreError, match=r"reading k failed after \d+ attempts .* short reply"):
        store.get_range("k", 0, 100)


@every_use
def test_ask__does_not_wait_for_a_late_reply_for_ever(
    gateway: FaultyGateway, monkeypatch: pytest.MonkeyPatch, use: Use
) -> None:
    monkeypatch.setattr(s3_client, "REPLY", timedelta(seconds=0.3))
    store = gateway.server.store()
    beside(store).create("k", DATA)
    gateway.strike("stall", seconds=0.6)
    use(store)
    assert gateway.faults == type(gateway.faults)()


@pytest.mark.usefixtures("impatient")
@every_use
def test_ask__ends(gateway: FaultyGateway, store: S3Store, use: Use) -> None:
    gateway.strike("answer", times=99, status=503, code="SlowDown")
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"attempts in \d s: 503.*; .* run again"):
        use(store)
    assert time.monotonic() - start < 3


@pytest.mark.usefixtures("impatient")
@every_use
def test_ask__an_endpoint_that_is_not_there(use: Use) -> None:
    store = s3_server().store(endpoint="http://127.0.0.1:9", anonymous=True)
    with pytest.raises(StoreError, match=r"127.0.0.1:9\).* refused; check store.endpoint"):
        use(store)


def test_ask__a_user_is_not_kept_waiting() -> None:
    assert s3_requests.UNREACHABLE_PATIENCE_S <= 15
    assert s3_requests.PATIENCE_S <= 60


@every_use
@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", "403.*: access was denied; .* s3:PutObject"),
        (400, "ExpiredToken", "400.*credentials have expired; get new ones"),
        (301, "PermanentRedirect", "another region.*; set store.region"),
    ],
)
def test_ask__a_no_is_taken_for_one(
    gateway: FaultyGateway,
    store: S3Store,
    use: Use,
    status: int,
    code: str,
    message: str,
) -> None:
    gateway.strike("answer", status=status, code=code)
    if use is USES["size"] and status == 400:
        message = "400: not expected"  # the reply to HEAD has no body
    with pytest.raises(StoreError, match=message) as caught:
        use(store)
    assert not isinstance(caught.value, NotFound | AlreadyExists)
    assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("AuthorizationHeaderMalformed", "another region, eu-north-7; set store.region"),
        ("SignatureDoesNotMatch", "check AWS_SECRET_ACCESS_KEY"),
        ("InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
        ("RequestTimeTooSkewed", "clock"),
    ],
)
def test_ask__says_what_to_do(
    gateway: FaultyGateway, store: S3Store, code: str, message: str
) -> None:
    gateway.strike("answer", status=400, code=code)
    with pytest.raises(StoreError, match=message):
        store.get("k")


def test_ask__a_store_that_ignores_ranges(gateway: FaultyGateway, store: S3Store) -> None:
    gateway.strike("answer", status=200)
    with pytest.raises(StoreError, match="ignores the range"):
        store.get_range("k", 0, 1)


def test_ask__a_store_without_conditional_puts(gateway: FaultyGateway, store: S3Store) -> None:
    gateway.strike("answer", status=501, code="NotImplemented")
    with pytest.raises(StoreError, match="must honour If-None-Match"):
        store.create("k", b"")


def test_ask__what_was_signed_is_not_repeated(
    gateway: FaultyGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    store = gateway.server.store()
    gateway.strike("answer", status=403, code="SignatureDoesNotMatch")
    with pytest.raises(StoreError) as caught:
        store.get("k")
    assert gateway.requests[0][1]["x-amz-security-token"] == TOKEN
    server: S3Server = gateway.server
    for secret in (TOKEN, server.secret, server.key):
        assert secret not in f"{caught.value!r} {vars(caught.value)}"
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_ask__leaves_the_seeded_generator_alone(gateway: FaultyGateway, store: S3Store) -> None:
    state = random.getstate()
    gateway.strike("answer", times=2, status=503)
    with contextlib.suppress(NotFound):
        store.get("k")
    assert random.getstate() == state


def test_gateway__passes_the_process_on(gateway: FaultyGateway) -> None:
    """What the tests above stand on: without a fault it changes nothing, signatures included."""
    store = gateway.server.store()
    store.create("ü/k", os.urandom(100_000))
    assert store.get("ü/k") == beside(store).get("ü/k")
