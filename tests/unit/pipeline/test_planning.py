from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.catalog import Catalog, PlanReader
from infra.sources import Entry
from infra.store import MemoryStore
from pipeline.planning import (
    draws_of,
    grow_plan,
    open_or_create_cache,
    order_key,
)
from pipeline.spans import span_count, span_images, span_of
from schemas.errors import ConfigError
from schemas.keyed_hash import hash_texts
from schemas.records import PlanCommit
from tests.caches import Quiet, config_of

KEYS = st.lists(st.text("abc/é.", min_size=1, max_size=6), min_size=1, max_size=90, unique=True)


@dataclass
class Pictures:
    """A source that has only names."""

    keys: list[str]
    url: str = "/photos"
    reads: int = field(default=0)

    def entries(self) -> Iterator[Entry]:
        yield from (Entry(key, len(key), f"e-{key}") for key in self.keys)

    def read(self, key: str) -> bytes:
        raise AssertionError("a plan needs no picture")


class Planned:
    """A cache in memory whose plan grows."""

    def __init__(self, **changes: Any) -> None:
        self.store = MemoryStore()
        self.changes = changes

    def grow(self, keys: list[str], url: str = "/photos", **changes: Any) -> list[PlanCommit]:
        config = config_of("memory://", "/photos", **{**self.changes, **changes})
        catalog = open_or_create_cache(self.store, config)
        return grow_plan(catalog, config, Pictures(keys, url), Quiet())

    def rows(self, commit: PlanCommit) -> list[dict[str, Any]]:
        return pa.concat_tables(PlanReader(self.store, commit).batches()).to_pylist()


def hash_order(keys: list[str], seed: int = 0) -> list[str]:
    return sorted(keys, key=lambda key: (int(hash_texts([key], order_key(seed))[0]), key))


@given(KEYS, st.integers(1, 5))
def test_grow_plan__has_every_image_and_view_once(keys: list[str], views: int) -> None:
    planned = Planned(views={"per_image": views})
    (commit,) = planned.grow(keys)
    rows = planned.rows(commit)
    assert commit.first_row == 0
    assert commit.rows == len(rows) == len(keys) * views
    assert sorted((row["key"], row["view"]) for row in rows) == sorted(
        (key, view) for key in keys for view in range(views)
    )


@given(KEYS, st.integers(1, 4))
def test_grow_plan__spans_are_view_major_and_dense(keys: list[str], views: int) -> None:
    planned = Planned(views={"per_image": views})
    (commit,) = planned.grow(keys)
    rows = planned.rows(commit)
    ordered = hash_order(keys)
    row = 0
    for number in range(span_count(commit)):
        span = span_of(commit, number)
        assert span.first_row == row
        for view in range(views):
            for image in range(span.images):
                assert span.row(view, image) == row
                assert rows[row]["view"] == view
                assert rows[row]["key"] == ordered[span.first_image + image]
                row += 1
    assert row == commit.rows


@given(KEYS, st.randoms(use_true_random=False))
def test_grow_plan__does_not_depend_on_the_order_of_listing(keys: list[str], random: Any) -> None:
    shuffled = keys.copy()
    random.shuffle(shuffled)
    one, other = Planned(views={"per_image": 2}), Planned(views={"per_image": 2})
    assert one.rows(one.grow(keys)[0]) == other.rows(other.grow(shuffled)[0])


@given(KEYS, st.integers(1, 100))
def test_grow_plan__limit_takes_the_first_in_hash_order(keys: list[str], limit: int) -> None:
    planned = Planned(images={"source": "/photos", "limit": limit})
    (commit,) = planned.grow(keys)
    assert [row["key"] for row in planned.rows(commit)] == hash_order(keys)[:limit]


@given(KEYS, KEYS, st.integers(1, 3))
def test_grow_plan__new_images_append_a_generation(
    keys: list[str], more: list[str], views: int
) -> None:
    planned = Planned(views={"per_image": views})
    (first,) = planned.grow(keys)
    before = {key: planned.store.get(key) for key in planned.store.keys("")}
    fresh = sorted(set(more) - set(keys))
    generations = planned.grow(keys + fresh)
    assert generations[0] == first
    assert {key: planned.store.get(key) for key in before} == before
    if not fresh:
        assert len(generations) == 1
        return
    assert len(generations) == 2
    assert generations[1].first_row == first.rows
    assert sorted({row["key"] for row in planned.rows(generations[1])}) == fresh
    assert planned.grow(keys + fresh) == generations


