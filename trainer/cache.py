"""The strict reader: blocks of a pinned snapshot, every byte checked, every row matched by key.

Reads what the commits name and nothing else. A block of a set is one ranged read of its shard; the
shard's index and CLS table are held for the blocks that follow. A missing or altered byte raises;
no fill value is ever served.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.catalog import Catalog, PlanReader, is_superseded
from infra.redact import printable
from infra.store import FROM_ENVIRONMENT, open_store
from schemas.errors import CacheError, ConfigError
from schemas.layout import SetPath
from schemas.names import BLOCK_ROWS
from schemas.spans import Whole
from schemas.store_config import StoreOptions
from trainer.set_reader import SetBlock, SetReader, TeacherInfo


@dataclass(frozen=True)
class Block:
    """Consecutive rows of the plan, joined over the sets by row and key."""

    first_row: int
    plan: pa.Table
    """tables.PLAN, one line a row."""
    sets: dict[str, SetBlock]
    """By teacher name."""


class CacheReader:
    """Blocks of the sets that the named teachers mean in one snapshot.

    Args:
        teachers: name -> grid, None for the only grid there is; None for every teacher.
        store: how S3 is reached.

    Raises:
        CacheError: no cache, no such snapshot or teacher. DamageError: damaged records.
    """

    def __init__(
        self,
        cache: str,
        snapshot: int | Literal["latest"] = "latest",
        teachers: Mapping[str, int | None] | None = None,
        store: StoreOptions = FROM_ENVIRONMENT,
    ) -> None:
        self._store = open_store(cache, store)
        catalog = Catalog(self._store)
        number = catalog.latest_snapshot() if snapshot == "latest" else snapshot
        if number is None:
            raise CacheError(f"{cache}: has no snapshot yet; let extract finish first")
        if number in catalog.forgotten():
            raise CacheError(
                f"{cache}: snapshot {number} was forgotten, and what it had may be gone; the "
                f"newest is {catalog.latest_snapshot()}"
            )
        pinned = catalog.snapshot(number)
        self.record, self.snapshot = catalog.record, number
        counted = pinned.commit.generations
        self.generations = catalog.generations(at_least=counted)[:counted]
        self._superseded = catalog.superseded(self.generations)
        self._plans = [PlanReader(self._store, commit) for commit in self.generations]
        wanted = dict.fromkeys(pinned.commit.teachers) if teachers is None else teachers
        self._sets: dict[str, SetReader] = {}
        for name, grid in wanted.items():
            fp12 = pinned.commit.teachers.get(name)
            if fp12 is None:
                raise CacheError(
                    f"{cache}: snapshot {number} has no teacher {name!r}; it has "
                    f"{', '.join(sorted(pinned.commit.teachers))}"
                )
            path = _choose_set(pinned.table, name, fp12, grid)
            self._sets[name] = SetReader(self._store, path, pinned.table)

    @property
    def teachers(self) -> dict[str, TeacherInfo]:
        return {name: reader.info for name, reader in self._sets.items()}

    @property
    def sets(self) -> dict[str, SetPath]:
        """The feature set that each teacher's name means."""
        return {name: reader.path for name, reader in self._sets.items()}

    def covered(self, generation: int) -> npt.NDArray[np.bool_]:
        """For each block of a generation: whether every set has it."""
        plan = self.generations[generation]
        blocks = -(-plan.rows // BLOCK_ROWS)
        masks = [reader.covered(plan.generation, blocks) for reader in self._sets.values()]
        return np.asarray(np.all(masks, axis=0))

    def served(self, generation: int, rows: Whole) -> npt.NDArray[np.bool_]:
        """Which rows of a generation still count; the others stand anew in a later one."""
        first = self.generations[generation].first_row
        return ~is_superseded(self._superseded, first + rows)

    def read_block(self, generation: int, block: int) -> Block:
        """Read and check one block. Raises DamageError."""
        plan = self.generations[generation]
        first = block * BLOCK_ROWS
        count = min(BLOCK_ROWS, plan.rows - first)
        rows = self._plans[generation].rows(first, count)
        sets = {
            name: reader.read(generation, plan.first_row, first, rows)
            for name, reader in self._sets.items()
        }
        counts = self.served(generation, np.arange(first, first + count))
        self._refuse_mixed_pictures(rows["key"].to_pylist(), list(sets.values()), counts)
        return Block(plan.first_row + first, rows, sets)

    def _refuse_mixed_pictures(
        self, keys: list[str], sets: list[SetBlock], counts: npt.NDArray[np.bool_]
    ) -> None:
        """A key whose picture changed between two extractions must not join two pictures."""
        for row, key in enumerate(keys):
            if counts[row] and len({part.image_sha256[row] for part in sets if part.ok[row]}) > 1:
                raise CacheError(
                    f"{self._store.url}: image {printable(key)} changed between the extractions of "
                    f"{', '.join(self._sets)}; run extract again, which gives it new rows"
                )


def _choose_set(table: pa.Table, name: str, fp12: str, grid: int | None) -> SetPath:
    """The set a teacher's name means: at the grid asked for, the codec written last."""
    paths = [SetPath.parse(text) for text in pc.unique(table["set"]).to_pylist()]
    mine = [path for path in paths if path.fingerprint12 == fp12]
    grids = sorted({path.grid for path in mine})
    if grid is None and len(grids) > 1:
        raise ConfigError(
            f"teachers.{name}.grids: cached at {', '.join(map(str, grids))}; name one"
        )
    chosen = [path for path in mine if grid in (None, path.grid)]
    if not chosen:
        raise ConfigError(
            f"teachers.{name}.grids: not cached at {grid}; there is {', '.join(map(str, grids))}"
        )
    return chosen[-1]
