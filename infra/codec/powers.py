"""Powers of two to the same bits on every device: looked up, where an exponential would be
calculated."""

from functools import lru_cache

import torch
from torch import Tensor

_MOST_EXPONENT = 200


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent, float64, exact on every device."""
    return _powers(exponent.device)[exponent.long() + _MOST_EXPONENT]


def fraction_power(exponents: Tensor, per_octave: int, one: int = 0) -> Tensor:
    """float64: 2^((exponents - one) / per_octave)."""
    parts = [2 ** (part / per_octave) for part in range(per_octave)]
    whole = exponents - one
    fraction = torch.tensor(parts, dtype=torch.float64, device=exponents.device)
    octave = torch.div(whole, per_octave, rounding_mode="floor")
    return fraction[whole - octave * per_octave] * power_of_two(octave)


@lru_cache(maxsize=16)
def _powers(device: torch.device) -> Tensor:
    exponents = range(-_MOST_EXPONENT, _MOST_EXPONENT + 1)
    return torch.tensor([2.0**n for n in exponents], dtype=torch.float64, device=device)
