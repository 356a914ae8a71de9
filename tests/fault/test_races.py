"""Whoever else is at work, and dies at it: one plain rerun gives the cache that an undisturbed run
gives, and nothing that was committed is written or computed again.

Two processes: at every store operation of one the other runs whole. Two and three: faults and
delays drawn by a seed. Each test prints how many ways it has tried.
"""

import itertools
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

import pipeline.lease
from infra.store import MemoryStore
from schemas.errors import TeachonceError
from tests.caches import assert_same, contents
from tests.fault.commands import MANY, OPERATIONS, Action, Commands, Tried, extract_again
from tests.fault.fault_store import ENDING, Died, Fault, FaultStore, copy_of, objects

TIDY = {"cache.json", "commits", "features", "plan", "snapshots", "teachers"}
HOLD_S = 0.05
"""Who waits for another to end waits no longer than this: the other may wait for it."""

# The beats of a process that has died end with it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@dataclass(frozen=True)
class Scene:
    """Where several processes meet."""

    begin: MemoryStore
    actions: Sequence[Action]
    """Two or three at once, the first ones first."""
    rerun: Callable[[MemoryStore, str], None]
    """One plain rerun gives the undisturbed cache, whatever has happened."""
    forgiven: tuple[type[Exception], ...] = ()
    """What a process may end with though it meets no fault."""


@pytest.fixture
def extractions(commands: Commands, extracted: MemoryStore) -> Scene:
    expected = contents(extracted)
    return Scene(
        MemoryStore(),
        [commands.extract] * 3,
        lambda store, what: extract_again(commands, store, expected, what),
    )


@pytest.fixture
def with_gc(commands: Commands, littered: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A job that wants the very teacher whose set is being removed, and one that publishes."""
    # As seconds are to a person, so these are to a test.
    monkeypatch.setattr(pipeline.lease, "BEAT_S", 0.01)
    monkeypatch.setattr(pipeline.lease, "WATCH_S", 0.3)
    whole = copy_of(littered)
    for action in (commands.gc, commands.extract):
        commands.on(whole, action)
    expected = contents(whole)

    def rerun(store: MemoryStore, what: str) -> None:
        for action in (commands.verify, commands.extract, commands.gc, commands.verify):
            commands.on(store, action)
        assert_same(contents(store), expected)
        assert {key.partition("/")[0] for key in objects(store)} == TIDY, what

    return Scene(littered, [commands.extract, commands.gc, commands.prune], rerun)


@pytest.fixture
def repairs(commands: Commands, damaged: MemoryStore) -> Scene:
    whole = copy_of(damaged)
    commands.on(whole, commands.repair)
    expected = contents(whole)

    def rerun(store: MemoryStore, what: str) -> None:
        for action in (commands.repair, commands.verify):
            commands.on(store, action)
        assert_same(contents(store), expected)

    # One may look where another has just removed what it puts right, and then says so.
    return Scene(damaged, [commands.repair] * 3, rerun, (TeachonceError,))


class Race:
    """Processes at work on one cache."""

    def __init__(self, commands: Commands, scene: Scene) -> None:
        self._commands, self._store = commands, copy_of(scene.begin)
        self._scene = scene
        self._running, self._changed = 0, threading.Condition()

    def run(self, faults: Sequence[Mapping[int, Fault]]) -> list[FaultStore]:
        """As many processes as there are faults of theirs, to the end of all and a rerun. Whoever
        meets no fault that ends it comes to a good end."""
        processes = [FaultStore(self._store, each, self._until_another_ends) for each in faults]
        self._running = len(processes)
        with ThreadPoolExecutor(len(processes)) as threads:
            for _ in threads.map(self._act, processes, faults, self._scene.actions):
                pass
        struck = [what for process in processes for what in process.struck]
        self._scene.rerun(self._store, str(struck))
        return processes

    def _act(self, process: FaultStore, faults: Mapping[int, Fault], action: Action) -> None:
        ends = set(faults.values()) & set(ENDING)
        try:
            with suppress(*((Died, TeachonceError) if ends else self._scene.forgiven)):
                self._commands.on(process, action)
        finally:
            process.end()
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _until_another_ends(self) -> None:
        with self._changed:
            before = self._running
            self._changed.wait_for(
                lambda: self._running < before or self._running == 1, timeout=HOLD_S
            )


def switch_everywhere(
    commands: Commands, scene: Scene, first: Action, second: Action, tried: Tried
) -> None:
    """At every operation of the first process the second runs, to its end if it need not wait."""
    for at in itertools.count():
        store, started = copy_of(scene.begin), []
        with ThreadPoolExecutor(1) as thread:

            def meet(
                store: MemoryStore = store,
                thread: ThreadPoolExecutor = thread,
                started: list[Future[Any]] = started,
            ) -> None:
                started.append(thread.submit(commands.on, store, second))
                wait(started, timeout=HOLD_S if first == commands.gc else 10)

            process = FaultStore(store, {at: "delayed"}, meet)
            commands.on(process, first)
        if not started:
            return
        started[0].result()
        scene.rerun(store, str(process.struck))
        tried.count += 1


def race(commands: Commands, scene: Scene, tried: Tried, seed: int, count: int) -> None:
    """Two and three processes; up to two delays for each, and in two of three cases an end."""
    draw = random.Random(seed)
    for number in range(count):
        faults = []
        for _ in range(2 + number % 2):
            each: dict[int, Fault] = {
                draw.randrange(OPERATIONS): "delayed" for _ in range(draw.randrange(3))
            }
            if draw.random() < 2 / 3:
                each[draw.randrange(OPERATIONS)] = draw.choice(ENDING)
            faults.append(each)
        Race(commands, scene).run(faults)
        tried.count += 1


def test_switch__extract_extract(commands: Commands, extractions: Scene, tried: Tried) -> None:
    switch_everywhere(commands, extractions, commands.extract, commands.extract, tried)


QUICK = ("prune", "gc")
SWITCHES = [*itertools.permutations(["extract", "gc", "prune"], 2)]


@pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(*pair, marks=pytest.mark.slow) for pair in SWITCHES if pair != QUICK] + [QUICK],
)
def test_switch__with_gc(
    commands: Commands, with_gc: Scene, tried: Tried, first: str, second: str
) -> None:
    switch_everywhere(commands, with_gc, getattr(commands, first), getattr(commands, second), tried)


@pytest.mark.slow
def test_switch__repair_repair(commands: Commands, repairs: Scene, tried: Tried) -> None:
    switch_everywhere(commands, repairs, commands.repair, commands.repair, tried)


def test_race__extractions(commands: Commands, extractions: Scene, tried: Tried) -> None:
    race(commands, extractions, tried, seed=2, count=20)


def test_race__with_gc(commands: Commands, with_gc: Scene, tried: Tried) -> None:
    race(commands, with_gc, tried, seed=3, count=8)


def test_race__repairs(commands: Commands, repairs: Scene, tried: Tried) -> None:
    race(commands, repairs, tried, seed=4, count=20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["extractions", "with_gc", "repairs"])
def test_race__many(
    commands: Commands, tried: Tried, name: str, request: pytest.FixtureRequest
) -> None:
    race(commands, request.getfixturevalue(name), tried, seed=5, count=MANY)
