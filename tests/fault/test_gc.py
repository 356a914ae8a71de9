"""`gc` removes what nobody reaches, and nothing that somebody does or may."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import pipeline.lease
from infra.catalog import Catalog
from infra.models.timm_encoder import build_timm
from infra.store import Bytes, LocalStore
from pipeline import gc, snapshots
from pipeline.lease import lease
from schemas import layout
from schemas.errors import CacheError, ConfigError
from schemas.options import GcOptions, SnapshotsOptions
from tests.caches import CNN, VIT, Quiet, config_of, extract_here, pictures, verify_here
from trainer import CacheStream

PICTURES = 40


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As seconds are to a person, so these are to a test."""
    monkeypatch.setattr(pipeline.lease, "BEAT_S", 0.05)
    monkeypatch.setattr(pipeline.lease, "WATCH_S", 0.5)


class Cache:
    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder / "cache", pictures(folder / "pictures", PICTURES)
        self.weights = folder / "vit.safetensors"
        self.store = LocalStore(self.folder)

    def extract(self, seed: int, **changes: Any) -> dict[str, Any]:
        """With the first teacher's weights of a seed."""
        save_file(build_timm("test_vit", {}, f"random:{seed}").model.state_dict(), self.weights)
        teachers = {"vit": {**VIT, "weights": str(self.weights)}, "cnn": CNN}
        asked = {"teachers": teachers, **changes}
        return extract_here(config_of(self.folder, self.source, **asked)).result

    def gc(self, **options: Any) -> dict[str, Any]:
        return gc.run(GcOptions(cache=str(self.folder), **options), Quiet()).result

    def snapshots(self, **options: Any) -> list[dict[str, Any]]:
        options = {"cache": str(self.folder), **options}
        told = snapshots.run(SnapshotsOptions(**options), Quiet()).result["snapshots"]
        assert isinstance(told, list)
        return told

    def objects(self) -> set[str]:
        return set(self.store.keys(""))

    def served(self, **options: Any) -> int:
        stream = CacheStream(str(self.folder), pixels=None, batch_size=PICTURES, **options)
        return int(next(iter(stream)).weight.sum())


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path)
    made.extract(1)
    yield made
    assert verify_here(made.folder).status == 0


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


def test_snapshots__a_tag_keeps_its_snapshot_and_never_moves(cache: Cache) -> None:
    cache.extract(2)
    cache.snapshots(tag=("1=paper", "1=icml-2026.v1"))
    assert [entry["tags"] for entry in cache.snapshots(tag="1=paper")] == [
        ["icml-2026.v1", "paper"],
        [],
    ]
    with pytest.raises(ConfigError, match=r"tag paper is snapshot 1, not 2; .*--untag paper"):
        cache.snapshots(tag=("2=paper",))
    with pytest.raises(CacheError, match="no snapshot 7"):
        cache.snapshots(tag=("7=later",))
    catalog = Catalog(cache.store)
    assert catalog.snapshot_named("paper") == 1
    with pytest.raises(CacheError, match=r"tag 'papers'; the tags are icml-2026.v1 \(1\), paper"):
        catalog.snapshot_named("papers")
    cache.snapshots(prune=True)
    with pytest.raises(ConfigError, match=r"snapshot 1 has the tag icml-2026.v1, .*--untag icml"):
        cache.snapshots(forget=(1,))
    assert cache.gc(delete=True)["deleted"] == 0
    assert cache.served(snapshot=1) == PICTURES
    told = cache.snapshots(untag=("paper", "icml-2026.v1"), forget=(1, 2))
    assert [(entry["tags"], entry["forgotten"]) for entry in told] == [
        ([], True),
        ([], True),
        ([], False),
    ]
    with pytest.raises(ConfigError, match="snapshot 1 was forgotten"):
        cache.snapshots(tag=("1=paper",))
    assert cache.gc(delete=True)["deleted"] > 5
    assert cache.served() == PICTURES


def test_snapshots__a_tag_that_somebody_forgets_at_the_same_time(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each looks for the other: the tag wins, or is refused; never a tag on what gc may take."""
    cache.extract(2)
    cache.snapshots(prune=True)
    create = LocalStore.create

    def others_first(meanwhile: Callable[[], object]) -> Callable[..., None]:
        def meets(store: LocalStore, key: str, data: Bytes) -> None:
            monkeypatch.setattr(LocalStore, "create", create)
            meanwhile()
            create(store, key, data)

        return meets

    forget = partial(cache.snapshots, forget=(1,))
    monkeypatch.setattr(LocalStore, "create", others_first(forget))
    with pytest.raises(ConfigError, match="snapshot 1 was forgotten"):
        cache.snapshots(tag=("1=paper",))
    assert Catalog(cache.store).tags() == {}
    tag = partial(cache.snapshots, tag=("2=paper",))
    monkeypatch.setattr(LocalStore, "create", others_first(tag))
    told = cache.snapshots(forget=(2,))
    assert (told[1]["tags"], told[1]["forgotten"]) == (["paper"], False)
    cache.gc(delete=True)
    assert cache.served(snapshot=2) == PICTURES


def test_snapshots__the_newest_is_never_forgotten(cache: Cache) -> None:
    for number in (0, 1, 2):
        with pytest.raises(ConfigError, match=f"snapshot {number} cannot be forgotten"):
            cache.snapshots(forget=(number,))


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
