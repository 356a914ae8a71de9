"""Tasks in order, for workers that are each told one ahead what they will probably get next."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Task = TypeVar("Task", bound=Hashable)


class TaskQueue(Generic[Task]):
    """What a worker is told to expect stays in the queue: no worker idles while another sits on a
    task it has not begun, and what was prepared in vain is one chunk of pictures."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._waiting = dict.fromkeys(tasks)
        self._expected: dict[Hashable, Task] = {}

    def take(self, worker: Hashable) -> Task | None:
        """The task that the worker expects, if it is still there; else one nobody expects, else
        one that another does; None when all are taken."""
        expected = self._expected.pop(worker, None)
        if expected is not None and expected in self._waiting:
            task: Task | None = expected
        else:
            task = self._unexpected() or next(iter(self._waiting), None)
        if task is not None:
            del self._waiting[task]
        return task

    def expect(self, worker: Hashable) -> Task | None:
        """What the worker will probably take next."""
        task = self._unexpected()
        if task is not None:
            self._expected[worker] = task
        return task

    def put_back(self, task: Task) -> None:
        """First in the queue again, since its worker died."""
        self._waiting = {task: None, **self._waiting}

    def _unexpected(self) -> Task | None:
        taken = set(self._expected.values())
        return next((task for task in self._waiting if task not in taken), None)
