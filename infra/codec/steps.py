"""The step of each row: the finest with which its codes fit their room, and what follows from it.

Steps and spreads are whole parts of an octave: 2^(step / 64). A channel's step is its row's, but at
least a sixteenth of the channel's spread; one narrower than an eighth of its step is not coded.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from infra.codec.powers import fraction_power
from schemas.codec import SPREAD_PER_OCTAVE
from schemas.frequencies import MOST, PER_OCTAVE, STEPS_BELOW, TABLES, TOTAL, Tables

COST_ONE = 1024
"""Costs are whole parts of a bit."""
_WIDEST = 4 * SPREAD_PER_OCTAVE
"""At most 2^4 steps to a spread: the last table."""
_FARTHEST = 16 * SPREAD_PER_OCTAVE
"""No step is further from 1, in either direction."""
_TRIES = 64
_STRAIGHT_TRIES = 4


@dataclass(frozen=True)
class Steps:
    """How the channels of a set are quantised, on one device."""

    bits: float
    """Mean of a channel of a token: the more, the less is rounded towards zero."""
    spreads: Tensor
    """int64 [channels]: 64 log2 of each channel's spread in tokens of unit spread."""
    shares: Tensor
    """int64 [tables, MOST + 1]: of TOTAL, that of code 0, and of each of +-1, +-2, ..."""
    costs: Tensor
    """int64 [tables x (MOST + 1)]: of each size of code, in parts of a bit."""

    @classmethod
    def of(
        cls, bits: float, spreads: tuple[int, ...], tables: Tables, device: torch.device | str
    ) -> "Steps":
        # On the CPU: a logarithm's last bit is not the same everywhere. A code without a share is
        # never written.
        shares = torch.tensor(tables, dtype=torch.float64)
        costs = (COST_ONE * (TOTAL / shares.clamp_min(0.5)).log2()).round().long().reshape(-1)
        own = torch.tensor(spreads, device=device)
        return cls(bits, own, shares.long().to(device), costs.to(device))

    def finest(self, sizes: Tensor, room: int) -> Tensor:
        """int64 [rows]: about the smallest step with which each row's codes fit: what is left is
        less than a step is worth.

        Args:
            sizes: float32 [rows, tokens, channels], of tokens of unit spread.
            room: of a row, in parts of a bit.
        """
        rows, count, _ = sizes.shape
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
        both = self.shares.clone()
        both[:, 1:] *= 2
        mean = (both * self.costs.reshape(TABLES, -1)).sum(1) // TOTAL
        steps = torch.arange(-_FARTHEST, _FARTHEST, device=self.spreads.device)
        return mean[self.tables(steps)].sum(1)

    @cached_property
    def _worth(self) -> Tensor:
        """int64, as `_expected`: what a token costs less with the next step."""
        octave = SPREAD_PER_OCTAVE
        last = self._expected[-1:].expand(octave)
        return (self._expected - torch.cat([self._expected[octave:], last])) // octave

    def _cost(self, sizes: Tensor, steps: Tensor) -> Tensor:
        """int64 [rows], in parts of a bit."""
        place = self.rounded(self.levels(sizes, steps)).long()
        place += self.tables(steps)[:, None] * (MOST + 1)
        return self.costs.take(place).sum((1, 2))

    def levels(self, sizes: Tensor, steps: Tensor) -> Tensor:
        """float32: sizes [rows, tokens, channels] in steps; 0 in channels that are not coded."""
        per_size = fraction_power(-self._exponents(steps), SPREAD_PER_OCTAVE).float()
        return sizes * torch.where(self.tables(steps) > 0, per_size, 0.0)[:, None]

    def rounded(self, levels: Tensor) -> Tensor:
        """float32, in place: rounded towards zero by a little more than to the next, because a code
        that is nearer to zero is a shorter one."""
        threshold = 0.5 + min(0.1, max(0.0, 0.2 - 0.05 * self.bits))
        return levels.add_(1 - threshold).floor_().clamp_max_(MOST)

    def tables(self, steps: Tensor) -> Tensor:
        """int64 [rows, channels]."""
        above = self.spreads - self._exponents(steps)
        per_table = SPREAD_PER_OCTAVE // PER_OCTAVE
        return ((above + per_table // 2) // per_table + 1 + STEPS_BELOW).clamp(0, TABLES - 1)

    def step(self, steps: Tensor) -> Tensor:
        """float32 [rows, 1, channels]."""
        return fraction_power(self._exponents(steps), SPREAD_PER_OCTAVE).float()[:, None]

    def _exponents(self, steps: Tensor) -> Tensor:
        """int64 [rows, channels]: of log2 of each channel's step, in parts of an octave."""
        return torch.maximum(steps[:, None], self.spreads - _WIDEST)
