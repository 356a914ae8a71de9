"""A store that nothing is written to: to ask a cache what would become of it."""

from collections.abc import Iterator

from infra.buffers import Buffers
from infra.store import Bytes, MemoryStore, ObjectStore
from schemas.errors import AlreadyExists, NotFound


class Unwritten:
    """A store whose new objects are kept in memory: whoever writes through it finds them, the
    store never gets them."""

    def __init__(self, store: ObjectStore) -> None:
        self.url = store.url
        self._store, self._kept = store, MemoryStore(store.url)

    def create(self, key: str, data: Bytes) -> None:
        try:
            self._store.size(key)
        except NotFound:
            self._kept.create(key, data)
        else:
            raise AlreadyExists(f"{self.url}: {key} exists already", key=key)

    def get(self, key: str) -> bytes:
        return self._holder(key).get(key)

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        return self._holder(key).get_range(key, start, end)

    def fill(self, key: str, start: int, buffers: Buffers) -> int:
        return self._holder(key).fill(key, start, buffers)

    def size(self, key: str) -> int:
        return self._holder(key).size(key)

    def keys(self, prefix: str) -> Iterator[str]:
        yield from self._store.keys(prefix)
        yield from self._kept.keys(prefix)

    def delete(self, key: str) -> None:
        """Only what was created here: the store keeps its own."""
        self._kept.delete(key)

    def _holder(self, key: str) -> ObjectStore:
        try:
            self._kept.size(key)
        except NotFound:
            return self._store
        return self._kept
