"""The strict reader: blocks of a pinned snapshot, every byte checked, every row matched by key.

Reads what the commits name and nothing else. A block of a set is one ranged read of its shard; the
shard's index and CLS table are held for the blocks that follow. A missing or altered byte raises;
no fill value is ever served.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.catalog import Catalog, is_superseded
from infra.plan_reader import PlanReader
from infra.redact import printable
from infra.store import FROM_ENVIRONMENT, open_store
from schemas.errors import CacheError, ConfigError
from schemas.layout import SetPath
from schemas.names import BLOCK_ROWS
from schemas.records import PlanCommit
from schemas.shard import Rows
from schemas.spans import Whole
from schemas.store_config import StoreOptions
from trainer.disk_cache import DiskCache
from trainer.set_reader import SetBlock, SetReader
from trainer.teacher_info import TeacherInfo


@dataclass(frozen=True)
class Block:
    """Consecutive rows of the plan, joined over the sets by row and key."""

    first_row: int
    plan: pa.Table
    """tables.PLAN, one line a row."""
    sets: dict[str, SetBlock]
    """By teacher name."""

    def is_good(self, row: int) -> bool:
        """In every set."""
        return all(part.ok[row] for part in self.sets.values())


Grids = Mapping[str, int | Sequence[int] | None]
"""Teacher name -> its grid, several, or None for the only one there is."""
Codecs = Mapping[str, str | None]
"""Teacher name -> label of the codec of its sets, or None for the one written last."""
AS_WRITTEN: Codecs = MappingProxyType({})


class CacheReader:
    """Blocks of the sets that the named teachers mean in one snapshot.

    Args:
        snapshot: its number or tag, or `latest`.
        teachers: None for every teacher of the snapshot.
        store: how S3 is reached.
        disk: folder, and bytes at most, that keep what was read.
        codecs: for the teachers that were cached in several.

    Raises:
        CacheError: no cache, no such snapshot or teacher. DamageError: damaged records.
    """

    def __init__(
        self,
        cache: str,
        snapshot: int | str = "latest",
        teachers: Grids | None = None,
        store: StoreOptions = FROM_ENVIRONMENT,
        disk: tuple[Path, int] | None = None,
        codecs: Codecs = AS_WRITTEN,
    ) -> None:
        self.store = open_store(cache, store)
        self.disk = None if disk is None else DiskCache(self.store, *disk)
        if self.disk is not None:
            self.store = self.disk
        catalog = Catalog(self.store)
        number = _number_of(catalog, snapshot)
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
        self.superseded = catalog.superseded(self.generations)
        """Plan rows, ascending, that no longer count."""
        self._plans = [PlanReader(self.store, commit) for commit in self.generations]
        wanted = dict.fromkeys(pinned.commit.teachers) if teachers is None else teachers
        self._sets: dict[str, dict[int, SetReader]] = {}
        for name, grids in wanted.items():
            fp12 = pinned.commit.teachers.get(name)
            if fp12 is None:
                raise CacheError(
                    f"{cache}: snapshot {number} has no teacher {name!r}; it has "
                    f"{', '.join(sorted(pinned.commit.teachers))}"
                )
            paths = _choose_sets(pinned.table, name, fp12, grids, codecs.get(name))
            self._sets[name] = {
                path.grid: SetReader(self.store, path, pinned.table, self.disk) for path in paths
            }

    @property
    def teachers(self) -> dict[str, TeacherInfo]:
        return {name: _info(list(readers.values())) for name, readers in self._sets.items()}

    @property
    def sets(self) -> dict[str, dict[int, SetPath]]:
        """The feature sets that each teacher's name means, by grid."""
        return {
            name: {grid: reader.path for grid, reader in readers.items()}
            for name, readers in self._sets.items()
        }

    def covered(self, plan: PlanCommit) -> npt.NDArray[np.bool_]:
        """For each block of a generation: whether every set has it."""
        blocks = -(-plan.rows // BLOCK_ROWS)
        readers = [reader for grids in self._sets.values() for reader in grids.values()]
        masks = [reader.covered(plan.generation, blocks) for reader in readers]
        return np.asarray(np.all(masks, axis=0))

    def served(self, plan: PlanCommit, rows: Whole) -> npt.NDArray[np.bool_]:
        """Which rows of a generation still count; the others stand anew in a later one."""
        return ~is_superseded(self.superseded, plan.first_row + rows)

    def block_bytes(self, grids: Mapping[str, int] | None = None) -> int:
        """Of a whole block, in memory."""
        chosen = self._chosen(grids).values()
        return BLOCK_ROWS * sum(reader.row_bytes for reader in chosen)

    def read_block(
        self, generation: int, block: int, grids: Mapping[str, int] | None = None
    ) -> tuple[Block, dict[str, Rows]]:
        """One block, and by teacher its tokens as they lie in the cache: [rows, height, width] of
        the codec's form, zeros in bad rows. Arguments and errors are those of `read_into`."""
        first = block * BLOCK_ROWS
        count = min(BLOCK_ROWS, self.generations[generation].rows - first)
        tokens = {name: reader.rows(count) for name, reader in self._chosen(grids).items()}
        into = {name: dict(enumerate(rows)) for name, rows in tokens.items()}
        return self.read_into(generation, block, into, grids), tokens

    def read_into(
        self,
        generation: int,
        block: int,
        into: Mapping[str, Mapping[int, Rows]],
        grids: Mapping[str, int] | None = None,
    ) -> Block:
        """Read and check rows of one block.

        Args:
            into: by teacher and row of the block, where its tokens go: [height, width] of the
                codec's form; a bad row becomes zeros.
            grids: which one of each teacher that has several.

        Raises:
            DamageError: a byte is missing or altered. CacheError: pictures of one key differ.
        """
        plan = self.generations[generation]
        first = block * BLOCK_ROWS
        count = min(BLOCK_ROWS, plan.rows - first)
        rows = self._plans[generation].rows(first, count)
        sets = {
            name: reader.read(generation, plan.first_row, first, rows, into[name])
            for name, reader in self._chosen(grids).items()
        }
        counts = self.served(plan, np.arange(first, first + count))
        self._refuse_mixed_pictures(rows, list(sets.values()), counts)
        return Block(plan.first_row + first, rows, sets)

    def _chosen(self, grids: Mapping[str, int] | None) -> dict[str, SetReader]:
        return {
            name: readers[(grids or {}).get(name, next(iter(readers)))]
            for name, readers in self._sets.items()
        }

    def _refuse_mixed_pictures(
        self, plan: pa.Table, sets: list[SetBlock], counts: npt.NDArray[np.bool_]
    ) -> None:
        """A key whose picture changed between two extractions must not join two pictures."""
        if all(part.image_sha256 == sets[0].image_sha256 for part in sets):
            return
        for row, key in enumerate(plan["key"].to_pylist()):
            if counts[row] and len({part.image_sha256[row] for part in sets if part.ok[row]}) > 1:
                raise CacheError(
                    f"{self.store.url}: image {printable(key)} changed between the extractions of "
                    f"{', '.join(self._sets)}; run extract again, which gives it new rows"
                )


def _number_of(catalog: Catalog, snapshot: int | str) -> int | None:
    if snapshot == "latest":
        return catalog.latest_snapshot()
    return snapshot if isinstance(snapshot, int) else catalog.snapshot_named(snapshot)


def _info(readers: Sequence[SetReader]) -> TeacherInfo:
    record = readers[0].record
    return TeacherInfo(
        fingerprint=record.fingerprint,
        grids=tuple(reader.path.grid for reader in readers),
        patch_width=record.patch_width,
        cls_width=record.cls_width,
        statistics={reader.path.grid: reader.statistics for reader in readers},
        codecs={reader.path.grid: reader.codec for reader in readers},
    )


def _choose_sets(
    table: pa.Table,
    name: str,
    fp12: str,
    asked: int | Sequence[int] | None,
    codec: str | None,
) -> list[SetPath]:
    """The sets a teacher's name means: at the grids asked for, each of the codec asked for, or of
    the one written last."""
    paths = [SetPath.parse(text) for text in pc.unique(table["set"]).to_pylist()]
    paths = [path for path in paths if path.fingerprint12 == fp12]
    labels = sorted({path.codec_label for path in paths})
    if codec is not None and codec not in labels:
        raise ConfigError(
            f"teachers.{name}.codec: not cached as {codec}; there is {', '.join(labels)}"
        )
    mine = {path.grid: path for path in paths if codec in (None, path.codec_label)}
    there = ", ".join(map(str, sorted(mine)))
    if asked is None and len(mine) > 1:
        raise ConfigError(f"teachers.{name}.grids: cached at {there}; name one")
    wanted = list(mine) if asked is None else [asked] if isinstance(asked, int) else list(asked)
    for grid in wanted:
        if grid not in mine:
            raise ConfigError(f"teachers.{name}.grids: not cached at {grid}; there is {there}")
    return [mine[grid] for grid in wanted]
