"""Real processes, killed: the driver and a Ray worker half way; and, among the slow tests, driver,
workers and raylet at random moments, on a disk and on S3."""

import os
import random
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest

from infra.store import LocalStore, ObjectStore
from tests.caches import (
    Array,
    assert_same,
    commits,
    contents,
    settings,
    verify_here,
)
from tests.fault.long_job import PICTURES, SETTINGS, WORKERS
from tests.processes import (
    by_module,
    config_file,
    descendants,
    ended,
    family,
    is_running,
    kill,
    run,
    start,
    title,
    until,
)
from tests.s3server import s3_server

KILLS = 25
"""At random, on each store."""
LIFE = {"driver": 1.1, "raylet": 0.9, "worker": 0.8, "agent of Ray": 0.9}
"""From a victim's start until after the run's end, at most, in times of an undisturbed run."""
SHARDS = PICTURES * 2 // 32


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[str, Array]:
    return contents(LocalStore(whole))


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


@pytest.mark.slow
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


RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "/agent.py", "/agent/main.py")
RAYS_AGENTS_S = 90.0
"""Ray's two agents outlive a raylet that dies together with its head node: for 60 s, a figure in
Ray's own code, they try to tell the dead head so. They hold nothing of ours; all else ends at
once."""
LEFTOVER_S = 30.0


def role(pid: int) -> str:
    """What somebody who kills it would call it; empty for what nobody need kill."""
    name = title(pid)
    if name.split(" ")[0].endswith("/raylet"):
        return "raylet"
    if any(agent in name for agent in RAYS_AGENTS):
        return "agent of Ray"
    return "worker" if name.startswith("ray::") or "/default_worker.py" in name else ""


class Victim:
    """One process of a running extraction, to be killed at a random moment of its life."""

    def __init__(self, dice: random.Random, run_s: float) -> None:
        self.role = dice.choice(sorted(LIFE))
        self._choice = dice.random()
        self._seconds = dice.uniform(0, LIFE[self.role] * run_s)

    def killed(self, driver: "subprocess.Popen[str]") -> bool:
        """Kill it, unless the extraction ends before."""
        found: list[int] = []
        end = 0.0
        while driver.poll() is None and not (found and time.monotonic() >= end):
            time.sleep(0.02)
            found = self._found(driver.pid)
            end = end or (time.monotonic() + self._seconds if found else 0.0)
        if driver.poll() is not None:
            return False
        kill(found[int(self._choice * len(found))])
        return True

    def _found(self, driver: int) -> list[int]:
        if self.role == "driver":
            return [driver]
        return [pid for pid in descendants(driver) if role(pid) == self.role]


def left_of(session: int, but_agents: bool) -> list[str]:
    return [
        title(pid) for pid in family(session) if not (but_agents and role(pid) == "agent of Ray")
    ]


def wait_for_end(session: int, seconds: float, but_agents: bool = False) -> None:
    end = time.monotonic() + seconds
    while left_of(session, but_agents) and time.monotonic() < end:
        time.sleep(0.1)
    assert left_of(session, but_agents) == []


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
    dice, caches, run_s = random.Random(f"kills on {where}"), 0, 0.0
    killed: Counter[str] = Counter()
    environment = None
    while killed.total() < KILLS:
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
            victim, began = Victim(dice, run_s), time.monotonic()
            with start(by_module("extract"), "--config", config, environment=environment) as driver:
                # The first one is left alone, to see how long one takes.
                was_killed = bool(run_s) and killed.total() < KILLS and victim.killed(driver)
                killed[victim.role] += was_killed
                stdout, stderr = driver.communicate(timeout=240)
                out = ended(driver.returncode, stdout, stderr)
                run_s = run_s if was_killed or known else time.monotonic() - began
                wait_for_end(driver.pid, LEFTOVER_S, but_agents=True)
                if was_killed and victim.role == "driver" and killed[victim.role] == 1:
                    wait_for_end(driver.pid, RAYS_AGENTS_S)
            now = commits(store)
            assert {key: now.get(key) for key in known} == known  # nothing is committed twice
            if not was_killed:
                assert out.status == 0, stderr
                assert out.result["shards_reused"] == len(known)
                assert out.result["teacher_forwards"] == (SHARDS - len(known)) * 32
            known = now
            if out.status == 0:
                break
        caches += 1
        assert_same(contents(store), expected)
    with capsys.disabled():
        print(f"\n{dict(killed)} killed over {caches} caches on {where}: each as undisturbed")
