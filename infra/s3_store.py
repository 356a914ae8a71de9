"""A cache on S3: each object one PUT, create-only, so that it is there whole or not at all.

A multipart upload is never used: not every store that honours If-None-Match on a PUT does so where
a multipart upload is completed. And nothing is ever replaced on condition of its etag, because
stores disagree about that as well; what changes is a new object with the next number.
"""

from collections.abc import Iterator
from functools import partial
from pickle import PickleBuffer

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from infra.buffers import Buffers, room_of, spread
from infra.s3_client import LARGE_BYTES, connect
from infra.s3_requests import Fault, ShortReply, ask
from infra.store import Bytes, checked_key
from schemas.errors import AlreadyExists, StoreError
from schemas.store_config import StoreOptions

MOST_BYTES = 5 << 30
"""What S3 takes in one PUT."""
_PAGE = 1000


class S3Store:
    """The objects below a prefix of a bucket.

    Pickled, it is its URL and options: another process finds its own credentials.
    """

    def __init__(self, url: str, options: StoreOptions) -> None:
        self._connections = connect(url, options)
        self._place = self._connections.place
        self._options = options
        self.url = self._place.url

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str, StoreOptions]]:
        return S3Store, (self.url, self._options)

    def create(self, key: str, data: Bytes) -> None:
        """Write an object that must not exist.

        Where a reply was lost, the object may be there and be ours: one that then stands in the way
        and holds these very bytes is taken for it. If another writer made it, nobody can tell.

        Raises:
            AlreadyExists: another was first.
            StoreError: it cannot be written, or nobody knows whether it was; or it is too large.
        """
        path = self._path(key)
        body = PickleBuffer(data).raw()
        if body.nbytes > MOST_BYTES:
            raise StoreError(
                f"{self._place}: writing {key} failed: it has {body.nbytes} bytes, and S3 takes "
                f"{MOST_BYTES} in one piece; use smaller shards",
                key=key,
            )
        large = body.nbytes > LARGE_BYTES
        connection = self._connections.patient if large else self._connections.quick
        may_be_ours = False

        def attempt() -> None:
            nonlocal may_be_ours
            try:
                obstore.put(connection, path, body, mode="create", use_multipart=False)
                return
            except (BaseError, OSError) as error:
                fault = Fault.of(error)
                stands = isinstance(error, AlreadyExistsError) and not fault.passing
                if not stands:
                    may_be_ours = may_be_ours or not fault.unreachable
                    raise
            if not (may_be_ours and self._whole(path) == body):
                raise AlreadyExists(f"{self.url}: {key} exists already", key=key)

        ask(self._place, "writing", key, attempt)

    def get(self, key: str) -> bytes:
        return bytes(ask(self._place, "reading", key, partial(self._whole, self._path(key))))

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        path = self._path(key)
        if start >= end:  # S3 takes no range that has nothing in it
            self.size(key)
            return memoryview(b"")
        return ask(self._place, "reading", key, partial(self._part, path, start, end))

    def fill(self, key: str, start: int, buffers: Buffers) -> int:
        return spread(self.get_range(key, start, start + room_of(buffers)), buffers)

    def size(self, key: str) -> int:
        return ask(self._place, "reading", key, partial(self._size, self._path(key)))

    def keys(self, prefix: str) -> Iterator[str]:
        root = self._place.prefix
        if "/" in prefix:
            root = self._path(prefix.rpartition("/")[0])
        last = None
        while True:
            # A page each, from the last key on: one that fails is asked for again, no other.
            page = ask(self._place, "listing", prefix, partial(self._page, root, last))
            for path in page:
                key = path.removeprefix(f"{self._place.prefix}/")
                if key.startswith(prefix):
                    yield key
            if len(page) < _PAGE:
                return
            last = page[-1]

    def delete(self, key: str) -> None:
        ask(self._place, "removing", key, partial(self._remove, self._path(key)))

    def _path(self, key: str) -> str:
        checked_key(key, self.url)
        return f"{self._place.prefix}/{key}" if self._place.prefix else key

    def _whole(self, path: str) -> memoryview:
        result = obstore.get(self._connections.quick, path)
        return _counted(result.bytes(), result.meta["size"])

    def _part(self, path: str, start: int, end: int) -> memoryview:
        try:
            result = obstore.get(self._connections.quick, path, options={"range": (start, end)})
        except BaseError as error:
            if Fault.of(error).status == 416 and self._size(path) <= start:
                return memoryview(b"")
            raise
        # obstore has compared the range that the server names with ours and the object's end.
        first, behind = result.range
        return _counted(result.bytes(), behind - first)

    def _size(self, path: str) -> int:
        return obstore.head(self._connections.quick, path)["size"]

    def _page(self, root: str, last: str | None) -> list[str]:
        pages = obstore.list(
            self._connections.quick, prefix=root or None, offset=last, chunk_size=_PAGE
        )
        return [found["path"] for found in next(pages, ())]

    def _remove(self, path: str) -> None:
        try:
            obstore.delete(self._connections.quick, path)
        except FileNotFoundError as error:
            if Fault.of(error).code == "NoSuchBucket":
                raise


def _counted(data: obstore.Bytes, expected: int) -> memoryview:
    """The bytes, if they are as many as the server said there would be."""
    if len(data) != expected:
        raise ShortReply
    return memoryview(data)
