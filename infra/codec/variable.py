"""Codes of varying length: one step for all channels of a row, so that the wide ones get more bits
and the narrow ones none (reverse water-filling), in rows of one size.

A token is brought to unit spread by a scale of its own: what counts is its direction. Each row then
has the finest step with which it fits its bytes:

    step         int32: the row's step is 2^(step / 64)
    states       int32 [lanes]: what decoding begins with
    scales       uint8 [tokens]: s for 2^((s - 128) / 8); 0 for a token of zeros
    a zero byte  if there is an odd number of tokens
    words        uint16, to the end of the row; zeros where the row needs fewer

Little-endian, a multiple of four bytes. A channel's step is the row's, but at least a sixteenth of
the channel's spread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from infra.codec import rans
from infra.codec.powers import fraction_power, power_of_two
from infra.codec.steps import COST_ONE, Steps
from schemas.frequencies import MOST, Tables

STEP_BYTES = 4
SCALE_PER_OCTAVE = 8
_SCALE_ONE = 128
_LARGEST_SCALE = 255
_TRIES = 64


@dataclass(frozen=True)
class Variable:
    """What the rows of a set have in common, on one device."""

    bits: float
    """Mean of a channel of a token, with all that is stored beside the codes."""
    steps: Steps
    ranges: rans.Ranges

    @classmethod
    def of(
        cls, bits: float, spreads: tuple[int, ...], tables: Tables, device: torch.device | str
    ) -> "Variable":
        steps = Steps.of(bits, spreads, tables, device)
        return cls(bits, steps, rans.Ranges.of(tables, device))

    @property
    def channels(self) -> int:
        return len(self.steps.spreads)

    def row_bytes(self, tokens: int) -> int:
        """As many as the bits come to, but room for a word a lane."""
        least = self._head(tokens) + 2 * rans.lane_count(tokens, self.channels)
        return max(-(-least // 4), int(self.bits * tokens * self.channels) // 32) * 4

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [rows, tokens, channels] of float64 in the codec's basis.

        Returns:
            uint8 [rows, 1, bytes], and how many tokens of each row were made coarser because a
            value lay beyond the last code.
        """
        count = tokens.shape[1]
        scales = _scales(tokens)
        unit = (tokens / fraction_power(scales, SCALE_PER_OCTAVE, _SCALE_ONE)[..., None]).float()
        unit[scales == 0] = 0.0
        sizes = unit.abs()
        room = (self.row_bytes(count) - self._head(count)) * 8 * COST_ONE
        # The lanes' last words hold a few bits less than they could.
        room -= rans.lane_count(count, self.channels) * COST_ONE
        steps = self.steps.finest(sizes, room)
        coarse = torch.zeros_like(steps)
        for _ in range(_TRIES):
            levels = self.steps.levels(sizes, steps)
            beyond = levels.amax(-1) > MOST
            coarse = torch.maximum(coarse, beyond.sum(1))
            beyond &= scales <= _LARGEST_SCALE - SCALE_PER_OCTAVE
            if beyond.any():
                scales = torch.where(beyond, scales + SCALE_PER_OCTAVE, scales)
                sizes = torch.where(beyond[..., None], sizes / 2, sizes)
                continue
            codes = self.steps.rounded(levels).copysign_(unit)
            states, words, lengths = rans.encode(codes, self.steps.tables(steps), self.ranges)
            most = (self.row_bytes(count) - self._head(count)) // 2
            if not (lengths > most).any():
                return self._packed(steps, states, scales, words, lengths), coarse
            steps = torch.where(lengths > most, steps + 1, steps)
        raise AssertionError("a row of features does not fit its bytes at any step")

    def decode(self, stored: Tensor, tokens: int) -> Tensor:
        """float32 [rows, tokens, channels] in the codec's basis: (scale x step) x code."""
        rows = stored[:, 0]
        lanes = rans.lane_count(tokens, self.channels)
        ends = torch.tensor([STEP_BYTES, rans.STATE_BYTES * lanes, tokens]).cumsum(0).tolist()
        steps = rows[:, : ends[0]].contiguous().view(torch.int32).long()[:, 0]
        states = rows[:, ends[0] : ends[1]].contiguous().view(torch.int32)
        scales = rows[:, ends[1] : ends[2]].long()
        words = rows[:, self._head(tokens) :].contiguous().view(torch.int16).int() & rans.WORD
        decode = _decoder(stored.device)
        codes = decode(states, words, self.steps.tables(steps), self.ranges, tokens)
        factor = fraction_power(scales, SCALE_PER_OCTAVE, _SCALE_ONE).float()
        factor[scales == 0] = 0.0
        return (factor[..., None] * self.steps.step(steps)) * codes.float()

    def _head(self, tokens: int) -> int:
        lanes = rans.lane_count(tokens, self.channels)
        return STEP_BYTES + rans.STATE_BYTES * lanes + tokens + tokens % 2

    def _packed(
        self, steps: Tensor, states: Tensor, scales: Tensor, words: Tensor, lengths: Tensor
    ) -> Tensor:
        count = scales.shape[1]
        stored = torch.zeros(
            (len(steps), self.row_bytes(count)), dtype=torch.uint8, device=steps.device
        )
        head = [
            steps.to(torch.int32)[:, None].view(torch.uint8),
            states.view(torch.uint8),
            scales.to(torch.uint8),
        ]
        joined = torch.cat(head, dim=1)
        stored[:, : joined.shape[1]] = joined
        room = stored[:, self._head(count) :]
        most = room.shape[1] // 2
        places = words.shape[1] - lengths[:, None] + torch.arange(most, device=steps.device)
        first = words.gather(1, places.clamp_max(words.shape[1] - 1))
        first = torch.where(places < words.shape[1], first, 0)
        room.copy_(first.to(torch.uint16).view(torch.uint8))
        return stored[:, None]


@cache
def _decoder(device: torch.device) -> Callable[..., Tensor]:
    """A kernel where there is a GPU and Triton, else the plain one; both give the same codes."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from infra.codec import rans_triton

        return rans_triton.decode
    return rans.decode


def _scales(tokens: Tensor) -> Tensor:
    """int64 [rows, tokens]: the eighth of an octave next to each token's spread. Compared, not
    calculated: a logarithm's last bit is not the same everywhere."""
    most = tokens.abs().amax(-1, keepdim=True)
    unit = power_of_two(torch.frexp(most).exponent - 16)
    squares = (tokens / unit).round().square().sum(-1)
    mean = squares / tokens.shape[-1] * unit[..., 0].square()
    borders = [2 ** ((2 * n - 1 - 2 * _SCALE_ONE) / SCALE_PER_OCTAVE) for n in range(2, 256)]
    scales = 1 + torch.bucketize(mean, torch.tensor(borders, dtype=mean.dtype, device=mean.device))
    return torch.where(mean > 0, scales, 0)
