"""From plan rows to the squares that teachers are fed: each picture is read and decoded once,
ahead of the forward, on threads."""

import hashlib
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from infra.pixels.decode import decode
from infra.pixels.limits import DEFAULT
from infra.pixels.views import Draws, Pixels, pixels_digest, see
from infra.redact import printable
from infra.sources import Source
from schemas.errors import ImageError, SourceError
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
PATIENCE_S = 300.0
"""With one picture, from when its reading began; the worst that is within the limits takes a core
ten seconds (README, "Decisions")."""
LOOK_S = 1.0
"""How often, while a picture is waited for, somebody looks whether one is stuck."""


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
        self._at_work: dict[int, tuple[str, float]] = {}
        """By thread: the key of the picture that it has begun with, and when."""

    def start(self, name: Hashable, views: Views, orders: Sequence[Order]) -> None:
        """Begin with a span's first chunk before the span's turn has come. What was begun before
        and never came is dropped."""
        if name not in self._started:
            self._started = {name: self._submit(views, orders, 0)}

    def chunks(
        self, name: Hashable, views: Views, orders: Sequence[Order]
    ) -> Iterator[tuple[int, dict[int, Picture]]]:
        """(first image, {image: picture}) of each chunk in order, without images not wanted.

        Raises:
            SourceError: a picture is stuck, in a decoder or a file system. What runs in a thread
                cannot be stopped, so no more is made of it here than its name.
        """
        self.start(name, views, orders)
        ahead = self._started.pop(name)
        for first in range(0, len(orders), self.chunk_images):
            now = ahead
            ahead = self._submit(views, orders, first + self.chunk_images)
            yield first, {image: self._result(future) for image, future in now.items()}

    def _result(self, future: Future[Picture]) -> Picture:
        while not wait([future], LOOK_S).done:
            self._refuse_stuck()
        return future.result()

    def _refuse_stuck(self) -> None:
        # One that waits for a thread is not stuck, whatever is: so those are asked that have begun.
        for key, begun in list(self._at_work.values()):
            seconds = time.monotonic() - begun
            if seconds > PATIENCE_S:
                raise SourceError(
                    f"images {self._source.url}: reading and decoding {printable(key)} has not "
                    f"ended in {seconds:.0f} s; what was committed stays. Look whether it can be "
                    "read at all, take that picture out, and run again"
                )

    def _make(self, views: Views, order: Order) -> Picture:
        thread = threading.get_ident()
        self._at_work[thread] = order.key, time.monotonic()
        try:
            return make_picture(self._source, views, order)
        finally:
            del self._at_work[thread]

    def _submit(self, views: Views, orders: Sequence[Order], first: int) -> Chunk:
        return {
            image: self._pool.submit(self._make, views, orders[image])
            for image in range(first, min(first + self.chunk_images, len(orders)))
            if orders[image].squares
        }
