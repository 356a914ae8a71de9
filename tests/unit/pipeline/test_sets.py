from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.store import MemoryStore
from pipeline import sets as feature_sets
from pipeline.job import FeatureSet, ShardTask
from pipeline.sets import MAX_SHARD_BYTES, rows_per_shard
from schemas import shard
from schemas.records import PlanCommit
from tests.unit.pipeline.fixtures import feature_set, plan, standing

SPANS = st.integers(5, 9).map(lambda power: 1 << power)


@given(st.integers(1, 1 << 28), SPANS)
def test_rows_per_shard__auto_is_the_most_that_fits(row_bytes: int, span: int) -> None:
    rows = rows_per_shard(row_bytes, span, "auto")
    assert rows in {32, 64, 128, 256, 512}
    assert rows <= span
    assert rows == 32 or rows * row_bytes <= MAX_SHARD_BYTES
    assert rows == span or 2 * rows * row_bytes > MAX_SHARD_BYTES


@given(st.integers(5, 12).map(lambda power: 1 << power), SPANS)
def test_rows_per_shard__asked_for_is_cut_to_the_span(asked: int, span: int) -> None:
    assert rows_per_shard(1000, span, asked) == min(asked, span)


def test_frozen_array__the_first_size_wins() -> None:
    store, planned = MemoryStore(), plan(images=300, span_images=128)
    first = feature_sets.frozen_array(store, feature_set(), planned, 64)
    again = feature_sets.frozen_array(store, feature_set(), planned, 32)
    assert first == again
    assert shard.rows_per_shard_of(again) == 64


def tasks_of(planned: PlanCommit, rows: int, committed: set[int]) -> list[tuple[int, ShardTask]]:
    array = feature_sets.frozen_array(MemoryStore(), feature_set(), planned, rows)
    return list(feature_sets.shard_tasks(0, array, standing(planned), committed, {}))


@given(st.integers(1, 400), st.integers(1, 4), st.sampled_from([32, 64]))
def test_shard_tasks__cover_every_row_once_within_spans(images: int, views: int, rows: int) -> None:
    planned = plan(images=images, per_image=views, span_images=64)
    tasks = tasks_of(planned, rows, set())
    covered = [
        row for _, task in tasks for row in range(task.first_row, task.first_row + task.rows)
    ]
    assert covered == list(range(planned.rows))
    for span, task in tasks:
        last = task.first_row + task.rows - 1
        assert span == task.first_row // (64 * views) == last // (64 * views)
    spans = feature_sets.span_tasks(standing(planned), tasks)
    assert [s for task in spans for s in task.shards] == [task for _, task in tasks]
    assert [task.span for task in spans] == list(range(-(-images // 64)))


@pytest.mark.parametrize("committed", [set(), {0}, {1, 3}, {0, 1, 2, 3, 4}])
def test_shard_tasks__leave_out_what_is_committed(committed: set[int]) -> None:
    planned = plan(images=150, span_images=64)
    numbers = [task.shard for _, task in tasks_of(planned, 32, committed)]
    assert numbers == sorted({0, 1, 2, 3, 4} - committed)


def test_committed_shards__reads_numbers_of_its_own_generation() -> None:
    store, one = MemoryStore(), feature_set()
    other = FeatureSet(**{**one.__dict__, "path": type(one.path)("other", 2, "fp16-0")})
    for path, generation, number in ((one.path, 0, 3), (one.path, 0, 1025), (one.path, 1, 7)):
        store.create(path.commit(generation, number), b"x")
    store.create(other.path.commit(0, 9), b"x")
    assert feature_sets.committed_shards(store, one.path, 0) == {3, 1025}
    assert feature_sets.committed_shards(store, one.path, 1) == {7}
    assert feature_sets.committed_shards(store, other.path, 1) == set()


def test_shard_tasks__leave_out_what_is_not_asked_for() -> None:
    planned = plan(images=128, per_image=2, span_images=64)  # spans of 2 views x 2 shards

    def numbers(**changes: Any) -> list[int]:
        array = feature_sets.frozen_array(MemoryStore(), feature_set(), planned, 32)
        generation = standing(planned, **changes)
        return [task.shard for _, task in feature_sets.shard_tasks(0, array, generation, set(), {})]

    assert numbers() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert numbers(views=1) == [0, 1, 4, 5]
    assert numbers(asked=32) == [0, 2]
    assert numbers(asked=33) == [0, 1, 2, 3]
    assert numbers(replaced=range(64)) == [4, 5, 6, 7]
    assert numbers(gone=range(32, 64)) == [0, 2, 4, 5, 6, 7]
    assert numbers(replaced=range(31)) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_span_tasks__say_which_images_are_not_to_be_read() -> None:
    planned = plan(images=100, span_images=64)
    generation = standing(planned, gone=[3, 70], replaced=[5])
    array = feature_sets.frozen_array(MemoryStore(), feature_set(), planned, 32)
    tasks = list(feature_sets.shard_tasks(0, array, generation, set(), {}))
    first, second = feature_sets.span_tasks(generation, tasks)
    assert [image for image, _ in first.excused] == [3, 5]
    assert [image for image, _ in second.excused] == [6]
    assert "no longer" in first.excused[0][1]
    assert "later generation" in first.excused[1][1]
