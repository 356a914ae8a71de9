"""Every kind of object of a cache, damaged in every way: found, named, and never trained on."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pipeline.verify
import trainer.cache
from infra.store import LocalStore, MemoryStore
from schemas import shard
from schemas.errors import CacheError
from tests.caches import VIT, commits, config_of, extract_here, pictures, verify_here
from trainer import CacheStream

Rows = dict[int, tuple[bytes, ...]]
PREFIXES = {
    "cache": "cache.json",
    "plan part": "plan/*/00000.*.parquet",
    "superseded": "plan/*/superseded.*.parquet",
    "plan commit": "commits/plan/*.json",
    "teacher": "teachers/*/teacher.json",
    "calibration": "features/*/calibration.json",
    "covariance": "features/*/covariance.*.parquet",
    "axes": "features/*/axes.*.parquet",
    "probe": "features/*/probe.json",
    "codec": "features/*/codec.json",
    "array": "features/*/zarr.json",
    "tokens": "features/*/tokens/c/*",
    "cls": "features/*/cls/*.parquet",
    "commit": "commits/features/*.json",
    "snapshot table": "snapshots/*.parquet",
    "snapshot commit": "commits/snapshots/*.json",
}


class Damaged(MemoryStore):
    """A copy of a cache with some objects replaced, or none in their place."""

    def __init__(self, objects: dict[str, bytes], changed: dict[str, bytes | None]) -> None:
        super().__init__()
        self._asked: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for key, data in (objects | changed).items():
            if data is not None:
                self.create(key, data)

    def get(self, key: str) -> bytes:
        self._asked[key].append((0, 1 << 40))
        return super().get(key)

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        self._asked[key].append((start, end))
        return memoryview(super().get(key))[start:end]

    def was_asked_for(self, key: str, places: Sequence[int]) -> bool:
        """Whether one of these bytes of an object was."""
        return any(first <= place < end for first, end in self._asked[key] for place in places)


@dataclass(frozen=True)
class Damage:
    what: str
    changed: dict[str, bytes | None]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return cached(tmp_path_factory.mktemp("damage"), {"tokens": "fp16"})


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """As `objects`, of codes that only axes decode."""
    return cached(tmp_path_factory.mktemp("coded"), {"tokens": "int4"})


def cached(folder: Path, codec: dict[str, str]) -> dict[str, bytes]:
    """Two teachers of one architecture, two generations, two snapshots; nothing that no commit
    names."""
    source = pictures(folder / "pictures", 37)
    (source / "empty.jpg").write_bytes(b"")
    teachers = {"one": VIT, "other": VIT | {"weights": "random:2"}}
    changes: dict[str, Any] = {"grids": [1], "teachers": teachers, "tolerate_bad_images": 1}
    views = {"per_image": 2}
    config = config_of(folder / "cache", source, views=views, codec=codec, **changes)
    extract_here(config)
    pictures(source, 34, first=100)
    (source / "0005.jpg").write_bytes((source / "0006.jpg").read_bytes())
    assert extract_here(config).result["snapshot"] == 2
    store = LocalStore(folder / "cache")
    return {key: store.get(key) for key in store.keys("")}


Opened = Callable[[MemoryStore], None]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Makes a store the cache that `verify` and training open."""

    def use(store: MemoryStore) -> None:
        for module in (pipeline.verify, trainer.cache):
            monkeypatch.setattr(module, "open_store", lambda *_: store)

    return use


def keys_of(objects: dict[str, bytes], kind: str) -> list[str]:
    return sorted(key for key in objects if Path(key).match(PREFIXES[kind]) or _is(key, kind))


def _is(key: str, kind: str) -> bool:
    first, _, last = PREFIXES[kind].partition("*")
    middle, _, end = last.rpartition("*")
    return key.startswith(first) and key.endswith(end) and middle in key


