"""Workers that pull tasks: as Ray actors, or one in this process (tests, and a fault store).

Features never pass through Ray: a worker writes what it computes, and returns a short report. A
task whose worker died goes to a new worker; which rows exist is told by commits alone, so a task
that runs twice writes nothing twice.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from infra.ray_session import Resources, ray_session
from infra.terminal import Terminal
from pipeline.job import FeatureSet, GivenUp, Job
from pipeline.task_queue import TaskQueue
from pipeline.worker import Worker
from schemas.errors import ConfigError, TeachonceError
from schemas.extract_config import Workers

Task = TypeVar("Task", bound=Hashable)
LOOK_S = 5.0
"""How often, while nothing happens, somebody looks whether there still is a cluster."""
ATTEMPTS = 3
"""Workers that a task may take with it before the job gives up on it."""


class Pool(Protocol):
    def use_sets(self, sets: tuple[FeatureSet, ...]) -> None: ...

    def run(self, method: str, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result) as they finish, in any order; GivenUp instead of a result where a
        task ended ATTEMPTS workers."""


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


class RayPool:
    """Actors that pull tasks; each knows its next task one ahead, to decode meanwhile."""

    def __init__(self, ray: Any, start: Callable[[], Any], count: int) -> None:
        self._ray, self._start = ray, start
        self._sets: tuple[FeatureSet, ...] = ()
        self._actors = [start() for _ in range(count)]
        self._loads = [actor.load.remote() for actor in self._actors]
        self._load()

    def use_sets(self, sets: tuple[FeatureSet, ...]) -> None:
        self._sets = sets
        for actor in self._actors:
            actor.use_sets.remote(sets)

    def run(self, method: str, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        queue = TaskQueue(tasks)
        failures: dict[Task, int] = {}
        running: dict[Any, tuple[int, Task]] = {}

        def submit(number: int, task: Task | None) -> None:
            if task is not None:
                upcoming = queue.expect(number)
                reference = getattr(self._actors[number], method).remote(task, upcoming)
                running[reference] = number, task

        first = [queue.take(number) for number in range(len(self._actors))]
        for number, task in enumerate(first):
            submit(number, task)
        while running:
            reference = self._wait(list(running))
            number, task = running.pop(reference)
            try:
                # A worker that could not load says so, and not what it then tripped over.
                _, result = self._get([self._loads[number], reference])
            except self._ray.exceptions.RayActorError as error:
                failures[task] = failures.get(task, 0) + 1
                self._replace(number)
                if failures[task] < ATTEMPTS:
                    queue.put_back(task)
                submit(number, queue.take(number))
                if failures[task] == ATTEMPTS:
                    yield task, GivenUp(f"it ended {ATTEMPTS} workers, the last with: {error}")
                continue
            submit(number, queue.take(number))
            yield task, result

    def _replace(self, number: int) -> None:
        """Start another in its place, on whatever node has room; nobody waits for it."""
        self._actors[number] = self._start()
        self._loads[number] = self._actors[number].load.remote()
        self._actors[number].use_sets.remote(self._sets)

    def _load(self) -> None:
        try:
            for load in self._loads:
                self._wait([load])
                self._get(load)
        except self._ray.exceptions.RayActorError as error:
            raise TeachonceError(
                f"a worker died while it loaded the teachers, for want of memory perhaps: {error}"
            ) from None

    def _wait(self, references: list[Any]) -> Any:
        """The first that is ready. Actors start again wherever a node has room, however long that
        takes, but not where no node is left: Ray itself would wait for ever."""
        while True:
            ready, _ = self._ray.wait(references, num_returns=1, timeout=LOOK_S)
            if ready:
                return ready[0]
            if not any(node["Alive"] for node in self._ray.nodes()):
                raise TeachonceError(
                    "Ray has lost its last node (out of memory, or killed); what was committed "
                    "stays: run again"
                )

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
