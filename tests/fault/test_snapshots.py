"""A snapshot is kept by its tag and given up by being forgotten, whoever does which first."""

from collections.abc import Callable
from functools import partial

import pytest

from infra.catalog import Catalog
from infra.store import Bytes, LocalStore
from schemas.errors import CacheError, ConfigError
from tests.fault.on_disk import PICTURES, Cache


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
