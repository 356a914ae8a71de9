"""Range asymmetric numeral systems (Duda, arXiv 1311.2540): numbers of known frequency as bits.

Each row is one stream of 16-bit words that several lanes share: lane l codes every `lanes`-th
token, channel after channel, and whichever lanes run out of bits take the next words in the order
of the lanes (Giesen, arXiv 1402.3392). All rows, and all lanes of a row, take each step together.
States stay below 2^31; all arithmetic is in whole numbers, so every device gives the same bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.frequencies import MOST, TOTAL, TOTAL_BITS, Tables

LOWEST = 1 << 15
"""A state below it takes another word."""
WORD_BITS = 16
WORD = (1 << WORD_BITS) - 1
MOST_LANES = 128
SYMBOLS_PER_LANE = 512
"""At least so many, because each lane costs the bits of a state."""
STATE_BYTES = 4


@dataclass(frozen=True)
class Ranges:
    """Tables as they are looked up, on one device; code c stands at c + MOST."""

    frequency: Tensor
    """int32 [tables x (2 MOST + 1)]"""
    start: Tensor
    """int32, as frequency: the sum of those before it."""
    code_at: Tensor
    """int16 [tables x TOTAL]: whose range a number lies in."""

    @classmethod
    def of(cls, tables: Tables, device: torch.device | str) -> "Ranges":
        positive = torch.tensor(tables, dtype=torch.int32)
        frequency = torch.cat([positive[:, 1:].flip(1), positive], dim=1)
        start = frequency.cumsum(1, dtype=torch.int32) - frequency
        codes = torch.arange(2 * MOST + 1, dtype=torch.int16).expand(len(tables), -1)
        code_at = torch.repeat_interleave(codes.reshape(-1), frequency.reshape(-1))
        flat = (frequency.reshape(-1), start.reshape(-1), code_at)
        return cls(*(values.to(device) for values in flat))


def lane_count(tokens: int, channels: int) -> int:
    """Of a row: a power of two, none more than there are tokens."""
    most = min(MOST_LANES, tokens, max(1, tokens * channels // SYMBOLS_PER_LANE))
    return 1 << (most.bit_length() - 1)


def encode(codes: Tensor, tables: Tensor, ranges: Ranges) -> tuple[Tensor, Tensor, Tensor]:
    """Streams of rows.

    Args:
        codes: int [rows, tokens, channels], each from -MOST to MOST.
        tables: int [rows, channels], which table a channel's codes are coded by.

    Returns:
        States, int32 [rows, lanes], that decoding begins with; words, int32 [rows, most], of which
        the last so many count as the third, int64 [rows], says.
    """
    rows, tokens, channels = codes.shape
    lanes = lane_count(tokens, channels)
    states = torch.full((rows, lanes), LOWEST, dtype=torch.int32, device=codes.device)
    most = tokens * channels
    # One place more, for what is written of lanes that have no word to give.
    words = torch.zeros((rows, most + 1), dtype=torch.int32, device=codes.device)
    end = torch.full((rows, 1), most, device=codes.device)
    # Channel after channel, as they are taken.
    codes = codes.to(torch.int32).transpose(1, 2).contiguous() + MOST
    for stretch, channel, table in reversed(list(_steps(tokens, tables, lanes))):
        place = table + codes[:, channel, stretch]
        frequency, start = ranges.frequency[place], ranges.start[place]
        count = place.shape[1]
        state = states[:, :count]
        full = (state >> WORD_BITS) >= frequency
        rank = full.cumsum(1)
        end -= rank[:, -1:]
        words.scatter_(1, torch.where(full, end + rank - 1, most), state & WORD)
        state = torch.where(full, state >> WORD_BITS, state)
        quotient = torch.div(state, frequency, rounding_mode="floor")
        states[:, :count] = (quotient << TOTAL_BITS) + (state - quotient * frequency) + start
    return states, words[:, :most], most - end[:, 0]


def decode(states: Tensor, words: Tensor, tables: Tensor, ranges: Ranges, tokens: int) -> Tensor:
    """Codes, int8 [rows, tokens, channels].

    Args:
        states: int32 [rows, lanes]. words: int32 [rows, most], from the first on.
        tables: as `encode` was given them.
    """
    rows, channels = tables.shape
    states = states.clone()
    codes = torch.zeros((rows, channels, tokens), dtype=torch.int8, device=tables.device)
    # A word that is not there is one of a stream cut short, which a checksum would have refused.
    words = torch.nn.functional.pad(words, (0, states.shape[1]))
    begin = torch.zeros((rows, 1), dtype=torch.int64, device=tables.device)
    for stretch, channel, table in _steps(tokens, tables, states.shape[1]):
        count = stretch.stop - stretch.start
        state = states[:, :count]
        slot = state & (TOTAL - 1)
        code = ranges.code_at[table // (2 * MOST + 1) * TOTAL + slot].to(torch.int32)
        place = table + code
        state = ranges.frequency[place] * (state >> TOTAL_BITS) + slot - ranges.start[place]
        empty = state < LOWEST
        rank = empty.cumsum(1)
        word = words.gather(1, (begin + rank - 1).clamp(0, words.shape[1] - 1))
        states[:, :count] = torch.where(empty, (state << WORD_BITS) | word, state)
        begin += rank[:, -1:]
        codes[:, channel, stretch] = (code - MOST).to(torch.int8)
    return codes.transpose(1, 2)


def _steps(tokens: int, tables: Tensor, lanes: int) -> Iterator[tuple[slice, int, Tensor]]:
    """What the lanes code in turn: tokens, a channel, and where its table begins in each row,
    int32 [rows, 1]. Channels that no row codes are left out."""
    coded = tables.any(0).nonzero()[:, 0].tolist()
    begins = tables.to(torch.int32) * (2 * MOST + 1)
    for first in range(0, tokens, lanes):
        for channel in coded:
            yield slice(first, min(first + lanes, tokens)), channel, begins[:, channel, None]
