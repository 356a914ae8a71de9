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
from functools import cache, cached_property
from importlib.util import find_spec

import torch
from torch import Tensor

from infra.codec import rans
from infra.codec.rotation import power_of_two
from schemas.codec import SPREAD_PER_OCTAVE
from schemas.frequencies import MOST, PER_OCTAVE, STEPS_BELOW, TABLES, TOTAL, Tables

STEP_BYTES = 4
_WIDEST = 4 * SPREAD_PER_OCTAVE
"""At most 2^4 steps to a spread: the last table."""
SCALE_PER_OCTAVE = 8
_SCALE_ONE = 128
_LARGEST_SCALE = 255
_COST_ONE = 1024
"""Costs are whole parts of a bit."""
_FARTHEST = 16 * SPREAD_PER_OCTAVE
"""No step is further from 1, in either direction."""
_TRIES = 64
_STRAIGHT_TRIES = 4


@dataclass(frozen=True)
class Variable:
    """What the rows of a set have in common, on one device."""

    bits: float
    """Mean of a channel of a token, with all that is stored beside the codes."""
    spreads: Tensor
    """int64 [channels]: 64 log2 of each channel's spread in tokens of unit spread."""
    ranges: rans.Ranges
    costs: Tensor
    """int64 [tables x (MOST + 1)]: of each size of code."""

    @classmethod
    def of(
        cls, bits: float, spreads: tuple[int, ...], tables: Tables, device: torch.device | str
    ) -> "Variable":
        frequency = torch.tensor(tables, dtype=torch.float64)
        costs = (_COST_ONE * (TOTAL / frequency.clamp_min(0.5)).log2()).round().long()
        return cls(
            bits,
            torch.tensor(spreads, device=device),
            rans.Ranges.of(tables, device),
            costs.reshape(-1).to(device),
        )

    def row_bytes(self, tokens: int) -> int:
        """As many as the bits come to, but room for a word a lane."""
        channels = len(self.spreads)
        least = self._head(tokens) + 2 * rans.lane_count(tokens, channels)
        return max(-(-least // 4), int(self.bits * tokens * channels) // 32) * 4

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [rows, tokens, channels] of float64 in the codec's basis.

        Returns:
            uint8 [rows, 1, bytes], and how many tokens of each row were made coarser because a
            value lay beyond the last code.
        """
        count = tokens.shape[1]
        scales = _scales(tokens)
        unit = (tokens / _factor(scales, SCALE_PER_OCTAVE, _SCALE_ONE)[..., None]).float()
        unit[scales == 0] = 0.0
        sizes = unit.abs()
        steps = self._finest(sizes)
        coarse = torch.zeros_like(steps)
        for _ in range(_TRIES):
            levels = self._levels(sizes, steps)
            beyond = levels.amax(-1) > MOST
            coarse = torch.maximum(coarse, beyond.sum(1))
            beyond &= scales <= _LARGEST_SCALE - SCALE_PER_OCTAVE
            if beyond.any():
                scales = torch.where(beyond, scales + SCALE_PER_OCTAVE, scales)
                sizes = torch.where(beyond[..., None], sizes / 2, sizes)
                continue
            codes = self._rounded(levels).copysign_(unit)
            states, words, lengths = rans.encode(codes, self._tables(steps), self.ranges)
            most = (self.row_bytes(count) - self._head(count)) // 2
            if not (lengths > most).any():
                return self._packed(steps, states, scales, words, lengths), coarse
            steps = torch.where(lengths > most, steps + 1, steps)
        raise AssertionError("a row of features does not fit its bytes at any step")

    def decode(self, stored: Tensor, tokens: int) -> Tensor:
        """float32 [rows, tokens, channels] in the codec's basis: (scale x step) x code."""
        rows = stored[:, 0]
        lanes = rans.lane_count(tokens, len(self.spreads))
        ends = torch.tensor([STEP_BYTES, rans.STATE_BYTES * lanes, tokens]).cumsum(0).tolist()
        steps = rows[:, : ends[0]].contiguous().view(torch.int32).long()[:, 0]
        states = rows[:, ends[0] : ends[1]].contiguous().view(torch.int32)
        scales = rows[:, ends[1] : ends[2]].long()
        words = rows[:, self._head(tokens) :].contiguous().view(torch.int16).int() & rans.WORD
        decode = _decoder(stored.device)
        codes = decode(states, words, self._tables(steps), self.ranges, tokens)
        factor = _factor(scales, SCALE_PER_OCTAVE, _SCALE_ONE).float()
        factor[scales == 0] = 0.0
        return (factor[..., None] * self._step(steps)) * codes.float()

    def _head(self, tokens: int) -> int:
        lanes = rans.lane_count(tokens, len(self.spreads))
        return STEP_BYTES + rans.STATE_BYTES * lanes + tokens + tokens % 2

    def _finest(self, sizes: Tensor) -> Tensor:
        """int64 [rows]: about the smallest step with which each row's codes fit: what is left is
        less than a step is worth."""
        rows, count, channels = sizes.shape
        room = (self.row_bytes(count) - self._head(count)) * 8 * _COST_ONE
        # The lanes' last words hold a few bits less than they could.
        room -= rans.lane_count(count, channels) * _COST_ONE
        steps = self._start(room // count).expand(rows)
        too_fine = torch.full_like(steps, -_FARTHEST)
        fitting = torch.full_like(steps, _FARTHEST - 1)
        for attempt in range(_TRIES):
            over = self._cost(sizes, steps) - room
            fits = over <= 0
            fitting = torch.where(fits, torch.minimum(fitting, steps), fitting)
            too_fine = torch.where(fits, too_fine, torch.maximum(too_fine, steps))
            worth = self._worth[steps + _FARTHEST] * count
            change = torch.div(over, worth.clamp_min(1), rounding_mode="floor") + 1
            found = (fits & (change >= 0)) | (fitting - too_fine <= 1)
            steps = torch.where(found, fitting, steps)
            if found.all():
                break
            # Where the row is not what was expected, by halves.
            near = (too_fine + fitting) // 2
            next_one = steps + change
            inside = (next_one > too_fine) & (next_one < fitting) & (attempt < _STRAIGHT_TRIES)
            steps = torch.where(found, steps, torch.where(inside, next_one, near))
        return steps

    def _start(self, room: int) -> Tensor:
        """int64 [1]: the step with which a token of normally distributed channels costs `room`."""
        return (self._expected > room).sum().reshape(1) - _FARTHEST

    @cached_property
    def _expected(self) -> Tensor:
        """int64 [2 _FARTHEST]: what a token costs by step, falling, if it is as expected."""
        frequency = self.ranges.frequency.reshape(TABLES, -1)[:, MOST:].long()
        twice = torch.full_like(frequency[0], 2)
        twice[0] = 1
        mean = (frequency * twice * self.costs.reshape(TABLES, -1)).sum(1) // TOTAL
        steps = torch.arange(-_FARTHEST, _FARTHEST, device=self.spreads.device)
        return mean[self._tables(steps)].sum(1)

    @cached_property
    def _worth(self) -> Tensor:
        """int64, as `_expected`: what a token costs less with the next step."""
        octave = SPREAD_PER_OCTAVE
        last = self._expected[-1:].expand(octave)
        return (self._expected - torch.cat([self._expected[octave:], last])) // octave

    def _cost(self, sizes: Tensor, steps: Tensor) -> Tensor:
        """int64 [rows], in parts of a bit."""
        place = self._rounded(self._levels(sizes, steps)).long()
        place += self._tables(steps)[:, None] * (MOST + 1)
        return self.costs.take(place).sum((1, 2))

    def _levels(self, sizes: Tensor, steps: Tensor) -> Tensor:
        """float32: sizes [rows, tokens, channels] in steps; 0 in channels that are not coded."""
        per_size = _factor(-self._exponents(steps), SPREAD_PER_OCTAVE).float()
        return sizes * torch.where(self._tables(steps) > 0, per_size, 0.0)[:, None]

    def _rounded(self, levels: Tensor) -> Tensor:
        """float32, in place: rounded towards zero by a little more than to the next, because a code
        that is nearer to zero is a shorter one."""
        threshold = 0.5 + min(0.1, max(0.0, 0.2 - 0.05 * self.bits))
        return levels.add_(1 - threshold).floor_().clamp_max_(MOST)

    def _tables(self, steps: Tensor) -> Tensor:
        """int64 [rows, channels]."""
        above = self.spreads - self._exponents(steps)
        per_table = SPREAD_PER_OCTAVE // PER_OCTAVE
        return ((above + per_table // 2) // per_table + 1 + STEPS_BELOW).clamp(0, TABLES - 1)

    def _step(self, steps: Tensor) -> Tensor:
        """float32 [rows, 1, channels]."""
        return _factor(self._exponents(steps), SPREAD_PER_OCTAVE).float()[:, None]

    def _exponents(self, steps: Tensor) -> Tensor:
        """int64 [rows, channels]: of log2 of each channel's step, in parts of an octave."""
        return torch.maximum(steps[:, None], self.spreads - _WIDEST)

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


def _factor(exponents: Tensor, per_octave: int, one: int = 0) -> Tensor:
    """float64: 2^((exponents - one) / per_octave)."""
    parts = [2 ** (part / per_octave) for part in range(per_octave)]
    whole = exponents - one
    fraction = torch.tensor(parts, dtype=torch.float64, device=exponents.device)
    octave = torch.div(whole, per_octave, rounding_mode="floor")
    return fraction[whole - octave * per_octave] * power_of_two(octave)
