"""A store that dies, or loses a reply, at one chosen write."""

import threading
from collections.abc import Iterator
from typing import Literal

from infra.store import Bytes, ObjectStore
from schemas.errors import NotFound, StoreError

Fault = Literal["before", "after", "reply lost"]


class Died(BaseException):
    """The process is dead: no handler of ours may catch this and go on."""


class FaultStore:
    """Passes everything on to another store until the fault; a dead process does nothing more.

    Args:
        at: which write is struck, of those that find no object in their way.
    """

    def __init__(self, store: ObjectStore, fault: Fault, at: int) -> None:
        self.url = store.url
        self.struck: str | None = None
        """The key that was being created when it happened."""
        self._store, self._fault, self._at = store, fault, at
        self._creates = 0
        self._dead = False
        self._lock = threading.Lock()

    def create(self, key: str, data: Bytes) -> None:
        with self._lock:
            self._live()
            if self._exists(key) or self._creates != self._at:
                self._store.create(key, data)
                self._creates += 1
                return
            self.struck = key
            if self._fault != "before":
                self._store.create(key, data)
            if self._fault == "reply lost":
                raise StoreError(f"{key}: the connection was closed")
            self._dead = True
            raise Died(key)

    def end(self) -> None:
        """The process has ended: what its threads still try comes to nothing."""
        with self._lock:
            self._dead = True

    def get(self, key: str) -> bytes:
        self._live()
        return self._store.get(key)

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        self._live()
        return self._store.get_range(key, start, end)

    def size(self, key: str) -> int:
        self._live()
        return self._store.size(key)

    def keys(self, prefix: str) -> Iterator[str]:
        self._live()
        return self._store.keys(prefix)

    def delete(self, key: str) -> None:
        self._live()
        self._store.delete(key)

    def _exists(self, key: str) -> bool:
        try:
            self._store.size(key)
        except NotFound:
            return False
        return True

    def _live(self) -> None:
        if self._dead:
            raise Died
