"""A store on which chosen operations go wrong, whatever their kind."""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeVar, get_args

from infra.buffers import Buffers, room_of, spread
from infra.store import Bytes, MemoryStore, ObjectStore
from schemas.errors import StoreError

Fault = Literal["before", "after", "reply lost", "refused", "delayed"]
"""The process dies before the operation or after it; it is done, and an error comes instead of the
reply; it is refused, once; others come first."""
FAULTS: tuple[Fault, ...] = get_args(Fault)
ENDING: tuple[Fault, ...] = ("before", "after", "reply lost", "refused")
Result = TypeVar("Result")


class Died(BaseException):
    """The process is dead: no handler of ours may catch this and go on."""


class FaultStore:
    """What one process sees of another store.

    Args:
        faults: what becomes of the n-th operation. Beats of a lease are not counted: they come by
            the clock.
        hold: returns when an operation that is delayed may happen.
    """

    def __init__(
        self, store: ObjectStore, faults: Mapping[int, Fault], hold: Callable[[], object]
    ) -> None:
        self.url = store.url
        self.operations: list[str] = []
        """What was asked for, as `create KEY`."""
        self.struck: list[str] = []
        """What went wrong, in words."""
        self._store, self._faults, self._hold = store, faults, hold
        self._dead = False
        self._lock = threading.Lock()

    def end(self) -> None:
        """The process has ended: what its threads still try comes to nothing."""
        with self._lock:
            self._dead = True

    def create(self, key: str, data: Bytes) -> None:
        self._do(f"create {key}", lambda: self._store.create(key, data))

    def get(self, key: str) -> bytes:
        return self._do(f"get {key}", lambda: self._store.get(key))

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        return self._do(f"get_range {key}", lambda: self._store.get_range(key, start, end))

    def fill(self, key: str, start: int, buffers: Buffers) -> int:
        return spread(self.get_range(key, start, start + room_of(buffers)), buffers)

    def size(self, key: str) -> int:
        return self._do(f"size {key}", lambda: self._store.size(key))

    def keys(self, prefix: str) -> Iterator[str]:
        return iter(self._do(f"keys {prefix}", lambda: list(self._store.keys(prefix))))

    def delete(self, key: str) -> None:
        self._do(f"delete {key}", lambda: self._store.delete(key))

    def _do(self, what: str, operation: Callable[[], Result]) -> Result:
        fault = self._fault(what)
        if fault == "delayed":
            self._hold()
        with self._lock:
            if fault == "before":
                self._dead = True
            if self._dead:
                raise Died
            if fault == "refused":
                raise StoreError(f"{what}: refused")
            try:
                return operation()
            finally:
                if fault == "after":
                    self._dead = True
                    raise Died
                if fault == "reply lost":
                    raise StoreError(f"{what}: the connection was closed")

    def _fault(self, what: str) -> Fault | None:
        if threading.current_thread().name == "lease":
            return None
        with self._lock:
            if self._dead:
                return None
            fault = self._faults.get(len(self.operations))
            self.operations.append(what)
            if fault is not None:
                self.struck.append(f"{fault}: {what}")
            return fault


def faults_of(operation: str) -> tuple[Fault, ...]:
    """Those that make a difference to one process: whoever dies at a read leaves what it leaves at
    the write before or after it, and a read whose reply is lost is one refused."""
    return FAULTS if operation.startswith(("create", "delete")) else ("refused",)


def copy_of(store: ObjectStore) -> MemoryStore:
    copy = MemoryStore(store.url)
    for key, data in objects(store).items():
        copy.create(key, data)
    return copy


def objects(store: ObjectStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.keys("")}
