"""Whether a store keeps the one promise that everything else is built on: it is tried out."""

import contextlib
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

from infra.store import ObjectStore
from schemas.errors import AlreadyExists, ConfigError, StoreError

CHECKS = ".check"
"""First part of the keys that are created here, and removed again."""
WRITERS = 4


def refuse_unsafe_store(store: ObjectStore) -> None:
    """Let writers race for one key, and another come late; for whoever is going to write.

    Raises:
        ConfigError: more than one of them won, or none; or the store cannot be written or read.
    """
    key = f"{CHECKS}/{uuid.uuid4().hex}"
    try:
        fault = _fault(store, key)
    except StoreError as error:
        fault = str(error)
    finally:
        # Whoever may not remove anything may still write a cache; what stays is in nobody's way.
        with contextlib.suppress(StoreError):
            store.delete(key)
    if fault is not None:
        raise ConfigError(fault)


def _fault(store: ObjectStore, key: str) -> str | None:
    values = [f"writer {number}".encode() for number in range(WRITERS)]
    start = threading.Barrier(WRITERS)

    def creates(value: bytes) -> bool:
        start.wait()
        return _creates(store, key, value)

    with ThreadPoolExecutor(WRITERS) as threads:
        won = [value for value, first in zip(values, threads.map(creates, values)) if first]
    late = _creates(store, key, b"late")
    stands = store.get(key)
    if len(won) == 1 and not late and stands == won[0]:
        return None
    return (
        f"cache {store.url}: of {WRITERS} writers that raced to create one object {len(won)} were "
        f"told that they did, one that came later was told that it "
        f"{'did too' if late else 'did not'}, and what stands there is "
        f"{'not ' * (stands not in won)}a winner's. Two jobs could "
        "overwrite each other's features. Use a store that honours If-None-Match: * on PUT (Amazon "
        "S3, Ceph's gateway, MinIO and R2 do in their current versions), without a proxy that "
        "drops that header; or a local folder"
    )


def _creates(store: ObjectStore, key: str, value: bytes) -> bool:
    try:
        store.create(key, value)
    except AlreadyExists:
        return False
    return True
