"""Whatever dies, and wherever: one plain rerun gives the cache of a run that nothing disturbed."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import pipeline.extract
import pipeline.verify
import pipeline.worker
from infra.models.timm_encoder import build_timm
from infra.store import Bytes, MemoryStore, ObjectStore
from schemas.errors import TeachonceError
from tests.caches import (
    VIT,
    Array,
    assert_same,
    commits,
    config_of,
    contents,
    extract_here,
    pictures,
    verify_here,
)
from tests.fault.fault_store import Died, Fault, FaultStore

IMAGES, VIEWS = 39, 2
GOOD = (IMAGES - 1) * VIEWS
SHARDS = 3
WRITES = 15 + 3 * SHARDS
"""Constants, plan (2), calibration, teacher, codec, array, snapshot (2); and each shard's."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Loading a model sets torch's threads for a moment, which racing jobs would see."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = pictures(tmp_path_factory.mktemp("crashes"), IMAGES - 1)
    (folder / "empty.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a file: random ones are made by a generator that two threads would share."""
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(build_timm("test_vit", {}, "random:1").model.state_dict(), path)
    return path


class Job:
    """One extraction, again and again, over stores that the test chooses."""

    def __init__(self, source: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        teachers = {"vit": VIT | {"weights": str(weights)}}
        changes = {"views": {"per_image": VIEWS}, "teachers": teachers, "tolerate_bad_images": 1}
        self._config = config_of("memory://", source, **changes)

    def run(self, store: ObjectStore) -> dict[str, Any]:
        self.use(store)
        return self.again()

    def use(self, store: ObjectStore) -> None:
        for module in (pipeline.extract, pipeline.worker, pipeline.verify):
            self._patch.setattr(module, "open_store", lambda *_: store)

    def again(self) -> dict[str, Any]:
        outcome = extract_here(self._config)
        assert outcome.status == 0
        return outcome.result


@pytest.fixture
def job(source: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(source, weights, monkeypatch)


def undisturbed(job: Job) -> dict[str, Array]:
    store = MemoryStore()
    result = job.run(store)
    assert (result["shards_written"], result["teacher_forwards"]) == (SHARDS, GOOD)
    return contents(store)


def objects(store: ObjectStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.keys("")}


@pytest.mark.parametrize("fault", ["before", "after", "reply lost"])
def test_extract__dies_at_every_write_in_turn(job: Job, fault: Fault) -> None:
    expected = undisturbed(job)
    struck = []
    for at in itertools.count():
        store = MemoryStore()
        faulty = FaultStore(store, fault, at)
        with suppress(Died, TeachonceError):
            job.run(faulty)
        faulty.end()
        if faulty.struck is None:
            break
        struck.append(faulty.struck)
        committed, left = commits(store), objects(store)
        result = job.run(store)
        assert_same(contents(store), expected)
        assert {key: store.get(key) for key in left} == left, faulty.struck
        done = sum(commit.ok for commit in committed.values())
        assert result["teacher_forwards"] == GOOD - done, faulty.struck
        assert result["shards_written"] == SHARDS - len(committed), faulty.struck
        assert (result["rows"], result["ok"], result["bad"]) == (GOOD + 2, GOOD, 2)
        assert result["snapshot"] == 1
        assert verify_here("memory://").status == 0, faulty.struck
    kinds = {key.partition("/")[0] for key in struck}
    assert kinds == {
        "cache.json",
        "plan",
        "commits",
        "teachers",
        "features",
        "snapshots",
        "jobs",
        ".check",
    }
    assert len(struck) == WRITES


def test_extract__dies_again_and_again(job: Job) -> None:
    """Each attempt gets a few writes further than the one before."""
    expected = undisturbed(job)
    store = MemoryStore()
    for attempt in itertools.count():
        assert attempt < WRITES, "no progress"
        faulty = FaultStore(store, "after", at=5)  # one tries the store, two are the lease
        with suppress(Died):
            job.run(faulty)
        faulty.end()
        if faulty.struck is None:
            break
    assert attempt > 4
    assert_same(contents(store), expected)
    job.use(store)
    assert verify_here("memory://").status == 0


class Interleaved(MemoryStore):
    """Gives way before each write, so that two jobs meet at all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []
        self._pause = itertools.cycle([0.0, 0.004, 0.001, 0.002, 0.0, 0.003, 0.001])

    def create(self, key: str, data: Bytes) -> None:
        time.sleep(next(self._pause))
        super().create(key, data)
        self.written.append(key)


def test_extract__two_jobs_race(job: Job) -> None:
    expected = undisturbed(job)
    for _ in range(6):
        store, barrier = Interleaved(), threading.Barrier(2)
        job.use(store)

        def race(_: int, barrier: threading.Barrier = barrier) -> dict[str, Any]:
            barrier.wait()
            return job.again()

        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(race, range(2))
        assert_same(contents(store), expected)
        assert one["shards_written"] + other["shards_written"] == SHARDS
        assert one["ok"] == other["ok"] == GOOD
        assert len(store.written) == len(set(store.written))
        assert verify_here("memory://").result["shards"] == SHARDS
        assert verify_here("memory://").status == 0
        assert job.again()["teacher_forwards"] == 0
