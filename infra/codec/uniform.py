"""int8 and int4: each token has a scale of its own, and every channel the same step.

A token is its codes and then its scale, float16, little-endian. Of two codes in a byte the low
half is of the first half of the channels, so that unpacking needs no interleaving.
"""

import torch
from torch import Tensor

SCALE_BYTES = 2
BEST_STEP = 0.335
"""Of 15 levels for normally distributed values, in standard deviations: least mean square error
(Max, 1960)."""
_OFFSET = 8
"""A half byte holds code + 8."""


def token_bytes(channels: int, bits: int) -> int:
    return (channels if bits == 8 else -(-channels // 2)) + SCALE_BYTES


def encode(tokens: Tensor, bits: int, clip: bool) -> tuple[Tensor, Tensor]:
    """Codes of tokens.

    Args:
        tokens: float32 [rows, tokens, channels].
        clip: take the step that suits normally distributed values where it is smaller than the one
            that reaches the largest.

    Returns:
        uint8 [rows, tokens, bytes], and how many values of each row lay beyond the last code.
    """
    most = 2 ** (bits - 1) - 1
    largest = tokens.abs().amax(-1, keepdim=True)
    step = largest / most
    if clip:
        step = torch.minimum(step, _spread(tokens) * BEST_STEP)
    scale = step.half()
    if not clip:
        # Where halves are far apart, the next one up, or the largest value would be out of reach.
        short = scale.float() * (most + 0.5) < largest
        scale = torch.where(short, scale.view(torch.int16) + 1, scale.view(torch.int16))
        scale = scale.view(torch.float16)
    step = scale.float()
    # Tokens of zeros, and those so near to them that float16 has no scale for them.
    levels = torch.where(step > 0, (tokens / step).round(), 0.0)
    codes = levels.clamp(-most, most)
    saturated = (levels != codes).sum((1, 2))
    packed = _pack(codes.to(torch.int8), bits)
    return torch.cat([packed, scale.contiguous().view(torch.uint8)], dim=-1), saturated


def decode(stored: Tensor, channels: int, bits: int) -> Tensor:
    """float32 [rows, tokens, channels]: scale x code."""
    packed, scale = stored[..., :-SCALE_BYTES], stored[..., -SCALE_BYTES:]
    # A copy: what begins at an odd byte cannot be looked at as halves.
    step = scale.clone(memory_format=torch.contiguous_format).view(torch.float16).float()
    return _unpack(packed, channels, bits).float() * step


def _spread(tokens: Tensor) -> Tensor:
    """Root mean square of each token, the same bits in whatever order its squares are added: of
    values as whole numbers of at most 2^16, whose squares have exact sums."""
    most = tokens.abs().amax(-1, keepdim=True)
    unit = torch.where(most > 0, most / 2**16, 1.0)
    squares = (tokens / unit).round().double().square().sum(-1, keepdim=True)
    return ((squares / tokens.shape[-1]).sqrt() * unit).float()


def _pack(codes: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes.view(torch.uint8)
    half = -(-codes.shape[-1] // 2)
    shifted = torch.nn.functional.pad(codes, (0, 2 * half - codes.shape[-1])) + _OFFSET
    halves = shifted.to(torch.uint8)
    return halves[..., :half] | (halves[..., half:] << 4)


def _unpack(packed: Tensor, channels: int, bits: int) -> Tensor:
    """int8 [rows, tokens, channels]."""
    if bits == 8:
        return packed.contiguous().view(torch.int8)
    both = torch.cat([packed & 0xF, packed >> 4], dim=-1)[..., :channels]
    return both.to(torch.int8) - _OFFSET
