"""int8 and int4: each token has a scale of its own, and every channel the same step.

A row is one string of bytes, read at once:

    codes        uint8 [tokens, code bytes]
    a zero byte  if those are an odd number of bytes, so that scales lie at even places
    scales       float16 [tokens], little-endian

Of two codes in a byte the low half is of the first half of the channels, so that unpacking needs no
interleaving.
"""

import torch
from torch import Tensor

SCALE_BYTES = 2
BEST_STEP = 0.335
"""Of 15 levels for normally distributed values, in standard deviations: least mean square error
(Max, 1960)."""
_OFFSET = 8
"""A half byte holds code + 8."""


def row_bytes(tokens: int, channels: int, bits: int) -> int:
    """Always even."""
    codes = tokens * _code_bytes(channels, bits)
    return codes + codes % 2 + SCALE_BYTES * tokens


def encode(tokens: Tensor, bits: int, clip: bool) -> tuple[Tensor, Tensor]:
    """Codes of tokens.

    Args:
        tokens: float32 [rows, tokens, channels].
        clip: take the step that suits normally distributed values where it is smaller than the one
            that reaches the largest.

    Returns:
        uint8 [rows, 1, bytes], and how many values of each row lay beyond the last code.
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
    packed = _pack(codes.to(torch.int8), bits).flatten(1)
    packed = torch.nn.functional.pad(packed, (0, packed.shape[1] % 2))
    halves = scale.flatten(1).contiguous().view(torch.uint8)
    return torch.cat([packed, halves], dim=1)[:, None], saturated


def parts(stored: Tensor, tokens: int, channels: int, bits: int) -> tuple[Tensor, Tensor]:
    """What rows consist of, without a copy.

    Args:
        stored: uint8 [rows, 1, bytes], of any even distance between rows.

    Returns:
        Views of it: codes, uint8 [rows, tokens, code bytes], and scales, float16 [rows, tokens].
    """
    rows, size = stored[:, 0], _code_bytes(channels, bits)
    codes = rows[:, : tokens * size].view(len(rows), tokens, size)
    return codes, rows[:, -SCALE_BYTES * tokens :].view(torch.float16)


def decode(stored: Tensor, tokens: int, channels: int, bits: int) -> Tensor:
    """float32 [rows, tokens, channels]: scale x code."""
    codes, scales = parts(stored, tokens, channels, bits)
    return _unpack(codes, channels, bits).float() * scales[..., None].float()


def _code_bytes(channels: int, bits: int) -> int:
    """Of a token."""
    return channels if bits == 8 else -(-channels // 2)


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
        return packed.view(torch.int8)
    both = torch.cat([packed & 0xF, packed >> 4], dim=-1)[..., :channels]
    return both.to(torch.int8) - _OFFSET
