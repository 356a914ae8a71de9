"""Real processes, killed: the driver and a Ray worker half way; and, among the slow tests, driver,
workers and raylet at random moments, on a disk and on S3."""

import os
import random
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from infra.store import LocalStore, ObjectStore
from tests.caches import (
    Array,
    assert_same,
    commits,
    contents,
    pictures,
    settings,
    undisturbed,
    verify_here,
)
from tests.processes import (
    by_module,
    config_file,
    descendants,
    ended,
    is_running,
    kill,
    run,
    start,
    title,
    until,
)
from tests.s3server import s3_server

PICTURES, WORKERS = 320, 2
KILLS, LONGEST_S = 25, 14.0
"""At random, on each store; and how long one is waited for."""
SHARDS = PICTURES * 2 // 32
SETTINGS: dict[str, Any] = {
    "views": {"per_image": 2},
    "grids": [8],
    "workers": {"batch_size": 32, "gpus": 0, "count": WORKERS, "decode_threads": 1},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("kills"), PICTURES)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), source, WORKERS, **SETTINGS)


class Killed:
    """An extraction to be killed, and what was committed at that moment."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.cache = folder / "cache"
        self.store = LocalStore(self.cache)
        values = settings(self.cache, source, **SETTINGS)
        self.words = (by_module("extract"), "--config", config_file(folder / "c.yaml", values))

    def wait_for_commits(self, count: int) -> None:
        until(lambda: len(commits(self.store)) >= count)

    def committed(self) -> dict[Path, int]:
        """Every object of a committed shard, and when it was written."""
        keys: list[str] = []
        for key, commit in commits(self.store).items():
            keys += [key, commit.tokens.key, commit.cls.key]
        return {self.cache / key: (self.cache / key).stat().st_mtime_ns for key in keys}

    def assert_kept(self, before: dict[Path, int]) -> None:
        assert {path: path.stat().st_mtime_ns for path in before} == before


def workers_of(driver: int) -> list[int]:
    workers = [pid for pid in descendants(driver) if title(pid).startswith("ray::Worker")]
    assert len(workers) == WORKERS
    return workers


@pytest.fixture
def job(tmp_path: Path, source: Path) -> Killed:
    return Killed(tmp_path, source)


def test_extract__driver_killed_half_way(job: Killed, expected: dict[str, Array]) -> None:
    with start(*job.words) as process:
        job.wait_for_commits(4)
        workers = workers_of(process.pid)
        kill(process.pid)
        process.wait()
        until(lambda: not any(map(is_running, workers)), seconds=30)
    before = job.committed()
    done = len(before) // 3
    assert 4 <= done < SHARDS
    rerun = run(*job.words)
    assert rerun.status == 0, rerun.stderr
    assert rerun.result["shards_written"] == SHARDS - done
    assert rerun.result["shards_reused"] == done
    assert rerun.result["teacher_forwards"] == (SHARDS - done) * 32
    job.assert_kept(before)
    assert_same(contents(job.store), expected)
    assert verify_here(job.cache).status == 0


def test_extract__a_worker_killed_half_way(job: Killed, expected: dict[str, Array]) -> None:
    with start(*job.words) as process:
        job.wait_for_commits(4)
        kill(workers_of(process.pid)[0])
        before = job.committed()
        stdout, stderr = process.communicate(timeout=120)
    done = ended(process.returncode, stdout, stderr)
    assert done.status == 0, stderr
    assert 4 <= len(before) // 3 < SHARDS
    assert done.result["shards"] == SHARDS
    assert done.result["ok"] == PICTURES * 2
    job.assert_kept(before)
    assert_same(contents(job.store), expected)
    assert verify_here(job.cache).status == 0


def victims(driver: int) -> list[int]:
    """The driver, its workers and the raylet, as far as they have started."""
    below = descendants(driver)
    named = {pid: title(pid) for pid in below}
    workers = [pid for pid, name in named.items() if name.startswith("ray::")]
    raylets = [pid for pid, name in named.items() if "/raylet " in name]
    return [driver, *workers, *raylets]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_extract__killed_at_random_moments(
    where: Literal["disk", "s3"],
    source: Path,
    expected: dict[str, Array],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dice, kills, caches = random.Random(f"kills on {where}"), 0, 0
    environment = None
    while kills < KILLS:
        store: ObjectStore = LocalStore(tmp_path / f"cache{caches}")
        told: dict[str, Any] = {}
        if where == "s3":
            server = s3_server()
            server.enter(monkeypatch)
            environment = {**os.environ, **server.environment()}
            store, told = server.store(), {"store": {"endpoint": server.endpoint}}
        values = settings(store.url, source, **SETTINGS, **told)
        config = config_file(tmp_path / f"c{caches}.yaml", values)
        known: dict[str, Any] = {}
        while True:
            with start(by_module("extract"), "--config", config, environment=environment) as driver:
                end = time.monotonic() + dice.uniform(0.2, LONGEST_S)
                while time.monotonic() < end and driver.poll() is None:
                    time.sleep(0.02)
                if driver.poll() is None and kills < KILLS:
                    kill(dice.choice(victims(driver.pid)))
                    kills += 1
                below = descendants(driver.pid)
                stdout, stderr = driver.communicate(timeout=240)
                out = ended(driver.returncode, stdout, stderr)
                end = time.monotonic() + 60
                while any(map(is_running, below)) and time.monotonic() < end:
                    time.sleep(0.1)
            assert [title(pid) for pid in below if is_running(pid)] == []
            now = commits(store)
            assert {key: now.get(key) for key in known} == known  # nothing is committed twice
            known = now
            if out.status == 0:
                break
        caches += 1
        assert_same(contents(store), expected)
    with capsys.disabled():
        print(f"\n{kills} kills over {caches} caches on {where}: each as undisturbed")
