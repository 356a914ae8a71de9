"""Caches to disturb, and the commands that do."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import pipeline.describe
import pipeline.extract
import pipeline.lease
import pipeline.repair
import pipeline.verify
import pipeline.worker
from infra.store import MemoryStore
from pipeline import gc, snapshots
from tests.caches import pictures, undisturbed, verify_here
from tests.fault.commands import GOOD, SHARDS, Commands, Tried
from tests.fault.fault_store import copy_of, objects
from tests.fault.long_job import PICTURES, SETTINGS, WORKERS
from tests.fault.on_disk import Cache


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("interleavings"))


@pytest.fixture
def commands(made: Commands, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    for module in (pipeline.describe, pipeline.worker, pipeline.repair):
        monkeypatch.setattr(module, "load_teacher", made.load_teacher)
    for module in (pipeline.extract, pipeline.worker, pipeline.verify, gc, snapshots):
        monkeypatch.setattr(module, "open_store", made.open_store)
    monkeypatch.setattr(pipeline.lease, "WATCH_S", 0.01)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield made
    torch.set_num_threads(threads)


@pytest.fixture
def tried(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[Tried]:
    tried = Tried(request.node.name)
    yield tried
    with capsys.disabled():
        print(f"\n{tried.name}: {tried.count:,} interleavings")


@pytest.fixture
def extracted(commands: Commands) -> MemoryStore:
    store = MemoryStore()
    result = commands.on(store, commands.extract)
    assert (result["shards_written"], result["teacher_forwards"]) == (SHARDS, GOOD)
    return store


@pytest.fixture
def littered(commands: Commands) -> MemoryStore:
    """A cache of three teachers, one after another by one name: the first is in no snapshot that
    anybody wants, the second only in the newest; and dead writers have left something everywhere.
    """
    store = MemoryStore()
    first, second, third = (partial(commands.extract, seed) for seed in (1, 2, 3))
    forget = partial(commands.snapshots, forget=(1, 2, 3))
    for action in (first, second, commands.prune, third, forget):
        commands.on(store, action)
    for key in (
        ".check/0123456789ab",
        "features/0123456789ab/g2/fp16-01234567/000000/cls/0.dead.parquet",
        "jobs/0123456789ab/17",
        "plan/000001/00000.dead.parquet",
        "snapshots/000004.dead.parquet",
    ):
        store.create(key, b"left behind")
    return store


@pytest.fixture
def damaged(extracted: MemoryStore) -> MemoryStore:
    """One shard whose tokens are damaged, one whose commit is gone, and every kind of record."""
    store = copy_of(extracted)
    for key, data in objects(extracted).items():
        if key.endswith(("tokens/c/0/0/0", "teacher.json", "codec.json", "zarr.json")):
            store.delete(key)
            store.create(key, bytes([data[0] ^ 1]) + data[1:])
        if key.endswith(("probe.json", "000000/0/1.json")):
            store.delete(key)
    return store


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    """On a disk, and sound also when its test has ended."""
    # As seconds are to a person, so these are to a test.
    monkeypatch.setattr(pipeline.lease, "BEAT_S", 0.05)
    monkeypatch.setattr(pipeline.lease, "WATCH_S", 0.5)
    made = Cache(tmp_path)
    made.extract(1)
    yield made
    assert verify_here(made.folder).status == 0


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of the long job."""
    return pictures(tmp_path_factory.mktemp("long"), PICTURES)


@pytest.fixture(scope="session")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a long job that nothing disturbed."""
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    undisturbed(cache, source, WORKERS, **SETTINGS)
    return cache
