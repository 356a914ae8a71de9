"""How often each code is expected: normal distributions, in whole numbers.

Table 0 is of a channel that is never coded; table i of one whose spread is
2^((i - 1 - STEPS_BELOW) / 4) steps of the quantiser.
"""

import math
from functools import cache
from itertools import pairwise

MOST = 127
"""Codes lie from -127 to 127, so that they fit a byte."""
TOTAL_BITS = 15
TOTAL = 1 << TOTAL_BITS
PER_OCTAVE = 4
STEPS_BELOW = 12
"""A channel whose spread is below 2^-3 steps (12 / 4 octaves) is not coded."""
OCTAVES_ABOVE = 4
"""The widest table: a spread of 16 steps, of which `MOST` is the eightfold."""
TABLES = 2 + STEPS_BELOW + OCTAVES_ABOVE * PER_OCTAVE

Tables = tuple[tuple[int, ...], ...]


@cache
def normal_tables() -> Tables:
    """[TABLES, MOST + 1]: of `TOTAL`, the share of code 0, and of each of +-1, +-2, ...

    Every code has a share of at least 1, so that every one can be written.
    """
    silent = (TOTAL,) + (0,) * MOST
    spreads = [2 ** ((i - STEPS_BELOW) / PER_OCTAVE) for i in range(TABLES - 1)]
    return (silent, *(_table(spread) for spread in spreads))


def _table(spread: float) -> tuple[int, ...]:
    free = TOTAL - (2 * MOST + 1)
    edges = [math.erf((code - 0.5) / (spread * math.sqrt(2))) / 2 for code in range(1, MOST + 2)]
    shares = [1 + math.floor(free * (end - start)) for start, end in pairwise(edges)]
    return (TOTAL - 2 * sum(shares), *shares)
