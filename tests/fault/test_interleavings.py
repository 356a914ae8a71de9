"""Whatever goes wrong, and wherever: one plain rerun gives the cache that an undisturbed run gives,
and nothing that was committed is written or computed again.

One process: every store operation of a command meets every fault in turn; then two faults, one in
the rerun. Several processes are in test_races.py. Each test prints how many ways it has tried.
"""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial

import pytest

from infra.command import Outcome
from infra.store import MemoryStore
from schemas.errors import TeachonceError
from tests.caches import assert_same, contents
from tests.fault.commands import MANY, OPERATIONS, SHARDS, Action, Commands, Tried, extract_again
from tests.fault.fault_store import ENDING, Died, Fault, FaultStore, copy_of, faults_of, objects

# The beats of a process that has died end with it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def disturbed(
    commands: Commands, store: MemoryStore, action: Action, faults: Mapping[int, Fault]
) -> FaultStore:
    """What a process met there, which then has ended."""
    faulty = FaultStore(store, faults, lambda: time.sleep(0.001))
    with suppress(Died, TeachonceError):
        commands.on(faulty, action)
    faulty.end()
    return faulty


def one_fault_each(
    commands: Commands, begin: MemoryStore, action: Action, tried: Tried
) -> Iterator[tuple[MemoryStore, str]]:
    """What a command leaves when it meets every fault at every operation in turn, and the fault."""
    operations = disturbed(commands, copy_of(begin), action, {}).operations
    for at, operation in enumerate(operations):
        for fault in faults_of(operation):
            store = copy_of(begin)
            yield store, str(disturbed(commands, store, action, {at: fault}).struck)
            tried.count += 1


def test_extract__one_fault(commands: Commands, extracted: MemoryStore, tried: Tried) -> None:
    expected = contents(extracted)
    for store, what in one_fault_each(commands, MemoryStore(), commands.extract, tried):
        extract_again(commands, store, expected, what)


def two_faults(
    commands: Commands, extracted: MemoryStore, tried: Tried, seed: int, count: int
) -> None:
    """The second in the rerun."""
    expected, draw = contents(extracted), random.Random(seed)
    for _ in range(count):
        store, struck = MemoryStore(), []
        for _ in range(2):
            faults = {draw.randrange(OPERATIONS): draw.choice(ENDING)}
            struck += disturbed(commands, store, commands.extract, faults).struck
        extract_again(commands, store, expected, str(struck))
        tried.count += 1


def test_extract__two_faults(commands: Commands, extracted: MemoryStore, tried: Tried) -> None:
    two_faults(commands, extracted, tried, seed=0, count=20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_extract__many_times_two_faults(
    commands: Commands, extracted: MemoryStore, tried: Tried
) -> None:
    two_faults(commands, extracted, tried, seed=1, count=MANY)


def test_gc__one_fault(commands: Commands, littered: MemoryStore, tried: Tried) -> None:
    cleared = copy_of(littered)
    assert commands.on(cleared, commands.gc)["deleted"] > 10
    kept = objects(cleared)
    for store, what in one_fault_each(commands, littered, commands.gc, tried):
        left = objects(store)
        assert {key: left[key] for key in kept} == kept, what
        commands.on(store, commands.gc)
        assert objects(store) == kept, what
        commands.on(store, commands.verify)


def test_snapshots__one_fault(commands: Commands, tried: Tried) -> None:
    def change() -> Outcome:
        return commands.snapshots(prune=True, forget=(1,), tag=("2=paper",))

    begin = MemoryStore()
    for seed in (1, 2):
        commands.on(begin, partial(commands.extract, seed))
    undisturbed = copy_of(begin)
    told = commands.on(undisturbed, change)
    assert len(told["snapshots"]) == 3
    for store, what in one_fault_each(commands, begin, change, tried):
        assert commands.on(store, change) == told, what
        assert_same(contents(store), contents(undisturbed))
        commands.on(store, commands.verify)


def test_repair__one_fault(commands: Commands, damaged: MemoryStore, tried: Tried) -> None:
    whole = copy_of(damaged)
    assert commands.on(whole, commands.repair)["snapshot"] == 2
    expected = contents(whole)
    for store, what in one_fault_each(commands, damaged, commands.repair, tried):
        commands.on(store, commands.repair)
        assert_same(contents(store), expected)
        assert commands.on(store, commands.verify)["shards"] == SHARDS, what