def places(kind: str, data: bytes) -> Iterator[int]:
    """Bytes to flip: spread over the object, with both sides of its inner boundaries."""
    yield from {len(data) * part // 7 for part in range(7)} | {len(data) - 1, len(data) - 9}
    if kind == "tokens":
        start = shard.index_bytes(32)
        yield from (start - shard.CRC_BYTES, start - 1, start, start + 64 * 2, start + 64 * 2 + 3)


def damages(objects: dict[str, bytes], kind: str) -> Iterator[Damage]:
    keys = keys_of(objects, kind)
    for key in {keys[0], keys[-1]}:
        data = objects[key]
        for place in places(kind, data):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            yield Damage(f"{key}: byte {place} flipped", {key: bytes(flipped)})
        for length in (0, len(data) // 2, len(data) - 1):
            yield Damage(f"{key}: cut to {length}", {key: data[:length]})
        yield Damage(f"{key}: grown", {key: data + b"\0"})
        yield Damage(f"{key}: gone", {key: None})
    for one, other in itertools.pairwise(keys):
        if objects[one] != objects[other]:
            both = {one: objects[other], other: objects[one]}
            yield Damage(f"{one}: swapped with {other}", both)


def is_left_out(kind: str, damage: Damage, objects: dict[str, bytes]) -> bool:
    """Without the newest snapshot's record there is no such snapshot, by the first rule of all."""
    return kind == "snapshot commit" and damage.changed == {keys_of(objects, kind)[-1]: None}


def served() -> Rows:
    """One epoch by row number: both teachers' tokens and CLS vectors."""
    rows: Rows = {}
    stream = CacheStream("any", pixels=None, batch_size=16, threads=1)
    with closing(iter(stream)) as batches:
        for batch in batches:
            parts = [batch.weight]
            for target in batch.targets.values():
                assert target.cls is not None
                parts += [target.tokens, target.cls]
            for index, row in enumerate(batch.rows.tolist()):
                rows[row] = tuple(part[index].numpy().tobytes() for part in parts)
            if batch.state["epoch"]:
                return rows
    raise AssertionError("a stream has no end")


def unnamed(objects: dict[str, bytes], opened: Opened, kind: str) -> list[tuple[str, str]]:
    """Damage that `verify` does not find and name, and what it says."""
    silent = []
    for damage in damages(objects, kind):
        if is_left_out(kind, damage, objects):
            continue
        opened(Damaged(objects, damage.changed))
        try:
            outcome = verify_here("any")
            told, is_found = "\n".join(outcome.result["damage"]), outcome.status == 1
        except CacheError as error:
            told, is_found = str(error), True
        if not is_found or not any(key in told for key in damage.changed):
            silent.append((damage.what, told))
    return silent


def trained_on(objects: dict[str, bytes], opened: Opened, kind: str) -> list[str]:
    """Damage that changes what a stream serves, or is not noticed though it was read."""
    opened(Damaged(objects, {}))
    sound = served()
    silent = []
    for damage in damages(objects, kind):
        if is_left_out(kind, damage, objects):
            continue
        store = Damaged(objects, damage.changed)
        opened(store)
        try:
            rows = served()
        except CacheError:
            continue
        is_read = any(
            store.was_asked_for(key, places_that_differ(objects[key], data or b""))
            for key, data in damage.changed.items()
        )
        if rows != sound or is_read:
            silent.append(damage.what)
    return silent


def places_that_differ(one: bytes, other: bytes) -> list[int]:
    pairs = enumerate(itertools.zip_longest(one, other))
    return [place for place, (this, that) in pairs if this != that]


@pytest.mark.parametrize("kind", PREFIXES)
def test_verify__finds_and_names_all_damage(
    objects: dict[str, bytes], opened: Opened, kind: str
) -> None:
    assert unnamed(objects, opened, kind) == []


@pytest.mark.parametrize("kind", PREFIXES)
def test_stream__serves_no_wrong_number(
    objects: dict[str, bytes], opened: Opened, kind: str
) -> None:
    assert trained_on(objects, opened, kind) == []


@pytest.mark.parametrize("kind", ["axes", "codec", "tokens"])
def test_codes__damage_is_found_and_never_trained_on(
    coded: dict[str, bytes], opened: Opened, kind: str
) -> None:
    assert unnamed(coded, opened, kind) == []
    assert trained_on(coded, opened, kind) == []


def test_damages__meet_every_object_and_every_kind(objects: dict[str, bytes]) -> None:
    """The kinds are all there are, and the sound cache passes."""
    found = [key for kind in PREFIXES for key in keys_of(objects, kind)]
    assert sorted(found) == sorted(objects)
    store = Damaged(objects, {})
    assert len(commits(store)) == 2 * (3 + 3)


def test_verify__a_sound_cache_passes(objects: dict[str, bytes], opened: Opened) -> None:
    opened(Damaged(objects, {}))
    assert verify_here("any").status == 0
    assert len(served()) == 2 * (38 + 34)
