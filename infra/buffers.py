"""Arrays that one ranged read fills, one after the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Buffers = Sequence[npt.NDArray[Any]]
"""In C order, writable."""


def room_of(buffers: Buffers) -> int:
    """In bytes."""
    return sum(buffer.nbytes for buffer in buffers)


def spread(data: memoryview, buffers: Buffers) -> int:
    """What `ObjectStore.fill` does, with bytes that were read in one piece."""
    source, start = np.frombuffer(data, np.uint8), 0
    for buffer in buffers:
        piece = source[start : start + buffer.nbytes]
        # numpy copies without the interpreter's lock.
        buffer.reshape(-1).view(np.uint8)[: len(piece)] = piece
        start += len(piece)
    return start
