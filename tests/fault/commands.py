"""The commands on stores in memory that a test chooses, quick enough to run thousands of times."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from infra.command import Outcome
from infra.models.timm_encoder import build_timm
from infra.store import MemoryStore, ObjectStore
from pipeline import gc, snapshots
from pipeline.teachers import LoadedTeacher, load_teacher
from schemas.extract_config import Teacher
from schemas.names import Precision
from schemas.options import GcOptions, SnapshotsOptions
from tests.caches import (
    VIT,
    Quiet,
    assert_same,
    commits,
    config_of,
    contents,
    extract_here,
    pictures,
    verify_here,
)
from tests.fault.fault_store import objects

IMAGES, VIEWS = 17, 2
GOOD, SHARDS = (IMAGES - 1) * VIEWS, 2
"""Of one teacher: an image cannot be read; the second shard holds two rows."""
OPERATIONS = 60
"""About as many as a command makes: what is drawn beyond strikes nothing."""
MANY = 500
"""Of the slow tests."""

Action = Callable[[], Outcome]
Contents = dict[str, Any]


class Commands:
    """The commands, each on the store of the thread that calls it."""

    def __init__(self, folder: Path) -> None:
        self._here, self._lock = threading.local(), threading.Lock()
        self._teachers: dict[str, LoadedTeacher] = {}
        self._weights = folder
        self._source = pictures(folder / "pictures", IMAGES - 1)
        (self._source / "empty.jpg").write_bytes(b"")
        for seed in (1, 2, 3):
            # In files: random ones are made by a generator that threads would share.
            weights = build_timm("test_vit", {}, f"random:{seed}").model.state_dict()
            save_file(weights, folder / f"{seed}.safetensors")

    def open_store(self, *_: object) -> ObjectStore:
        store: ObjectStore = self._here.store
        return store

    def load_teacher(self, teacher: Teacher, precision: Precision, device: str) -> LoadedTeacher:
        """Loaded once: that, and nothing else, would take most of the time."""
        with self._lock:
            if teacher.weights not in self._teachers:
                self._teachers[teacher.weights] = load_teacher(teacher, precision, device)
            return self._teachers[teacher.weights]

    def on(self, store: ObjectStore, action: Action) -> dict[str, Any]:
        before, self._here.store = getattr(self._here, "store", None), store
        try:
            outcome = action()
        finally:
            self._here.store = before
        assert outcome.status == 0, outcome.result
        return outcome.result

    def extract(self, seed: int = 1, **changes: Any) -> Outcome:
        weights = str(self._weights / f"{seed}.safetensors")
        asked = {
            "views": {"per_image": VIEWS},
            "teachers": {"vit": VIT | {"weights": weights}},
            "tolerate_bad_images": 1,
            **changes,
        }
        return extract_here(config_of("memory://", self._source, **asked))

    def repair(self) -> Outcome:
        return self.extract(repair=True)

    def gc(self) -> Outcome:
        return gc.run(GcOptions(cache="memory://", delete=True), Quiet())

    def snapshots(self, **options: Any) -> Outcome:
        return snapshots.run(SnapshotsOptions(cache="memory://", **options), Quiet())

    def prune(self) -> Outcome:
        return self.snapshots(prune=True)

    def verify(self) -> Outcome:
        return verify_here("memory://")


class Tried:
    """How many ways a test has tried, told when it ends."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0


def extract_again(commands: Commands, store: MemoryStore, expected: Contents, what: str) -> None:
    """One plain rerun ends what is there, and only that."""
    committed, left = commits(store), objects(store)
    result = commands.on(store, commands.extract)
    assert_same(contents(store), expected)
    after = objects(store)
    assert {key: after[key] for key in left} == left, what
    done = sum(commit.ok for commit in committed.values())
    assert result["teacher_forwards"] == GOOD - done, what
    assert result["shards_written"] == SHARDS - len(committed), what
    assert (result["rows"], result["ok"], result["bad"]) == (GOOD + VIEWS, GOOD, VIEWS), what
    assert commands.on(store, commands.verify)["shards"] == SHARDS, what
