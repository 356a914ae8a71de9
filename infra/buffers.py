"""Buffers that one ranged read fills, one after the other."""

from collections.abc import Sequence

import numpy as np

Buffers = Sequence[memoryview]
"""Of bytes, writable."""


def room_of(buffers: Buffers) -> int:
    return sum(map(len, buffers))


def spread(data: memoryview, buffers: Buffers) -> int:
    """What `ObjectStore.fill` does, with bytes that were read in one piece."""
    source, start = np.frombuffer(data, np.uint8), 0
    for buffer in buffers:
        piece = source[start : start + len(buffer)]
        # numpy copies without the interpreter's lock.
        np.frombuffer(buffer, np.uint8)[: len(piece)] = piece
        start += len(piece)
    return start
