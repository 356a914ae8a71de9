import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.entry import Entry
from infra.pixels.decode import decode
from infra.pixels.views import draw, draw_columns, pixels_digest, see
from infra.plan_reader import PlanReader
from infra.store import MemoryStore
from pipeline import pictures
from pipeline.orders import orders_of_span
from pipeline.pictures import DecodeAhead, Order, make_picture
from schemas import tables
from schemas.errors import ImageError, SourceError
from schemas.extract_config import Columns, Photometric, Views
from schemas.limits import Limits
from schemas.records import ObjectRecord, PlanCommit
from schemas.sealed import digest
from schemas.spans import images_and_views, span_count, span_of
from tests.builders import photograph_bytes

VIEWS = Views(per_image=3, photometric=Photometric())


class Photographs:
    """A source of as many different photographs as it is asked for; notes what was read."""

    url = "/photos"

    def __init__(self) -> None:
        self.read_keys: list[str] = []

    def entries(self) -> Iterator[Entry]:
        raise AssertionError("whoever decodes is told the keys, and lists nothing")

    def read(self, key: str) -> bytes:
        self.read_keys.append(key)
        if key == "gone":
            raise ImageError("there is no such file", missing=True)
        return b"no picture" if key == "broken" else photograph_bytes(int(key))


def planned(keys: list[str], first_view: int = 0, span_images: int = 32) -> PlanReader:
    commit = PlanCommit(
        generation=0,
        first_row=0,
        images=len(keys),
        first_view=first_view,
        views=VIEWS,
        span_images=span_images,
        source="/photos",
        columns=Columns(),
        parts=(),
        superseded=None,
    )
    images, views = images_and_views(commit, np.arange(commit.rows))
    names = [keys[image] for image in images.tolist()]
    columns: dict[str, Any] = {"key": names, "size": [1] * len(names), "etag": [""] * len(names)}
    draws = [draw(key, view, VIEWS) for key, view in zip(names, views.tolist())]
    columns |= {"view": views, **draw_columns(draws)}
    data = tables.to_parquet(pa.table(columns, schema=tables.PLAN))
    store = MemoryStore()
    store.create("plan/0", data)
    part = ObjectRecord(key="plan/0", size=len(data), sha256=digest(data))
    return PlanReader(store, commit.model_copy(update={"parts": (part,)}))


@pytest.mark.parametrize("first_view", [0, 1, 2])
def test_orders_of_span__of_a_generation_that_begins_with_any_view(first_view: int) -> None:
    keys = [str(number) for number in range(40)]
    plan = planned(keys, first_view)
    found: list[str] = []
    for number in range(span_count(plan.commit)):
        orders = orders_of_span(plan, span_of(plan.commit, number), [])
        found += [order.key for order in orders]
        for order in orders:
            assert order.draws == {
                view: draw(order.key, view, VIEWS) for view in range(first_view, 3)
            }
            assert (order.squares, order.reason) == ((), None)
    assert found == keys


def test_orders_of_span__squares_go_to_the_image_of_their_row() -> None:
    plan = planned([str(number) for number in range(40)], first_view=1)
    span = span_of(plan.commit, 1)
    assert (span.images, span.first_row) == (8, 64)
    wanted = [(64 + 3, 1, 32), (64 + 8 + 3, 2, 32), (64 + 8 + 3, 2, 48), (64 + 15, 2, 32)] * 2
    orders = orders_of_span(plan, span, wanted)
    squares = {order.key: order.squares for order in orders if order.squares}
    assert squares == {"35": ((1, 32), (2, 32), (2, 48)), "39": ((2, 32),)}


def test_make_picture__shows_each_view_as_it_was_drawn() -> None:
    draws = {view: draw("7", view, VIEWS) for view in range(3)}
    squares = ((0, 32), (1, 32), (1, 48), (2, 32))
    picture = make_picture(Photographs(), VIEWS, Order("7", draws, squares))
    data = photograph_bytes(7)
    image = decode(data)
    assert picture.reason is None
    assert picture.image_sha256 == hashlib.sha256(data).digest()
    assert (picture.width, picture.height) == image.size
    assert set(picture.squares) == set(squares)
    for (view, side), square in picture.squares.items():
        assert (square.pixels == see(image, draws[view], VIEWS, side)).all()
        assert square.sha256 == pixels_digest(square.pixels)


