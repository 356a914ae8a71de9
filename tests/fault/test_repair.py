"""`extract --repair`: whatever can be computed or derived again is put right, and nothing else is
touched."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import pipeline.worker
from infra.catalog import Catalog
from infra.store import LocalStore
from pipeline.encode import Encoded, encode
from schemas.errors import DamageError
from tests.builders import photograph_bytes
from tests.caches import CNN, VIT, config_of, contents, extract_here, pictures, verify_here
from trainer import CacheStream

PICTURES = 40
BACK_AS_IT_WAS = (
    "tokens/c/0/0/0",
    "cls/*.parquet",
    "codec.json",
    "tokens/zarr.json",
    "teacher.json",
)
"""What one kind of machine makes again to the bit."""
VARYING = {"tokens": "variable", "bits": 3, "rotation": "hadamard"}


class Cache:
    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder / "cache", folder / "pictures"

    def extract(self, **changes: Any) -> dict[str, Any]:
        teachers = {"vit": VIT, "cnn": CNN}
        changes = {"teachers": teachers, "views": {"per_image": 2}, **changes}
        outcome = extract_here(config_of(self.folder, self.source, **changes))
        assert outcome.status == 0
        return outcome.result

    def some(self, pattern: str) -> Path:
        """The first object that is named so, of the first teacher."""
        return min(self.folder.rglob(pattern))

    def bytes(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def served(self) -> int:
        stream = CacheStream(str(self.folder), pixels=32, batch_size=40)
        return sum(int(batch.weight.sum()) for batch, _ in zip(stream, range(2)))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repair") / "here"
    pictures(folder / "pictures", PICTURES)
    Cache(folder).extract()
    shutil.copytree(folder, folder.with_name("pristine"))
    return folder


@pytest.fixture
def cache(pristine: Path) -> Iterator[Cache]:
    yield Cache(pristine)
    shutil.rmtree(pristine)
    shutil.copytree(pristine.with_name("pristine"), pristine)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, remove])
@pytest.mark.parametrize("pattern", BACK_AS_IT_WAS)
def test_repair__gives_back_the_very_bytes(cache: Cache, pattern: str, damage: Any) -> None:
    before = cache.bytes()
    damage(cache.some(pattern))
    assert verify_here(cache.folder).status == 1
    told = cache.extract(repair=True)
    assert cache.bytes() == before
    assert told["snapshot"] == 1
    assert told["teacher_forwards"] == (32 if "/" in pattern and "zarr" not in pattern else 0)
    assert verify_here(cache.folder).status == 0
    assert cache.extract(repair=True)["teacher_forwards"] == 0


@pytest.mark.parametrize("damage", [flip, remove])
def test_repair__gives_back_the_very_codes(tmp_path: Path, damage: Any) -> None:
    """Of every codec at once: the shards, what tells how to decode them, and their arrays."""
    pictures(tmp_path / "pictures", PICTURES)
    cache = Cache(tmp_path)
    codecs: list[dict[str, Any]] = [{"tokens": "int8"}, {"tokens": "int4"}, VARYING]
    teachers = {
        f"vit{seed}": VIT | {"weights": f"random:{seed}", "codec": codec}
        for seed, codec in enumerate(codecs)
    }
    cache.extract(teachers=teachers)
    before = cache.bytes()
    for pattern in ("tokens/c/0/0/0", "codec.json", "tokens/zarr.json"):
        damaged = list(cache.folder.rglob(pattern))
        assert len(damaged) == len(codecs)
        for path in damaged:
            damage(path)
    assert verify_here(cache.folder).status == 1
    told = cache.extract(teachers=teachers, repair=True)
    assert cache.bytes() == before
    assert (told["snapshot"], told["teacher_forwards"]) == (1, 32 * len(codecs))
    assert verify_here(cache.folder).status == 0
    assert cache.served() == 2 * PICTURES


@pytest.mark.parametrize("damage", [flip, remove])
def test_repair__a_probe_is_kept_anew(cache: Cache, damage: Any) -> None:
    before = cache.bytes()
    probe = cache.some("probe.json")
    damage(probe)
    assert cache.extract(repair=True)["snapshot"] == 1
    assert verify_here(cache.folder).status == 0
    assert {path for path, data in cache.bytes().items() if before[path] != data} <= {probe}


@pytest.mark.parametrize("damage", [flip, remove])
def test_repair__a_commit_gets_a_revision(cache: Cache, damage: Any) -> None:
    store = LocalStore(cache.folder)
    before = contents(store)
    damage(min((cache.folder / "commits/features").rglob("*.json")))
    told = cache.extract(repair=True)
    assert (told["snapshot"], told["shards_written"]) == (2, 1)
    verified = verify_here(cache.folder)
    assert verified.status == 0, verified.result["damage"]
    assert verified.result["shards"] == told["shards"]
    assert cache.served() == 2 * PICTURES
    if damage is remove:
        after = contents(store)
        renamed = {key.replace(".r1.json", ".json"): value for key, value in after.items()}
        assert renamed.keys() == before.keys()
    assert cache.extract()["snapshot"] == 2


def test_repair__on_another_kind_of_machine(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features in other last bits: what is named changes, in a snapshot of its own."""

    def other(*arguments: Any) -> Encoded:
        encoded = encode(*arguments)
        encoded.tokens.view("<u2")[:] ^= 1
        return encoded

    untouched = cache.bytes()
    tokens = cache.some("tokens/c/0/0/0")
    flip(tokens)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.worker, "encode", other)
        told = cache.extract(repair=True)
    assert (told["snapshot"], told["shards_written"], told["teacher_forwards"]) == (2, 1, 32)
    assert verify_here(cache.folder).status == 0
    assert cache.served() == 2 * PICTURES
    after = cache.bytes()
    assert {path for path, data in untouched.items() if after[path] != data} == {tokens}
    table = Catalog(LocalStore(cache.folder)).snapshot(2).table
    assert sorted(table["revision"].to_pylist())[-2:] == [0, 1]
    with pytest.raises(DamageError):
        for _ in zip(CacheStream(str(cache.folder), snapshot=1, pixels=None, batch_size=40), "abc"):
            pass


