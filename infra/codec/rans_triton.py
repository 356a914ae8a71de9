"""`rans.decode` on a GPU: a program for each row, whose threads are the lanes.

Every step is a whole number's, so the codes are those of rans.py to the bit.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from infra.codec.rans import LOWEST, WORD_BITS, Ranges
from schemas.frequencies import MOST, TOTAL, TOTAL_BITS

CODES = tl.constexpr(2 * MOST + 1)
_MOST, _TOTAL, _TOTAL_BITS = tl.constexpr(MOST), tl.constexpr(TOTAL), tl.constexpr(TOTAL_BITS)
_LOWEST, _WORD_BITS = tl.constexpr(LOWEST), tl.constexpr(WORD_BITS)


@triton.jit
def _decode(
    codes,
    states,
    words,
    tables,
    frequency,
    start,
    code_at,
    tokens,
    channels,
    most_words,
    LANES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    state = tl.load(states + row * LANES + lane)
    words += row * most_words
    tables += row * channels
    codes += row * channels * tokens
    begin = 0
    for first in range(0, tokens, LANES):
        alive = first + lane < tokens
        for channel in range(channels):
            table = tl.load(tables + channel)
            if table > 0:
                slot = state & (_TOTAL - 1)
                code = tl.load(code_at + table * _TOTAL + slot).to(tl.int32)
                place = table * CODES + code
                share = tl.load(frequency + place)
                following = share * (state >> _TOTAL_BITS) + slot - tl.load(start + place)
                empty = alive & (following < _LOWEST)
                rank = tl.cumsum(empty.to(tl.int32), 0)
                at = begin + rank - 1
                word = tl.load(words + at, mask=empty & (at < most_words), other=0)
                following = tl.where(empty, (following << _WORD_BITS) | word, following)
                state = tl.where(alive, following, state)
                begin += tl.sum(empty.to(tl.int32), 0)
                target = codes + channel * tokens + first + lane
                tl.store(target, (code - _MOST).to(tl.int8), mask=alive)


def decode(states: Tensor, words: Tensor, tables: Tensor, ranges: Ranges, tokens: int) -> Tensor:
    """As rans.decode, whose arguments are these."""
    rows, channels = tables.shape
    lanes = states.shape[1]
    codes = torch.zeros((rows, channels, tokens), dtype=torch.int8, device=tables.device)
    arguments: tuple[Any, ...] = (
        codes,
        states.contiguous(),
        words.contiguous(),
        tables.to(torch.int32).contiguous(),
        ranges.frequency,
        ranges.start,
        ranges.code_at,
        tokens,
        channels,
        words.shape[1],
    )
    _decode[(rows,)](*arguments, LANES=lanes, num_warps=max(1, lanes // 32))
    return codes.transpose(1, 2)
