from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.catalog import Catalog
from infra.entry import Entry
from infra.plan_reader import PlanReader
from infra.store import MemoryStore
from pipeline.planning import grow_plan, open_or_create_cache, order_key, span_images
from schemas.errors import ConfigError
from schemas.keyed_hash import hash_texts
from schemas.records import PlanCommit
from schemas.spans import images_and_views, rows_of, span_count, span_of
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
        standing = grow_plan(catalog, config, Pictures(keys, url), Quiet())
        return [generation.plan for generation in standing]

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
    images, of_view = images_and_views(commit, np.arange(commit.rows))
    assert [ordered[image] for image in images] == [row["key"] for row in rows]
    assert of_view.tolist() == [row["view"] for row in rows]
    everything = rows_of(commit, np.arange(commit.images))
    assert [[ordered.index(rows[row]["key"]) for row in line] for line in everything] == [
        [image] * views for image in range(commit.images)
    ]


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


def test_order_key__is_what_it_was() -> None:
    """Frozen for ever: a plan made today is made the same way in ten years."""
    order = hash_order([f"{number}.jpg" for number in range(8)])
    assert [int(name[0]) for name in order] == [6, 5, 3, 2, 1, 4, 0, 7]


@given(KEYS, st.integers(1, 3), st.integers(1, 3))
def test_grow_plan__more_views_append_a_generation_of_them(
    keys: list[str], views: int, more: int
) -> None:
    planned = Planned()
    (first,) = planned.grow(keys, views={"per_image": views})
    grown = planned.grow([*keys, "fresh"], views={"per_image": views + more})
    assert grown[0] == first
    assert [(commit.first_view, commit.images) for commit in grown[1:]] == [
        (0, 1),
        (views, len(keys)),
    ]
    rows = [row for commit in grown for row in planned.rows(commit)]
    assert sorted((row["key"], row["view"]) for row in rows) == sorted(
        (key, view) for key in [*keys, "fresh"] for view in range(views + more)
    )
    at_once = Planned()
    (whole,) = at_once.grow([*keys, "fresh"], views={"per_image": views + more})
    order = [(row["key"], row["view"]) for row in rows]
    assert sorted(rows, key=lambda row: (row["key"], row["view"])) == sorted(
        at_once.rows(whole), key=lambda row: (row["key"], row["view"])
    )
    assert len(set(order)) == len(order)
    assert planned.grow([*keys, "fresh"], views={"per_image": views}) == grown


def test_grow_plan__a_raised_limit_plans_the_rest() -> None:
    planned = Planned()
    keys = [str(number) for number in range(9)]
    planned.grow(keys, images={"source": "/photos", "limit": 4})
    generations = planned.grow(keys, images={"source": "/photos", "limit": 7})
    assert [commit.images for commit in generations] == [4, 3]
    planned_keys = [row["key"] for commit in generations for row in planned.rows(commit)]
    assert planned_keys == hash_order(keys)[:7]
    assert planned.grow(keys, images={"source": "/photos", "limit": 2}) == generations


def test_grow_plan__other_views_are_refused_with_both_values() -> None:
    planned = Planned(views={"per_image": 2, "seed": 3})
    planned.grow(["a"])
    with pytest.raises(ConfigError) as caught:
        planned.grow(["a", "b"], views={"per_image": 4, "seed": 5, "photometric": {}})
    assert "views.seed: planned 3, now 5" in str(caught.value)
    assert "views.photometric: planned None, now {" in str(caught.value)
    assert "crop_scale" not in str(caught.value)
    assert "  views.per_image" not in str(caught.value)
    assert len(Catalog(planned.store).generations()) == 1


def test_grow_plan__another_data_set_is_refused_with_both_names() -> None:
    planned = Planned()
    planned.grow(["a", "b"], url="/photos")
    with pytest.raises(ConfigError, match=r"pictures of /photos; none of them is in /others"):
        planned.grow(["c", "d"], url="/others")


def test_grow_plan__what_nothing_was_computed_from_has_not_changed() -> None:
    """There is no feature that another size could contradict; no picture is read."""
    planned = Planned()
    generations = planned.grow(["a", "bb", "c"])

    class Changed(Pictures):
        def entries(self) -> Iterator[Entry]:
            yield from (Entry(key, 9, "") for key in self.keys)

    catalog = Catalog(planned.store)
    grow_plan(catalog, config_of("memory://", "/photos"), Changed(["a", "bb", "c"]), Quiet())
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