@pytest.mark.parametrize(
    ("key", "reason", "missing"),
    [("gone", "there is no such file", True), ("broken", "not a picture", False)],
)
def test_make_picture__a_bad_one_comes_with_its_reason(
    key: str, reason: str, missing: bool
) -> None:
    picture = make_picture(Photographs(), VIEWS, Order(key, {0: None}, ((0, 32),)))
    assert reason in (picture.reason or "")
    assert (picture.missing, picture.squares) == (missing, {})
    assert (picture.image_sha256 is None) == missing


def test_make_picture__what_is_ruled_out_is_not_read() -> None:
    source = Photographs()
    order = Order("7", {0: None}, ((0, 32),), reason="stands anew in generation 1")
    picture = make_picture(source, VIEWS, order)
    assert (picture.key, picture.reason) == ("7", "stands anew in generation 1")
    assert (picture.squares, picture.missing, picture.image_sha256) == ({}, False, None)
    assert picture.seconds == 0
    assert source.read_keys == []


def test_decode_ahead__reads_only_what_is_wanted_in_order_and_once() -> None:
    source = Photographs()
    orders = [
        Order(str(number), {0: None}, ((0, 16),) if number % 3 else ()) for number in range(20)
    ]
    ahead = DecodeAhead(source, threads=2, chunk_images=8)
    ahead.start("span", VIEWS, orders)
    chunks = list(ahead.chunks("span", VIEWS, orders))
    assert [first for first, _ in chunks] == [0, 8, 16]
    keys = [(image, picture.key) for _, chunk in chunks for image, picture in chunk.items()]
    wanted = [number for number in range(20) if number % 3]
    assert keys == [(number, str(number)) for number in wanted]
    assert sorted(source.read_keys, key=int) == [str(number) for number in wanted]


@pytest.fixture
def let_go(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What a picture that is stuck waits for until its test has ended; patience is short."""
    monkeypatch.setattr(pictures, "PATIENCE_S", 0.3)
    monkeypatch.setattr(pictures, "LOOK_S", 0.05)
    event = threading.Event()
    yield event
    event.set()


def test_decode_ahead__names_the_picture_that_is_stuck(
    monkeypatch: pytest.MonkeyPatch, let_go: threading.Event
) -> None:
    def decode_or_block(data: bytes, limits: Limits) -> Image.Image:
        if data == photograph_bytes(5):
            let_go.wait()
        return decode(data, limits)

    monkeypatch.setattr(pictures, "decode", decode_or_block)
    orders = [Order(str(number), {0: None}, ((0, 16),)) for number in range(12)]
    ahead = DecodeAhead(Photographs(), threads=1, chunk_images=4)
    chunks = ahead.chunks("span", VIEWS, orders)
    assert [picture.key for picture in next(chunks)[1].values()] == ["0", "1", "2", "3"]
    # The pictures behind it wait for its thread, and are not named.
    with pytest.raises(SourceError, match=r"/photos: .*decoding 5 has not ended in 0 s.*take"):
        next(chunks)


def test_decode_ahead__names_one_of_a_span_that_never_came(
    monkeypatch: pytest.MonkeyPatch, let_go: threading.Event
) -> None:
    source = Photographs()

    def read_or_block(key: str) -> bytes:
        if key == "1\x1b[2J":
            let_go.wait()
        return photograph_bytes(0)

    monkeypatch.setattr(source, "read", read_or_block)
    ahead = DecodeAhead(source, threads=1, chunk_images=4)
    ahead.start("dropped", VIEWS, [Order("1\x1b[2J", {0: None}, ((0, 16),))])
    with pytest.raises(SourceError, match=r"decoding 1\\x1b\[2J has not ended"):
        next(ahead.chunks("span", VIEWS, [Order("2", {0: None}, ((0, 16),))]))


def test_decode_ahead__patience_is_with_one_picture_and_not_with_all_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def decode_slowly(data: bytes, limits: Limits) -> Image.Image:
        time.sleep(0.1)
        return decode(data, limits)

    monkeypatch.setattr(pictures, "decode", decode_slowly)
    monkeypatch.setattr(pictures, "PATIENCE_S", 0.6)
    monkeypatch.setattr(pictures, "LOOK_S", 0.02)
    orders = [Order(str(number), {0: None}, ((0, 16),)) for number in range(12)]
    ahead = DecodeAhead(Photographs(), threads=1, chunk_images=12)
    assert len(next(ahead.chunks("span", VIEWS, orders))[1]) == 12
