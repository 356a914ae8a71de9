"""Codes of varying length: one step for all channels of a row, so that the wide ones get more bits
and the narrow ones none (reverse water-filling), in rows of one size.

A token is brought to unit spread by a scale of its own: what counts is its direction. Each row then
has the finest step with which it fits its bytes:

    step         int16: the row's step is 2^(step / 16)
    states       int32 [lanes]: what decoding begins with
    scales       uint8 [tokens]: s for 2^((s - 128) / 8); 0 for a token of zeros
    a zero byte  if there is an odd number of tokens
    words        uint16, to the end of the row

Little-endian. A channel's step is the row's, but at least a sixteenth of the channel's spread.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from infra.codec import rans
from infra.codec.rotation import power_of_two
from schemas.codec import SPREAD_PER_OCTAVE
from schemas.frequencies import MOST, PER_OCTAVE, STEPS_BELOW, TABLES, TOTAL, Tables

STEP_BYTES = 2
_WIDEST = 4 * SPREAD_PER_OCTAVE
"""At most 2^4 steps to a spread: the last table."""
SCALE_PER_OCTAVE = 8
_SCALE_ONE = 128
_COST_ONE = 1024
"""Costs are whole parts of a bit."""
_REACH = 2 * SPREAD_PER_OCTAVE
"""How far from what is expected a row's step is looked for first."""


@dataclass(frozen=True)
class Variable:
    """What the rows of a set have in common, on one device."""

    bits: float
    """Mean of a channel of a token, with all that is stored beside the codes."""
    spreads: Tensor
    """int64 [channels]: 16 log2 of each channel's spread in tokens of unit spread."""
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
        """An even number."""
        channels = len(self.spreads)
        return max(
            self._head(tokens) + 2 * rans.lane_count(tokens, channels),
            round(self.bits * tokens * channels / 16) * 2,
        )

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
        steps = self._finest(unit)
        coarse = torch.zeros_like(steps)
        for _ in range(_REACH):
            levels = unit.abs() / self._step(steps)
            beyond = levels.amax(-1) > MOST
            if beyond.any():
                coarse = torch.maximum(coarse, beyond.sum(1))
                scales = torch.where(beyond, scales + SCALE_PER_OCTAVE, scales)
                unit = torch.where(beyond[..., None], unit / 2, unit)
                continue
            codes = self._codes(unit, steps)
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
        steps = rows[:, : ends[0]].contiguous().view(torch.int16).long()[:, 0]
        states = rows[:, ends[0] : ends[1]].contiguous().view(torch.int32)
        scales = rows[:, ends[1] : ends[2]].long()
        words = rows[:, self._head(tokens) :].contiguous().view(torch.int16).int() & rans.WORD
        codes = rans.decode(states, words, self._tables(steps), self.ranges, tokens)
        factor = _factor(scales, SCALE_PER_OCTAVE, _SCALE_ONE).float()
        factor[scales == 0] = 0.0
        return (factor[..., None] * self._step(steps)) * codes.float()

    def _head(self, tokens: int) -> int:
        lanes = rans.lane_count(tokens, len(self.spreads))
        return STEP_BYTES + rans.STATE_BYTES * lanes + tokens + tokens % 2

    def _finest(self, unit: Tensor) -> Tensor:
        """int64 [rows]: the smallest step with which each row's codes fit, by bisection."""
        rows, count, channels = unit.shape
        room = (self.row_bytes(count) - self._head(count)) * 8 * _COST_ONE
        # The lanes' last words hold a few bits less than they could.
        room -= rans.lane_count(count, channels) * _COST_ONE
        low = torch.full((rows,), -(1 << 10), device=unit.device)
        high = -low
        guess = self._expected(room // count)
        for probe in (guess - _REACH // 2, guess + _REACH // 2):
            fits = self._cost(unit, torch.full_like(low, probe)) <= room
            high = torch.where(fits & (high > probe), probe, high)
            low = torch.where(~fits & (low < probe), probe, low)
        while ((high - low) > 1).any():
            middle = (low + high) // 2
            fits = self._cost(unit, middle) <= room
            high, low = torch.where(fits, middle, high), torch.where(fits, low, middle)
        return high

    def _expected(self, room: int) -> int:
        """The step with which a token of normally distributed channels would cost `room`."""
        costs = self.costs.reshape(TABLES, -1)
        frequency = self.ranges.frequency.reshape(TABLES, -1)[:, MOST:].long()
        twice = torch.ones_like(frequency[0])
        twice[1:] = 2
        mean = (frequency * twice * costs).sum(1) // TOTAL
        low, high = -(1 << 10), 1 << 10
        while high - low > 1:
            middle = (low + high) // 2
            tables = self._tables(torch.tensor([middle], device=self.spreads.device))
            low, high = (low, middle) if int(mean[tables].sum()) <= room else (middle, high)
        return high

    def _cost(self, unit: Tensor, steps: Tensor) -> Tensor:
        """int64 [rows], in parts of a bit."""
        sizes = self._codes(unit, steps).abs()
        place = self._tables(steps)[:, None] * (MOST + 1) + sizes
        return self.costs[place].sum((1, 2))

    def _codes(self, unit: Tensor, steps: Tensor) -> Tensor:
        """int64 [rows, tokens, channels]: rounded towards zero by a little more than to the next,
        because a code that is nearer to zero is a shorter one."""
        threshold = 0.5 + min(0.1, max(0.0, 0.2 - 0.05 * self.bits))
        levels = (unit / self._step(steps)).abs()
        sizes = (levels + (1 - threshold)).floor().clamp_max(MOST)
        coded = self._tables(steps)[:, None] > 0
        return torch.where(coded, sizes.copysign(unit), 0.0).long()

    def _tables(self, steps: Tensor) -> Tensor:
        """int64 [rows, channels]."""
        above = self.spreads - self._exponents(steps)
        per_table = SPREAD_PER_OCTAVE // PER_OCTAVE
        return ((above + per_table // 2) // per_table + 1 + STEPS_BELOW).clamp(0, TABLES - 1)

    def _step(self, steps: Tensor) -> Tensor:
        """float32 [rows, 1, channels]."""
        return _factor(self._exponents(steps), SPREAD_PER_OCTAVE).float()[:, None]

    def _exponents(self, steps: Tensor) -> Tensor:
        """int64 [rows, channels]: of each channel's step, in sixteenths of an octave."""
        return torch.maximum(steps[:, None], self.spreads - _WIDEST)

    def _packed(
        self, steps: Tensor, states: Tensor, scales: Tensor, words: Tensor, lengths: Tensor
    ) -> Tensor:
        count = scales.shape[1]
        stored = torch.zeros(
            (len(steps), self.row_bytes(count)), dtype=torch.uint8, device=steps.device
        )
        head = [
            steps.to(torch.int16)[:, None].view(torch.uint8),
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
