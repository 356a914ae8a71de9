"""`loss_and_gradient` in one pass on a GPU: every prediction and every code is read once, every
gradient written once.

A program has a few tokens, each of whose channels lie in up to three tiles of a power of two, so
that widths like 1536 leave no thread idle. Given four sums over the channels of a token, its
gradient is elementwise. All arithmetic is in float32, and sums have a fixed order: the same bits
every time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.losses.pieces_kernel import affine, code_tile, coefficients, slope, sums_of
from trainer.losses.told import Told
from trainer.losses.twin import Found, Terms

_PER_THREAD = 8
"""Channels of the widest tile: 16 bytes of a bfloat16 prediction."""


@triton.jit
def _pair(
    prediction, values, scale, factors, shifts, p_at, t_at, live,
    CHANNELS: tl.constexpr, START: tl.constexpr, SIZE: tl.constexpr,
    CODE: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """float32 [tokens, SIZE] of prediction and target; zeros where there is nothing."""
    channel = START + tl.arange(0, SIZE)
    mask = live[:, None] & (channel < CHANNELS)[None, :]
    p = tl.load(prediction + p_at[:, None] + channel[None, :], mask=mask, other=0.0)
    t = code_tile(values, t_at, channel, mask, CHANNELS, CODE) * scale[:, None]
    if AFFINE:
        t = affine(t, factors, shifts, channel, CHANNELS)
    return p.to(tl.float32), tl.where(mask, t, 0.0)


@triton.jit
def _write(
    gradient, at, p, t, by_p, by_t, by_slope, live, inside_token,
    CHANNELS: tl.constexpr, START: tl.constexpr, SIZE: tl.constexpr,
    BETA: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    found = by_p[:, None] * p + by_t[:, None] * t
    if SMOOTH != 0.0:
        found += by_slope[:, None] * slope(p - t, BETA)
    found = tl.where(live[:, None], found, 0.0)
    channel = START + tl.arange(0, SIZE)
    mask = inside_token[:, None] & (channel < CHANNELS)[None, :]
    target = gradient + at[:, None] + channel[None, :]
    tl.store(target, found.to(gradient.dtype.element_ty), mask=mask)


@triton.jit
def row_kernel(
    prediction, values, scales, factors, shifts, weights, share, by, losses, counts, gradient,
    count, tokens, programs, p_row, p_token, t_row, t_token, s_row, s_token, w_row, w_token,
    CHANNELS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    THIRD: tl.constexpr, ROWS: tl.constexpr, CODE: tl.constexpr, SCALED: tl.constexpr,
    AFFINE: tl.constexpr, COSINE: tl.constexpr, SMOOTH: tl.constexpr,
    BETA: tl.constexpr, DROP: tl.constexpr, GRADIENT: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    place = program * ROWS + tl.arange(0, ROWS)
    inside = place < count
    row, token = place // tokens, place % tokens
    weight = tl.load(weights + row * w_row + token * w_token, mask=inside, other=0.0)
    live = weight != 0.0
    scale = live.to(tl.float32)
    if SCALED:
        scale = tl.load(scales + row * s_row + token * s_token, mask=live, other=0.0)
        scale = scale.to(tl.float32)
    p_at, t_at = row * p_row + token * p_token, row * t_row + token * t_token

    p1, t1 = _pair(
        prediction, values, scale, factors, shifts, p_at, t_at, live,
        CHANNELS, 0, FIRST, CODE, AFFINE,
    )  # fmt: skip
    pp, tt, pt, far = sums_of(p1, t1, BETA, SMOOTH)
    if SECOND > 0:
        p2, t2 = _pair(
            prediction, values, scale, factors, shifts, p_at, t_at, live,
            CHANNELS, FIRST, SECOND, CODE, AFFINE,
        )  # fmt: skip
        more = sums_of(p2, t2, BETA, SMOOTH)
        pp, tt, pt, far = pp + more[0], tt + more[1], pt + more[2], far + more[3]
    if THIRD > 0:
        p3, t3 = _pair(
            prediction, values, scale, factors, shifts, p_at, t_at, live,
            CHANNELS, FIRST + SECOND, THIRD, CODE, AFFINE,
        )  # fmt: skip
        more = sums_of(p3, t3, BETA, SMOOTH)
        pp, tt, pt, far = pp + more[0], tt + more[1], pt + more[2], far + more[3]

    part = tl.load(share)
    factor = 1.0
    if not UNIT:
        factor = part * tl.load(by)
    loss, by_p, by_t, by_slope, short, bad, kept = coefficients(
        pp, tt, pt, far, weight, factor, CHANNELS, COSINE, SMOOTH, DROP
    )
    tl.store(losses + program, tl.sum(loss, 0) * part)
    tl.store(counts + program, tl.sum((live & short).to(tl.float32), 0))
    tl.store(counts + programs + program, tl.sum((live & bad).to(tl.float32), 0))

    if GRADIENT:
        at = place * CHANNELS
        _write(
            gradient, at, p1, t1, by_p, by_t, by_slope, kept, inside,
            CHANNELS, 0, FIRST, BETA, SMOOTH,
        )  # fmt: skip
        if SECOND > 0:
            _write(
                gradient, at, p2, t2, by_p, by_t, by_slope, kept, inside,
                CHANNELS, FIRST, SECOND, BETA, SMOOTH,
            )  # fmt: skip
        if THIRD > 0:
            _write(
                gradient, at, p3, t3, by_p, by_t, by_slope, kept, inside,
                CHANNELS, FIRST + SECOND, THIRD, BETA, SMOOTH,
            )  # fmt: skip


def tiles(channels: int) -> tuple[int, int, int]:
    """Up to three powers of two that hold so many channels, the widest first, with the fewest idle
    threads: 1536 is 1024 + 512, 1664 is 1024 + 512 + 128."""
    whole = whole_of(channels)
    found: list[int] = []
    left = channels
    while left > 0:
        last = len(found) == 2 or left & (left - 1) == 0
        found.append(whole_of(left) if last else whole_of(left + 1) // 2)
        left -= found[-1]
    if sum(found) >= whole:
        found = [whole]
    first, second, third = (*found, 0, 0)[:3]
    return first, second, third


def whole_of(channels: int) -> int:
    return int(triton.next_power_of_2(channels))


def shape(channels: int) -> tuple[int, int]:
    """Tokens and warps of a program."""
    first = tiles(channels)[0]
    rows = max(1, 256 // first)
    return rows, min(8, max(1, rows * first // (32 * _PER_THREAD)))


def loss_and_gradient(
    prediction: Tensor,
    told: Told,
    weight: Tensor,
    share: Tensor,
    scale: Tensor,
    terms: Terms,
    gradient: bool,
) -> Found:
    """As the twin's."""
    rows, tokens, channels = prediction.shape
    count, device = rows * tokens, prediction.device
    per_program, warps = shape(channels)
    programs = -(-count // per_program)
    losses = torch.empty(programs, device=device)
    counts = torch.empty((2, programs), device=device)
    found = prediction.new_empty(prediction.shape if gradient else 0)
    if not programs:
        return Found(losses.sum(), found, counts.sum(1))
    values = told.values.view(torch.int8) if told.code == "int8" else told.values
    scales = values if told.scales is None else told.scales
    has_affine = told.factor is not None
    first, second, third = tiles(channels)
    arguments: tuple[Any, ...] = (
        *(prediction, values, scales),
        *((told.factor, told.shift) if has_affine else (weight, weight)),
        *(weight, share, scale, losses, counts, found),
        *(count, tokens, programs),
        *prediction.stride()[:2],
        *values.stride()[:2],
        *scales.stride()[:2],
        *weight.stride(),
    )
    row_kernel[(programs,)](
        *arguments,
        CHANNELS=channels,
        FIRST=first,
        SECOND=second,
        THIRD=third,
        ROWS=per_program,
        CODE=told.code,
        SCALED=told.scales is not None,
        AFFINE=has_affine,
        COSINE=terms.cosine,
        SMOOTH=terms.smooth_l1,
        BETA=terms.beta,
        DROP=terms.drop,
        GRADIENT=gradient,
        UNIT=prediction.dtype == torch.float16,
        num_warps=warps,
    )
    return Found(losses.sum(), found, counts.sum(1))
