"""Every task is handed out once, and no worker idles for a task that another only expects."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.task_queue import TaskQueue


@given(st.integers(0, 20), st.lists(st.integers(0, 4), max_size=80))
def test_take__every_task_once_whoever_comes(count: int, arrivals: list[int]) -> None:
    queue = TaskQueue([f"task {number}" for number in range(count)])
    taken = []
    for worker in arrivals:
        task = queue.take(worker)
        # A worker that comes gets something as long as there is anything.
        assert (task is None) == (len(taken) == count)
        if task is not None:
            taken.append(task)
            queue.expect(worker)
    assert len(set(taken)) == len(taken) == min(count, len(arrivals))


def test_take__what_was_expected() -> None:
    queue = TaskQueue("abcd")
    assert [queue.take(1), queue.take(2)] == ["a", "b"]
    assert [queue.expect(1), queue.expect(2)] == ["c", "d"]
    assert [queue.take(2), queue.take(1)] == ["d", "c"]


def test_take__the_last_is_not_kept_for_a_busy_worker() -> None:
    queue = TaskQueue("abc")
    assert [queue.take(1), queue.take(2)] == ["a", "b"]
    assert queue.expect(1) == "c"
    assert queue.expect(2) is None
    assert queue.take(2) == "c"
    assert queue.take(1) is None


def test_put_back__comes_first() -> None:
    queue = TaskQueue("abc")
    assert queue.take(1) == "a"
    queue.put_back("a")
    assert queue.take(2) == "a"
