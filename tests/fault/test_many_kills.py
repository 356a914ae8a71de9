"""Driver, workers and raylet, killed at random moments, on a disk and on S3, until the counts of
README are reached; and kill after kill, nothing left behind."""

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
)
from tests.processes import (
    by_module,
    config_file,
    descendants,
    ended,
    is_running,
    kill,
    start,
    title,
)
from tests.s3server import s3_server

pytestmark = pytest.mark.slow
PICTURES, WORKERS, KILLS = 640, 2, 25
LONGEST_S = 14.0
SETTINGS: dict[str, Any] = {
    "views": {"per_image": 2},
    "grids": [8],
    "workers": {"batch_size": 32, "gpus": 0, "count": WORKERS, "decode_threads": 1},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("many"), PICTURES)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), source, WORKERS, **SETTINGS)


def victims(driver: int) -> list[int]:
    """The driver, its workers and the raylet, as far as they have started."""
    below = descendants(driver)
    named = {pid: title(pid) for pid in below}
    workers = [pid for pid, name in named.items() if name.startswith("ray::")]
    raylets = [pid for pid, name in named.items() if "/raylet " in name]
    return [driver, *workers, *raylets]


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
