"""`gc` removes what nobody reaches, and nothing that somebody does or may."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.lease import lease
from schemas import layout
from schemas.errors import CacheError
from tests.fault.on_disk import PICTURES, Cache


def test_gc__of_a_sound_cache_finds_nothing(cache: Cache) -> None:
    before = cache.objects()
    assert not [key for key in before if key.startswith(layout.JOBS)]
    assert cache.gc(delete=True) == {
        "objects": 0,
        "partials": 0,
        "bytes": 0,
        "deleted": 0,
        "jobs": 0,
    }
    assert cache.objects() == before


def test_gc__what_dead_writers_left_is_listed_then_removed(cache: Cache) -> None:
    before = cache.objects()
    left = {
        "plan/000007/00000.abc.parquet",
        f"{min(key for key in before if '/cls/' in key).rpartition('/')[0]}/0.dead.parquet",
        "snapshots/000009.dead.parquet",
        "jobs/0123456789ab/job.json",
        "jobs/0123456789ab/17",
    }
    for key in left:
        cache.store.create(key, b"left behind")
    told = cache.gc()
    assert (told["objects"], told["deleted"]) == (5, 0)
    assert cache.objects() == before | left
    assert cache.gc(delete=True)["deleted"] == 5
    assert cache.objects() == before


def test_gc__an_earlier_teacher_goes_when_its_snapshots_are_forgotten(cache: Cache) -> None:
    first = cache.objects()
    cache.extract(2)
    assert cache.gc()["objects"] == 0
    told = cache.snapshots(prune=True)
    assert [entry["number"] for entry in told] == [1, 2, 3]
    assert cache.gc()["objects"] == 0  # two snapshots reach it still
    cache.snapshots(forget=(1, 2))
    old = told[0]["teachers"]["vit"]
    removed = cache.gc(delete=True)
    assert removed["deleted"] > 5
    gone = {key for key in first if old in key}
    assert gone
    assert not gone & cache.objects()
    assert cache.served() == PICTURES
    with pytest.raises(CacheError, match="snapshot 2 was forgotten"):
        cache.served(snapshot=2)
    assert cache.gc()["objects"] == 0
    assert cache.extract(1)["teacher_forwards"] == PICTURES  # as a new teacher would


def test_gc__files_that_killed_writers_left_go_when_no_job_is_at_work(cache: Cache) -> None:
    program = """
import os, pathlib, sys
import infra.store
def killed(path, data):
    path.write_bytes(data[:3])
    os.kill(os.getpid(), 9)
infra.store.write_through = killed
infra.store.LocalStore(pathlib.Path(sys.argv[1])).create("plan/000001/x", b"half")
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", program, str(cache.folder)], cwd=root)
    assert ended.returncode == -9
    assert [path.read_bytes() for path in cache.store.partials()] == [b"hal"]
    with lease(cache.store, "extract", ("a",)):
        assert cache.gc(delete=True)["partials"] == 0
    assert len(cache.store.partials()) == 1
    told = cache.gc()
    assert (told["objects"], told["partials"], told["bytes"]) == (0, 1, 3)
    assert len(cache.store.partials()) == 1
    assert cache.gc(delete=True)["partials"] == 1
    assert not cache.store.partials()


def test_gc__committed_shards_without_a_snapshot_stay(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that died before it published has not worked in vain."""

    def dies(*arguments: Any) -> Any:
        raise CacheError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.extract.publish", dies)
        with pytest.raises(CacheError, match="killed"):
            cache.extract(3)
    cache.gc(delete=True)
    again = cache.extract(3)
    assert (again["teacher_forwards"], again["snapshot"]) == (0, 2)


def test_gc__leaves_alone_what_a_job_at_work_may_claim(cache: Cache) -> None:
    fp12 = cache.snapshots()[0]["teachers"]["cnn"]
    mine = f"features/{fp12}/g2/fp16-00000000/000000/tokens/c/9/0/0"
    other = "features/0123456789ab/g2/fp16-00000000/000000/tokens/c/9/0/0"
    for key in (mine, other, "plan/000009/00000.abc.parquet"):
        cache.store.create(key, b"not committed yet")
    with lease(cache.store, "extract", (fp12,)):
        told = cache.gc(delete=True)
        assert (told["jobs"], told["deleted"]) == (1, 1)
        assert mine in cache.objects()
        assert other not in cache.objects()
    assert cache.gc(delete=True)["deleted"] == 2


def test_lease__a_gc_that_died_holds_nobody_up(cache: Cache) -> None:
    with lease(cache.store, "gc") as other:
        copied = {
            key.replace(other, "dead"): cache.store.get(key)
            for key in cache.store.keys(layout.job_folder(other))
        }
    for key, data in copied.items():
        cache.store.create(key, data)
    with lease(cache.store, "extract", ("a",)):
        pass
    assert cache.gc(delete=True)["deleted"] == len(copied)
