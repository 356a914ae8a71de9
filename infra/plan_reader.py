"""The rows of a plan, read by range."""

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from infra.catalog import get_checked
from infra.store import ObjectStore
from schemas import tables
from schemas.errors import DamageError
from schemas.records import ObjectRecord, PlanCommit

ROW_GROUPS_HELD = 256
"""Of a plan that is read at random."""
FEW_GROUPS = 8
"""Of one that is read from its beginning to its end, by a few threads."""


class PlanReader:
    """Rows of one generation's plan by range, in bounded memory however long the plan."""

    def __init__(
        self, store: ObjectStore, commit: PlanCommit, groups_held: int = ROW_GROUPS_HELD
    ) -> None:
        self.commit = commit
        self._store, self._groups_held = store, groups_held
        self._files: dict[int, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, first: int, count: int) -> pa.Table:
        """Rows [first, first + count) of the generation (tables.PLAN). Raises DamageError."""
        pieces = []
        with self._lock:
            while count > 0:
                part, inside = divmod(first, tables.ROWS_PER_PLAN_PART)
                group, offset = divmod(inside, tables.ROWS_PER_PLAN_GROUP)
                piece = self._group(part, group).slice(offset, count)
                if len(piece) == 0:
                    raise DamageError(f"the plan has no row {first}", row=first)
                pieces.append(piece)
                first, count = first + len(piece), count - len(piece)
        return pa.concat_tables(pieces) if pieces else tables.PLAN.empty_table()

    def batches(self) -> Iterator[pa.Table]:
        """The whole generation, a bounded table at a time."""
        for first in range(0, self.commit.rows, tables.ROWS_PER_PLAN_GROUP):
            yield self.rows(first, min(tables.ROWS_PER_PLAN_GROUP, self.commit.rows - first))

    def _group(self, part: int, group: int) -> pa.Table:
        place = (part, group)
        if place not in self._groups:
            key = self.commit.parts[part].key
            try:
                self._groups[place] = self._file(part).read_row_group(group)
            except (pa.ArrowException, OSError) as error:
                raise DamageError(f"{key}: the plan is damaged: {error}", key=key) from None
            if len(self._groups) > self._groups_held:
                self._groups.popitem(last=False)
        self._groups.move_to_end(place)
        return self._groups[place]

    def _file(self, part: int) -> pq.ParquetFile:
        if part not in self._files:
            record = self.commit.parts[part]
            # Once whole: page checksums do not cover a Parquet file's footer.
            get_checked(self._store, record)
            self._files[part] = pq.ParquetFile(
                pa.PythonFile(_RangedFile(self._store, record), mode="r"),
                page_checksum_verification=True,
            )
        return self._files[part]


class _RangedFile(io.RawIOBase):
    """An object of the store as a file that reads only the ranges asked for."""

    def __init__(self, store: ObjectStore, record: ObjectRecord) -> None:
        self._store, self._record, self._position = store, record, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._record.size}
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._record.size if size < 0 else min(self._record.size, self._position + size)
        data = bytes(self._store.get_range(self._record.key, self._position, end))
        self._position += len(data)
        return data
