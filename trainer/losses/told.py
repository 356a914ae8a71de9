"""What a teacher said, as the loss reads it: codes where they lie in the cache like that, so that
no decoded copy is ever written.

    value[row, token, channel] = code x scale[row, token]  (x factor[channel] + shift[channel])
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Code = Literal["float", "int8", "int4", "fp8"]


@dataclass(frozen=True)
class Told:
    """Targets of a batch's tokens, on its device."""

    code: Code
    """float: of any float type. int4: two codes + 8 in a byte, the low half of it from the first
    half of the channels. fp8: e4m3, which every kernel takes apart by itself."""
    values: Tensor
    """[rows, tokens, channels], of int4 half as many, rounded up; uint8 unless `code` is float. The
    last dimension is dense."""
    channels: int
    scales: Tensor | None = None
    """float16 [rows, tokens]."""
    factor: Tensor | None = None
    """float32 [channels], with `shift`: where a cache has other statistics than the run."""
    shift: Tensor | None = None

    def decoded(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, tokens, channels], standardised."""
        values = self._codes().to(dtype)
        if self.scales is not None:
            values = values * self.scales[..., None].to(dtype)
        if self.factor is not None and self.shift is not None:
            values = values * self.factor.to(dtype) + self.shift.to(dtype)
        return values

    def _codes(self) -> Tensor:
        match self.code:
            case "int8":
                return self.values.view(torch.int8)
            case "fp8":
                return self.values.view(torch.float8_e4m3fn)
            case "int4":
                both = torch.cat([self.values & 0xF, self.values >> 4], dim=-1)
                return both[..., : self.channels].to(torch.int8) - 8
            case _:
                return self.values