def test_grow_plan__missing_images_keep_their_rows() -> None:
    planned = Planned()
    generations = planned.grow(["a", "b", "c"])
    assert planned.grow(["b"]) == generations


def test_grow_plan__empty_source_plans_nothing() -> None:
    assert Planned().grow([]) == []


def test_grow_plan__draws_do_not_depend_on_the_neighbours() -> None:
    planned, alone = Planned(views={"per_image": 3}), Planned(views={"per_image": 3})
    many = planned.rows(planned.grow([f"{n}.jpg" for n in range(40)])[0])
    one = alone.rows(alone.grow(["7.jpg"])[0])
    assert [row for row in many if row["key"] == "7.jpg"] == one
    assert [row["draw_scale"] is None for row in one] == [True, False, False]
    assert one[1]["draw_scale"] != one[2]["draw_scale"]


def test_draws_of__are_what_they_were() -> None:
    """Frozen for ever: a plan made today is made the same way in ten years."""
    draws = draws_of("class0/0001.jpg", 1, 0)
    assert draws is not None
    assert round(draws.scale, 12) == 0.82379439228
    assert round(draws.x, 12) == 0.095885422035
    assert round(draws.flip, 12) == 0.077840285113
    order = hash_order([f"{number}.jpg" for number in range(8)])
    assert [int(name[0]) for name in order] == [6, 5, 3, 2, 1, 4, 0, 7]


def test_grow_plan__other_views_are_refused_with_both_values() -> None:
    planned = Planned(views={"per_image": 2, "seed": 3})
    planned.grow(["a"])
    with pytest.raises(ConfigError) as caught:
        planned.grow(["a", "b"], views={"per_image": 4, "seed": 5})
    assert "views.per_image: planned 2, now 4" in str(caught.value)
    assert "views.seed: planned 3, now 5" in str(caught.value)
    assert "crop_scale" not in str(caught.value)
    assert len(Catalog(planned.store).generations()) == 1


def test_grow_plan__another_data_set_is_refused_with_both_names() -> None:
    planned = Planned()
    planned.grow(["a", "b"], url="/photos")
    with pytest.raises(ConfigError, match=r"pictures of /photos; none of them is in /others"):
        planned.grow(["c", "d"], url="/others")


def test_grow_plan__changed_pictures_are_refused_with_both_sizes() -> None:
    planned = Planned(views={"per_image": 2})
    generations = planned.grow(["a", "bb", "c"])

    class Changed(Pictures):
        def entries(self) -> Iterator[Entry]:
            yield from (Entry(key, 9 if key == "bb" else 1, "") for key in self.keys)

    catalog = Catalog(planned.store)
    config = config_of("memory://", "/photos", views={"per_image": 2})
    with pytest.raises(ConfigError, match=r"1 pictures .* bb \(planned 2 bytes, now 9\)"):
        grow_plan(catalog, config, Changed(["a", "bb", "c", "d"]), Quiet())
    assert catalog.generations() == generations


def test_grow_plan__duplicate_keys_are_refused() -> None:
    planned = Planned()
    with pytest.raises(ConfigError, match=r"the key 'b\.jpg' stands twice"):
        planned.grow(["a.jpg", "b.jpg", "c.jpg", "b.jpg"])
    assert list(planned.store.keys("plan/")) == []


def test_grow_plan__another_job_was_faster() -> None:
    """Its generation stands, and is not planned again."""
    planned = Planned()
    keys = [f"{number}" for number in range(9)]
    attempts = count()
    create = planned.store.create

    def overtaken(key: str, data: bytes) -> None:
        if key == "commits/plan/000000.json" and next(attempts) == 0:
            planned.grow(keys[:5])
        create(key, data)

    planned.store.create = overtaken  # type: ignore[method-assign]
    generations = planned.grow(keys)
    assert [commit.images for commit in generations] == [5, 4]
    assert sorted(row["key"] for commit in generations for row in planned.rows(commit)) == keys


@pytest.mark.parametrize(
    ("images", "span"),
    [(1, 32), (511, 32), (1023, 32), (1024, 64), (8191, 256), (8192, 512), (10**9, 512)],
)
def test_span_images__leaves_no_worker_idle(images: int, span: int) -> None:
    assert span_images(images) == span
