"""What a shard's CLS table says of a block's rows, and what is held of it for the next block."""

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
KNOWN_BYTES = 512
"""Key, draws, checksums and hashes of one row, roughly: they outweigh the smallest features."""
COLUMNS = ("row", "key", "view", "status", "tokens_crc32c", "image_sha256", "pixels_sha256", "cls")
"""What is read of a CLS table."""


@dataclass(frozen=True)
class BlockRows:
    """One line a row of the block."""

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

    @property
    def bytes(self) -> int:
        """In memory, roughly."""
        return len(self.row) * KNOWN_BYTES + (0 if self.cls is None else self.cls.nbytes)

    def are_of_plan(self, first_row: int, plan: pa.Table) -> bool:
        """Alignment is checked by key, never by position alone.

        Args:
            plan: the rows from `first_row` on.
        """
        expected = np.arange(first_row, first_row + len(plan))
        return np.array_equal(self.row, expected) and bool(
            self.places.equals(plan.select(self.places.column_names))
        )


def unpack(table: pa.Table, cls_width: int | None) -> BlockRows:
    """From `COLUMNS` of a block of a CLS table (tables.cls_schema), its bytes checked."""
    ok = np.asarray(pc.equal(table["status"], tables.OK))
    cls = None
    if cls_width is not None:
        values = np.asarray(table["cls"].combine_chunks().flatten())
        cls = np.where(ok[:, None], values.reshape(len(table), cls_width), np.float16(0))
    return BlockRows(
        row=np.asarray(table["row"]),
        places=table.select(["key", "view"]),
        ok=ok,
        checksums=table["tokens_crc32c"].to_pylist(),
        image_sha256=table["image_sha256"].to_pylist(),
        pixels_sha256=table["pixels_sha256"].to_pylist(),
        cls=cls,
    )


class Held(Generic[Value]):
    """The most recently used values of a slow function, for many threads.

    Args:
        most: sum of their sizes.
        size: of a value.
    """

    def __init__(self, most: int, size: Callable[[Value], int] = lambda _: 1) -> None:
        self._most, self._size, self._sum = most, size, 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:  # another thread may have made it as well
                self._values[key] = value
                self._sum += self._size(value)
            while self._sum > self._most:
                self._sum -= self._size(self._values.popitem(last=False)[1])
        return value
