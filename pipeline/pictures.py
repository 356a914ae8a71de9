"""From plan rows to the squares that teachers are fed: each picture is read and decoded once,
ahead of the forward, on threads."""

import hashlib
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from infra.pixels.decode import decode
from infra.pixels.limits import DEFAULT
from infra.pixels.views import Draws, Pixels, pixels_digest, see
from infra.sources import Source
from schemas.errors import ImageError
from schemas.extract_config import Views
from schemas.limits import Limits


@dataclass(frozen=True)
class Square:
    """A view at one size."""

    pixels: Pixels
    sha256: bytes


@dataclass(frozen=True)
class Picture:
    """One image of a span with the squares that were asked for."""

    key: str
    reason: str | None
    """Why it cannot be used; None if it can."""
    image_sha256: bytes | None = None
    width: int | None = None
    height: int | None = None
    squares: dict[tuple[int, int], Square] = field(default_factory=dict)
    """By (view, side in pixels)."""
    seconds: float = 0.0
    missing: bool = False
    """There is no such picture (any more)."""


@dataclass(frozen=True)
class Order:
    """What is wanted of one image: squares by (view, side)."""

    key: str
    draws: dict[int, Draws | None]
    """By view; a generation that adds views has none of those before them."""
    squares: tuple[tuple[int, int], ...]
    limits: Limits = DEFAULT
    reason: str | None = None
    """Why the image is not to be read at all: its rows are bad for this reason."""


Chunk = dict[int, Future[Picture]]


def make_picture(source: Source, views: Views, order: Order) -> Picture:
    """Read, decode and crop one image; a bad one comes back with its reason."""
    if order.reason is not None:
        return Picture(order.key, order.reason)
    start = time.perf_counter()
    sha256 = None
    try:
        data = source.read(order.key)
        sha256 = hashlib.sha256(data).digest()
        image = decode(data, order.limits)
    except ImageError as error:
        missing = bool(getattr(error, "missing", False))
        return Picture(
            order.key, str(error), sha256, seconds=time.perf_counter() - start, missing=missing
        )
    squares = {}
    for view, side in order.squares:
        pixels = see(image, order.draws[view], views, side)
        squares[view, side] = Square(pixels, pixels_digest(pixels))
    seconds = time.perf_counter() - start
    return Picture(order.key, None, sha256, image.width, image.height, squares, seconds)


class DecodeAhead:
    """Decodes chunks of images on threads, one chunk ahead of whoever consumes them."""

    def __init__(self, source: Source, threads: int, chunk_images: int) -> None:
        self.chunk_images = chunk_images
        self._source = source
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._started: dict[Hashable, Chunk] = {}

    def start(self, name: Hashable, views: Views, orders: Sequence[Order]) -> None:
        """Begin with a span's first chunk before the span's turn has come. What was begun before
        and never came is dropped."""
        if name not in self._started:
            self._started = {name: self._submit(views, orders, 0)}

    def chunks(
        self, name: Hashable, views: Views, orders: Sequence[Order]
    ) -> Iterator[tuple[int, dict[int, Picture]]]:
        """(first image, {image: picture}) of each chunk in order, without images not wanted."""
        self.start(name, views, orders)
        ahead = self._started.pop(name)
        for first in range(0, len(orders), self.chunk_images):
            now = ahead
            ahead = self._submit(views, orders, first + self.chunk_images)
            yield first, {image: future.result() for image, future in now.items()}

    def _submit(self, views: Views, orders: Sequence[Order], first: int) -> Chunk:
        return {
            image: self._pool.submit(make_picture, self._source, views, orders[image])
            for image in range(first, min(first + self.chunk_images, len(orders)))
            if orders[image].squares
        }