def first_picture(cache: Cache, pattern: str = "cls/*.parquet") -> Path:
    """Of those that the first teacher's first shard holds."""
    table = pq.read_table(cache.some(pattern))
    return cache.source / table["key"][0].as_py()


def change(picture: Path) -> None:
    picture.write_bytes(photograph_bytes(900, 52, 44))
    os.utime(picture, ns=(10**9, 10**9))


def test_repair__of_rows_whose_picture_is_gone(cache: Cache) -> None:
    """The tokens are sound, and of a row that can no longer be computed."""
    picture = first_picture(cache)
    flip(cache.some("cls/*.parquet"))
    picture.unlink()
    told = cache.extract(repair=True, tolerate_bad_images=1)
    assert (told["snapshot"], told["teacher_forwards"]) == (2, 31)
    verified = verify_here(cache.folder)
    assert verified.status == 0, verified.result["damage"]
    assert verified.result["bad"] == 1
    batch = next(iter(CacheStream(str(cache.folder), pixels=None, batch_size=2 * PICTURES)))
    assert int(batch.weight.sum()) == 2 * PICTURES - 1


@pytest.mark.parametrize("damage", [flip, remove])
@pytest.mark.parametrize("pattern", ["cls/*.parquet", "teacher.json", "tokens/c/0/0/0", "0/0.json"])
def test_repair__beside_a_picture_that_has_changed(cache: Cache, pattern: str, damage: Any) -> None:
    """What is damaged cannot tell that it has; the other teacher's tables can."""
    change(first_picture(cache))
    damage(cache.some(pattern))
    told = cache.extract(repair=True, retry_bad=True)
    assert told["ok"] == 2 * PICTURES
    verified = verify_here(cache.folder, against_teacher=4 * PICTURES)
    assert verified.status == 0, verified.result["damage"]
    assert cache.served() == 2 * PICTURES


def test_repair__of_the_only_table_that_knew_a_picture(cache: Cache, tmp_path: Path) -> None:
    """Nobody can tell that it has changed: its rows are of the picture as it is, all of them."""
    alone = Cache(tmp_path)
    shutil.copytree(cache.source, alone.source)
    alone.extract(teachers={"vit": VIT})
    change(first_picture(alone))
    for table in alone.folder.rglob("cls/*.parquet"):
        flip(table)
    assert alone.extract(teachers={"vit": VIT}, repair=True)["snapshot"] == 2
    verified = verify_here(alone.folder, against_teacher=2 * PICTURES)
    assert verified.status == 0, verified.result["damage"]
    assert alone.served() == 2 * PICTURES


@pytest.mark.parametrize("pattern", ["calibration.json", "covariance.tokens.*", "axes.*"])
def test_repair__says_what_it_cannot(cache: Cache, pattern: str) -> None:
    damaged = cache.some(pattern)
    flip(damaged)
    before = cache.bytes()
    with pytest.raises(DamageError, match=damaged.name):
        cache.extract(repair=True)
    assert cache.bytes() == before


def test_repair__says_what_it_cannot_derive(cache: Cache) -> None:
    flip(cache.some("codec.json"))
    cache.some("calibration.json").unlink()
    with pytest.raises(DamageError, match=r"codec.json: is damaged, and .*calibration.json"):
        cache.extract(repair=True)


def test_repair__of_a_teacher_that_does_not_run_is_left_alone(cache: Cache) -> None:
    teachers = {path.parent.parent.parent.name for path in cache.folder.rglob("codec.json")}
    assert len(teachers) == 2
    for tokens in cache.folder.rglob("tokens/c/0/0/0"):
        flip(tokens)
    told = cache.extract(repair=True, only="vit")
    assert told["teacher_forwards"] == 32
    assert verify_here(cache.folder).result["corrupt"] == 1
    cache.extract(repair=True, only="cnn")
    assert verify_here(cache.folder).status == 0
