"""What a shard's CLS table says of its rows, unpacked once and held for the blocks that follow."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas import tables

Halves = npt.NDArray[np.float16]
Value = TypeVar("Value")


@dataclass(frozen=True)
class ShardRows:
    """One line a row of the shard."""

    row: npt.NDArray[np.int64]
    """Of the plan."""
    places: pa.Table
    """key and view: what a row is known by."""
    ok: npt.NDArray[np.bool_]
    checksums: list[int | None]
    """Of the rows' tokens."""
    image_sha256: list[bytes | None]
    pixels_sha256: list[bytes | None]
    cls: Halves | None
    """[rows, cls_width], standardised; zeros in bad rows."""

    def are_of_plan(self, block: slice, first_row: int, plan: pa.Table) -> bool:
        """Alignment is checked by key, never by position alone.

        Args:
            block: which rows of the shard should be the rows of `plan` from `first_row` on.
        """
        places = self.places.slice(block.start, block.stop - block.start)
        expected = np.arange(first_row, first_row + len(plan))
        return np.array_equal(self.row[block], expected) and bool(
            places.equals(plan.select(places.column_names))
        )


def unpack(table: pa.Table, cls_width: int | None) -> ShardRows:
    """A CLS table (tables.cls_schema), its bytes checked."""
    ok = np.asarray(pc.equal(table["status"], tables.OK))
    cls = None
    if cls_width is not None:
        values = np.asarray(table["cls"].combine_chunks().flatten())
        cls = np.where(ok[:, None], values.reshape(len(table), cls_width), np.float16(0))
    return ShardRows(
        row=np.asarray(table["row"]),
        places=table.select(["key", "view"]).combine_chunks(),
        ok=ok,
        checksums=table["tokens_crc32c"].to_pylist(),
        image_sha256=table["image_sha256"].to_pylist(),
        pixels_sha256=table["pixels_sha256"].to_pylist(),
        cls=cls,
    )


class Held(Generic[Value]):
    """The most recently used values of a slow function, for many threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)
        return value
