import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest

from schemas.frequencies import (
    MOST,
    OCTAVES_ABOVE,
    PER_OCTAVE,
    STEPS_BELOW,
    TABLES,
    TOTAL,
    TOTAL_BITS,
    normal_tables,
)

GOLDEN = "93f94366f012f7c18437d7db6b745655f7a869bc5536a321865f77b7235bb85c"
"""Caches hold their tables, but every one made with the same version should hold the same."""


def spread(table: int) -> float:
    """In steps, as the module says."""
    return float(2 ** ((table - 1 - STEPS_BELOW) / PER_OCTAVE))


def test_normal_tables__shape() -> None:
    tables = normal_tables()
    assert TOTAL == 2**TOTAL_BITS == 2**15
    assert len(tables) == TABLES
    assert {len(table) for table in tables} == {MOST + 1}
    assert all(type(share) is int for table in tables for share in table)


def test_normal_tables__every_table_is_whole() -> None:
    """Decoding looks a slot of 2^15 up: one that no code has would be another table's."""
    for table in normal_tables():
        assert table[0] + 2 * sum(table[1:]) == TOTAL


def test_normal_tables__every_code_can_be_written_but_by_the_silent_one() -> None:
    silent, *others = normal_tables()
    assert silent == (TOTAL, *[0] * MOST)
    assert min(min(table) for table in others) >= 1


def test_normal_tables__large_codes_are_not_more_frequent() -> None:
    """But for what rounding leaves over, which code 0 has."""
    for table in normal_tables():
        assert all(near >= far for near, far in pairwise(table))


@pytest.mark.parametrize("table", [table for table in range(TABLES) if spread(table) >= 0.5])
def test_normal_tables__are_of_the_spread_they_say(table: int) -> None:
    """A rounded normal variable has a twelfth more variance than the variable, if it is wide."""
    shares = np.array(normal_tables()[table], float) / TOTAL
    variance = 2 * (shares * np.arange(MOST + 1) ** 2).sum()
    floor = 2 * (np.arange(MOST + 1) ** 2).sum() / TOTAL  # one share of each code
    assert variance - floor == pytest.approx(spread(table) ** 2 + 1 / 12, rel=0.02, abs=0.02)


@pytest.mark.parametrize("table", range(1, TABLES))
def test_normal_tables__cost_little_more_than_the_entropy(table: int) -> None:
    """Whole shares, at least one of each code, cost below 0.03 bits of a normal variable's code."""
    sigma = spread(table)
    edges = [math.erf((code - 0.5) / (sigma * math.sqrt(2))) / 2 for code in range(1, MOST + 2)]
    true = np.array([2 * edges[0], *np.repeat(np.diff(edges), 2)])
    shares = np.array(normal_tables()[table], float) / TOTAL
    coded = np.array([shares[0], *np.repeat(shares[1:], 2)])
    there = true > 0
    entropy = -(true[there] * np.log2(true[there])).sum()
    cost = -(true[there] * np.log2(coded[there])).sum()
    assert 0 <= cost - entropy + 1e-9 < 0.03


def test_normal_tables__tables_above_reach_sixteen_steps() -> None:
    assert spread(TABLES - 1) == 2.0**OCTAVES_ABOVE
    assert spread(1) == 2.0**-3


def test_normal_tables__golden() -> None:
    """Another machine's `erf` must not lead to other tables unseen."""
    values = np.array(normal_tables(), "<i4")
    assert hashlib.sha256(values.tobytes()).hexdigest() == GOLDEN
