"""Killed and started again, 200 times: what is left behind of it, on this machine and in a process.

A cycle is one start of a command, on what the cycles before have left, and a SIGKILL of all its
processes at a random moment from its start until a little after it should have ended. A command
that ends first has what it made compared with what an undisturbed one makes, and the next cycle
begins a new cache or run. A third of the cycles are trainings; of the extractions some are the
command as a user starts it, with Ray and its workers, and most are one process that does all of it:
Ray takes longer to start than they take to extract. Those are forked from one that has imported
what they need.
"""

import gc
import os
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.store import Bytes, LocalStore
from pipeline.gc import run as collect
from schemas.options import GcOptions
from tests.caches import (
    Array,
    Quiet,
    assert_same,
    config_of,
    contents,
    extract_here,
    settings,
    verify_here,
)
from tests.fault.cycle import Cycles
from tests.fault.fault_store import Died
from tests.fault.long_job import SETTINGS
from tests.processes import config_file
from tests.trainings import settings as training

ON_RAY, ALONE, TRAININGS, IN_PROCESS = 30, 100, 70, 200
STEPS = 20


@pytest.fixture
def cycles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cycles]:
    # A short name: Ray's sockets lie below it, and theirs must be short.
    with tempfile.TemporaryDirectory(prefix="c") as temporary:
        monkeypatch.setenv("TMPDIR", temporary)
        yield Cycles(temporary)


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def unfinished(folder: Path) -> list[Path]:
    """Files whose names say that they are not whole yet, or that lie in such a folder."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_cycles__killed_and_started_again_leave_nothing(
    cycles: Cycles,
    source: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipeline.lease.WATCH_S", 0.5)  # nothing is at work any more
    before, expected = shared_memory(), contents(LocalStore(whole))
    caches = extractions(cycles, source, expected, tmp_path)
    trainings(cycles, whole, tmp_path)
    assert cycles.running() == []
    assert shared_memory() - before == set()
    assert [path.name for path in cycles.temporary.iterdir() if path.name != "ray"] == []
    written = len(unfinished(tmp_path))
    garbage = sum(removed_by_gc(cache, expected) for cache in caches)
    assert unfinished(tmp_path) == []
    with capsys.disabled():
        sessions = list((cycles.temporary / "ray").glob("session_*_*"))
        size = sum(path.lstat().st_size for path in cycles.temporary.rglob("*"))
        print(
            f"\n{dict(cycles.told)}; gc removed {garbage} objects of dead writers and {written} "
            f"half written files from {len(caches)} caches; Ray keeps {len(sessions)} sessions' "
            f"logs, {size / 2**20:.0f} MiB"
        )


def extractions(
    cycles: Cycles, source: Path, expected: dict[str, Array], folder: Path
) -> list[Path]:
    """All caches, whole at last."""

    def config(cache: Path) -> Path:
        return config_file(folder / "extract.yaml", settings(cache, source, **SETTINGS))

    caches = [folder / "cache0", folder / "cache1"]
    cycles.on_ray(config(caches[0]), plain=True)
    cycles.forked("extract", config(caches[1]), plain=True)
    done = True
    for number in range(ON_RAY + ALONE):
        if done:
            caches.append(folder / f"cache{len(caches)}")
        if number % (1 + ALONE // ON_RAY):
            done = cycles.forked("extract", config(caches[-1]))
        else:
            done = cycles.on_ray(config(caches[-1]))
    cycles.on_ray(config(caches[-1]), plain=True)
    for cache in caches:
        assert_same(contents(LocalStore(cache)), expected)
    return caches


def trainings(cycles: Cycles, cache: Path, folder: Path) -> None:
    """Each ends with the weights of one that nothing disturbed."""

    def config(out: Path) -> Path:
        values = training(
            cache,
            out,
            optim={"lr": 1e-3, "steps": STEPS, "batch_size": 16},
            checkpoint={"every_steps": 2, "keep": 2},
        )
        return config_file(folder / "train.yaml", values)

    def weights(out: Path) -> bytes:
        return (out / "model.safetensors").read_bytes()

    runs = [folder / "straight"]
    cycles.forked("train", config(runs[0]), plain=True)
    done = True
    for _ in range(TRAININGS):
        if done:
            runs.append(folder / f"run{len(runs)}")
        done = cycles.forked("train", config(runs[-1]))
    cycles.forked("train", config(runs[-1]), plain=True)
    for out in runs:
        assert weights(out) == weights(runs[0])


def removed_by_gc(cache: Path, expected: dict[str, Array]) -> int:
    """What killed writers have left is found and removed, and nothing else."""
    removed = collect(GcOptions(cache=str(cache), delete=True), Quiet()).result["deleted"]
    assert collect(GcOptions(cache=str(cache)), Quiet()).result["objects"] == 0
    assert [path for path in (cache / "jobs").rglob("*") if path.is_file()] == []
    assert_same(contents(LocalStore(cache)), expected)
    assert verify_here(cache).status == 0
    assert isinstance(removed, int)
    return removed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_cycles__in_one_process_leave_no_thread_and_no_descriptor(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs are stopped by an exception at a random write, in whichever thread that happens."""
    dice, create, lock = random.Random("in one process"), LocalStore.create, threading.Lock()
    left = [0]

    def dying(store: LocalStore, key: str, data: Bytes) -> None:
        with lock:
            left[0] -= 1
            dies = left[0] == 0
        if dies:
            raise Died(key)
        create(store, key, data)

    def run_once(writes: int) -> bool:
        left[0] = writes
        images = {"source": str(source), "limit": 64}
        try:
            return extract_here(config_of(cache, source, images=images)).status == 0
        except Died:
            return False

    monkeypatch.setattr(LocalStore, "create", dying)
    caches = 0
    used: list[tuple[int, int]] = []
    while len(used) < IN_PROCESS:
        cache = tmp_path / f"cache{caches}"
        if run_once(dice.randrange(1, 40)):
            caches += 1
            continue
        gc.collect()
        used.append((len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))))
    assert run_once(0)
    with capsys.disabled():
        print(f"\n{IN_PROCESS} stopped over {caches} caches; (threads, files) {used[::20]}")
    settled = used[IN_PROCESS // 10 : IN_PROCESS // 5]
    for kind in (0, 1):
        assert max(each[kind] for each in used[-20:]) <= max(each[kind] for each in settled)
