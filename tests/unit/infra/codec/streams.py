"""A decoder of streams in plain Python, written from what rans.py says of them."""

from collections.abc import Iterator, Sequence

from schemas.frequencies import MOST, TOTAL, Tables


def decoded(
    states: Sequence[int],
    words: Sequence[int],
    tables: Sequence[int],
    frequencies: Tables,
    tokens: int,
) -> list[list[int]]:
    """Codes [tokens][channels] of one row.

    Args:
        tables: of each channel.

    Raises:
        AssertionError: the stream does not end as one that is whole does.
    """
    lanes, coming = list(states), iter(words)
    codes = [[0] * len(tables) for _ in range(tokens)]
    for first in range(0, tokens, len(lanes)):
        for channel, table in enumerate(tables):
            for lane in range(min(len(lanes), tokens - first)):
                codes[first + lane][channel], lanes[lane] = _taken(
                    lanes[lane], frequencies[table], coming
                )
    # Encoding began with these, and every word belongs to a code.
    assert lanes == [2**15] * len(lanes)
    assert next(coming, None) is None
    return codes


def _taken(state: int, shares: Sequence[int], words: Iterator[int]) -> tuple[int, int]:
    """A code and the state after it."""
    slot = state % TOTAL
    start = 0
    for code in range(-MOST, MOST + 1):
        share = shares[abs(code)]
        if slot < start + share:
            break
        start += share
    state = share * (state // TOTAL) + slot - start
    if state < 2**15:
        state = state * 2**16 + next(words)
    return code, state
