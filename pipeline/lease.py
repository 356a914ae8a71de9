"""That a job is at work, for whoever would remove what nobody uses (`gc`).

A job writes down which teachers' sets it works on and then, every few seconds, the next number.
Whether it lives is told by whether the number grows while somebody watches: no two clocks are ever
compared, and a job that died needs no clearing up before the next can run.
"""

import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Literal

from infra.provenance import host
from infra.store import ObjectStore
from schemas import layout
from schemas.errors import ConfigError, DamageError, NotFound, StoreError
from schemas.records import JobRecord
from schemas.sealed import seal, unseal

BEAT_S = 5.0
WATCH_S = 4 * BEAT_S
"""A job whose number has not grown for so long is dead."""


@contextmanager
def lease(
    store: ObjectStore, kind: Literal["extract", "gc"], fingerprints12: tuple[str, ...] = ()
) -> Iterator[str]:
    """While it is open, `gc` leaves alone what this job writes. Gives the job's id.

    A job that begins while a gc is at work waits for its end. Both say that they are there before
    they look for the other, so that at least one of two that begin together sees the other.

    Raises:
        ConfigError: the store cannot be written.
    """
    job = uuid.uuid4().hex[:12]
    record = JobRecord(kind=kind, fingerprints12=fingerprints12, host=host())
    try:
        store.create(layout.job(job), seal(record))
        store.create(layout.beat(job, 0), b"\n")
    except StoreError as error:
        raise ConfigError(f"cache {store.url}: nothing can be written there: {error}") from None
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(store, job, ended), daemon=True, name="lease")
    beats.start()
    try:
        while kind == "extract" and _has_gc(store) and _live(store, "gc"):
            time.sleep(BEAT_S)
        yield job
    finally:
        ended.set()
        beats.join()
        # The work is done, or has failed for a reason of its own; what stays is a dead job's.
        with suppress(StoreError):
            for key in list(store.keys(layout.job_folder(job))):
                store.delete(key)


def _beat(store: ObjectStore, job: str, ended: threading.Event) -> None:
    for number in count(1):
        if ended.wait(BEAT_S):
            return
        # The work itself will say what is wrong with the store. Not the same number again: it may
        # be there though its reply was lost, and would then be in the way for ever.
        with suppress(StoreError):
            store.create(layout.beat(job, number), b"\n")
            store.delete(layout.beat(job, number - 1))


def watch() -> None:
    """Wait for as long as it takes to tell the dead from the living."""
    time.sleep(WATCH_S)


def live_jobs(store: ObjectStore) -> dict[str, JobRecord]:
    """Extractions at work; takes WATCH_S where there are any that might be."""
    return _live(store, "extract")


def _live(store: ObjectStore, kind: str) -> dict[str, JobRecord]:
    """Jobs of a kind whose number grows."""
    before = {job: number for job, number in _numbers(store).items() if _kind(store, job) == kind}
    if before:
        watch()
    live = {}
    for job, number in _numbers(store).items():
        record = _record(store, job)
        if record is not None and record.kind == kind and number > before.get(job, -1):
            live[job] = record
    return live


def _has_gc(store: ObjectStore) -> bool:
    return any(_kind(store, job) == "gc" for job in _numbers(store))


def _kind(store: ObjectStore, job: str) -> str | None:
    record = _record(store, job)
    return None if record is None else record.kind


def _record(store: ObjectStore, job: str) -> JobRecord | None:
    key = layout.job(job)
    try:
        return unseal(store.get(key), JobRecord, key)
    except (NotFound, DamageError):
        return None  # it has just ended


def _numbers(store: ObjectStore) -> dict[str, int]:
    """The highest number of each job."""
    found: dict[str, int] = {}
    for key in store.keys(layout.JOBS):
        match = re.fullmatch(rf"{layout.JOBS}(\w+)/(\d+)", key)
        if match:
            found[match[1]] = max(found.get(match[1], -1), int(match[2]))
    return found
