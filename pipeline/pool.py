"""Workers that pull tasks: as Ray actors, or one in this process (tests, and a fault store).

Features never pass through Ray: a worker writes what it computes, and returns a short report. A
task whose worker died goes to a new worker; which rows exist is told by commits alone, so a task
that runs twice writes nothing twice.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from infra.ray_session import Resources, ray_session
from infra.terminal import Terminal
from pipeline.job import FeatureSet, Job
from pipeline.worker import Worker
from schemas.errors import ConfigError, TeachonceError
from schemas.extract_config import Workers

Task = TypeVar("Task")
ATTEMPTS = 3
"""Workers that a task may take with it before the job gives up on it."""


class Pool(Protocol):
    def use_sets(self, sets: tuple[FeatureSet, ...]) -> None: ...

    def run(self, method: str, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result) as they finish, in any order."""


class LocalPool:
    """One worker in this process, in order."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)
        self._worker.load()

    def use_sets(self, sets: tuple[FeatureSet, ...]) -> None:
        self._worker.use_sets(sets)

    def run(self, method: str, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        for task, upcoming in zip(tasks, [*tasks[1:], None]):
            yield task, getattr(self._worker, method)(task, upcoming)


@dataclass
class _Slot:
    """One actor: the task it computes and the one it has been told to expect."""

    actor: Any
    now: Any = None
    upcoming: Any = None


class RayPool:
    """Actors that pull tasks; each knows its next task one ahead, to decode meanwhile."""

    def __init__(self, ray: Any, start: Callable[[], Any], count: int) -> None:
        self._ray, self._start = ray, start
        self._sets: tuple[FeatureSet, ...] = ()
        self._slots = [_Slot(start()) for _ in range(count)]
        self._get([slot.actor.load.remote() for slot in self._slots])

    def use_sets(self, sets: tuple[FeatureSet, ...]) -> None:
        self._sets = sets
        for slot in self._slots:
            slot.actor.use_sets.remote(sets)

    def run(self, method: str, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        queue = deque(tasks)
        failures: dict[Task, int] = {}
        running: dict[Any, _Slot] = {}

        def submit(slot: _Slot) -> None:
            slot.now = slot.upcoming if slot.upcoming is not None else _pull(queue)
            slot.upcoming = _pull(queue) if slot.now is not None else None
            if slot.now is not None:
                reference = getattr(slot.actor, method).remote(slot.now, slot.upcoming)
                running[reference] = slot

        for slot in self._slots:
            submit(slot)
        while running:
            (reference,), _ = self._ray.wait(list(running), num_returns=1)
            slot = running.pop(reference)
            task = slot.now
            try:
                result = self._get(reference)
            except self._ray.exceptions.RayActorError as error:
                failures[task] = failures.get(task, 0) + 1
                if failures[task] == ATTEMPTS:
                    raise TeachonceError(
                        f"{task} ended {ATTEMPTS} workers, the last with: {error}"
                    ) from None
                queue.extendleft(filter(None, (slot.upcoming, task)))
                slot.upcoming = None
                self._replace(slot)
                submit(slot)
                continue
            submit(slot)
            yield task, result

    def _replace(self, slot: _Slot) -> None:
        slot.actor = self._start()
        self._get(slot.actor.load.remote())
        slot.actor.use_sets.remote(self._sets)

    def _get(self, references: Any) -> Any:
        """What the workers returned; raises what one of ours raised, without Ray around it."""
        try:
            return self._ray.get(references)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, TeachonceError) else error) from None


@contextmanager
def ray_pool(job: Job, workers: Workers, tasks: int, terminal: Terminal) -> Iterator[RayPool]:
    """Actors for a job that has so many tasks.

    Raises:
        ConfigError: the cluster has not the GPUs or CPUs that the workers ask for.
    """
    asked = 0 if workers.count == "auto" else workers.count
    with ray_session(terminal, asked) as (ray, resources):
        gpus = _gpus(workers, resources)
        count, reason = _count(workers, resources, gpus, tasks)
        terminal.decide("workers", count, reason)
        cpus_each = max(1, resources.cpus // count)
        threads = 0 if gpus else cpus_each
        decoders = workers.decode_threads if workers.decode_threads != "auto" else cpus_each
        terminal.decide("threads", f"{threads or 'torch'} forward, {decoders} decode", "per worker")
        device = "cuda" if gpus else "cpu"
        ready = replace(job, forward_threads=threads, decode_threads=decoders, device=device)
        actor = ray.remote(Worker).options(num_cpus=1, num_gpus=gpus)
        yield RayPool(ray, lambda: actor.remote(ready), count)


def _gpus(workers: Workers, resources: Resources) -> float:
    if workers.gpus == "auto":
        return 1.0 if resources.gpus else 0.0
    if workers.gpus > resources.gpus:
        raise ConfigError(
            f"workers.gpus: one worker asks for {workers.gpus:g}, the cluster has "
            f"{resources.gpus}; set workers.gpus to 0 for the CPU"
        )
    return workers.gpus


def _count(workers: Workers, resources: Resources, gpus: float, tasks: int) -> tuple[int, str]:
    offered = int(resources.gpus / gpus) if gpus else resources.cpus
    unit = "GPU" if gpus else "CPU core"
    if workers.count != "auto":
        if workers.count > offered and (gpus or not resources.local):
            raise ConfigError(
                f"workers.count: {workers.count} workers need a {unit} each, the cluster has room "
                f"for {offered}"
            )
        return workers.count, "as configured"
    if tasks < offered:
        return max(1, tasks), f"as many as there are spans, of {offered} {unit}s"
    return max(1, offered), f"one a {unit}"


def _pull(queue: deque[Any]) -> Any:
    return queue.popleft() if queue else None
