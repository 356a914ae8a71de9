"""The loss of two grids of different sides on a GPU: the smaller grid is resized where it is used,
a row of the larger grid at a time, and never written down.

A row of a bicubic resize is made of up to four rows of the smaller grid: those are mixed first, in
float32 and with the scales of their tokens, then the columns by a product with a constant matrix on
the tensor cores. Where the prediction is the smaller grid its gradient is gathered: for each of its
rows, from the few rows of the larger grid that have a part in it. Nothing is added atomically, so
the bits are the same every time.
"""

import triton
import triton.language as tl

from trainer.losses.pieces_kernel import affine, code_tile, coefficients, slope, sums_of


@triton.jit
def _resized(
    source, scales, rows, columns, top, at, s_at, token_stride, s_token, channel,
    CHANNELS: tl.constexpr, SMALL: tl.constexpr, SMALL_TILE: tl.constexpr, TAPS: tl.constexpr,
    CODE: tl.constexpr, SCALED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """float32 [LARGE_TILE, channels]: one row of the smaller grid at the larger one's size, given
    where the weights of its TAPS rows lie, and [LARGE_TILE, SMALL_TILE] those of its columns."""
    x = tl.arange(0, SMALL_TILE)
    inside = x < SMALL
    mask = inside[:, None] & (channel < CHANNELS)[None, :]
    mixed = tl.zeros((SMALL_TILE, channel.shape[0]), tl.float32)
    for tap in tl.static_range(TAPS):
        token = (top + tap) * SMALL + x
        value = code_tile(source, at + token * token_stride, channel, mask, CHANNELS, CODE)
        if SCALED:
            scale = tl.load(scales + s_at + token * s_token, mask=inside, other=0.0)
            value *= scale.to(tl.float32)[:, None]
        mixed += tl.load(rows + tap) * tl.where(mask, value, 0.0)
    return tl.dot(columns, mixed, input_precision=PRECISION)


@triton.jit
def _columns(
    matrix, LARGE: tl.constexpr, SMALL: tl.constexpr,
    LARGE_TILE: tl.constexpr, SMALL_TILE: tl.constexpr,
):  # fmt: skip
    """The matrix of the resize, [LARGE, SMALL], with zeros around it."""
    column, x = tl.arange(0, LARGE_TILE)[:, None], tl.arange(0, SMALL_TILE)[None, :]
    return tl.load(matrix + column * SMALL + x, mask=(column < LARGE) & (x < SMALL), other=0.0)


@triton.jit
def _pair(
    prediction, values, scales, factors, shifts, matrix, tops, image, y, live, columns, first,
    p_row, p_token, t_row, t_token, s_row, s_token,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr, LARGE: tl.constexpr, SMALL: tl.constexpr,
    LARGE_TILE: tl.constexpr, SMALL_TILE: tl.constexpr, TAPS: tl.constexpr,
    CODE: tl.constexpr, SCALED: tl.constexpr, AFFINE: tl.constexpr,
    MINE_SMALLER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """float32 [LARGE_TILE, CHUNK] of prediction and target, from channel `first` on, of row y of
    the larger grid; zeros where there is nothing."""
    channel = first + tl.arange(0, CHUNK)
    token = y * LARGE + tl.arange(0, LARGE_TILE)
    mask = live[:, None] & (channel < CHANNELS)[None, :]
    top = tl.load(tops + y)
    rows = matrix + y * SMALL + top
    p_at, t_at, s_at = image * p_row, image * t_row, image * s_row
    if MINE_SMALLER:
        p = _resized(
            prediction, scales, rows, columns, top, p_at, s_at, p_token, s_token, channel,
            CHANNELS, SMALL, SMALL_TILE, TAPS, "float", False, PRECISION,
        )  # fmt: skip
        t = code_tile(values, t_at + token * t_token, channel, mask, CHANNELS, CODE)
        if SCALED:
            scale = tl.load(scales + s_at + token * s_token, mask=live, other=0.0)
            t *= scale.to(tl.float32)[:, None]
    else:
        p = code_tile(prediction, p_at + token * p_token, channel, mask, CHANNELS, "float")
        t = _resized(
            values, scales, rows, columns, top, t_at, s_at, t_token, s_token, channel,
            CHANNELS, SMALL, SMALL_TILE, TAPS, CODE, SCALED, PRECISION,
        )  # fmt: skip
    if AFFINE:
        t = affine(t, factors, shifts, channel, CHANNELS)
    return tl.where(mask, p, 0.0), tl.where(mask, t, 0.0)


@triton.jit
def large_row_kernel(
    prediction, values, scales, factors, shifts, matrix, tops, weights, share, by,
    losses, counts, gradient, told_by, programs,
    p_row, p_token, t_row, t_token, s_row, s_token, w_row, w_token,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr, LARGE: tl.constexpr, SMALL: tl.constexpr,
    LARGE_TILE: tl.constexpr, SMALL_TILE: tl.constexpr, TAPS: tl.constexpr,
    CODE: tl.constexpr, SCALED: tl.constexpr, AFFINE: tl.constexpr,
    MINE_SMALLER: tl.constexpr, PRECISION: tl.constexpr,
    COSINE: tl.constexpr, SMOOTH: tl.constexpr, BETA: tl.constexpr, DROP: tl.constexpr,
    GRADIENT: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """A row of the larger grid: its loss, and its gradient if the prediction is that grid, else
    what `small_row_kernel` needs of its tokens, [3, tokens of all rows]."""
    program = tl.program_id(0).to(tl.int64)
    image, y = program // LARGE, program % LARGE
    x = tl.arange(0, LARGE_TILE)
    inside, token = x < LARGE, y * LARGE + x
    weight = tl.load(weights + image * w_row + token * w_token, mask=inside, other=0.0)
    live = weight != 0.0
    columns = _columns(matrix, LARGE, SMALL, LARGE_TILE, SMALL_TILE)
    pp = tl.zeros((LARGE_TILE,), tl.float32)
    tt, pt, far = pp, pp, pp
    for first in range(0, CHANNELS, CHUNK):
        p, t = _pair(
            prediction, values, scales, factors, shifts, matrix, tops, image, y, live, columns,
            first, p_row, p_token, t_row, t_token, s_row, s_token, CHANNELS, CHUNK, LARGE, SMALL,
            LARGE_TILE, SMALL_TILE, TAPS, CODE, SCALED, AFFINE, MINE_SMALLER, PRECISION,
        )  # fmt: skip
        more = sums_of(p, t, BETA, SMOOTH)
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
        at = image * LARGE * LARGE + token
        if MINE_SMALLER:
            tokens = programs * LARGE
            tl.store(told_by + at, tl.where(kept, by_p, 0.0), mask=inside)
            tl.store(told_by + tokens + at, tl.where(kept, by_t, 0.0), mask=inside)
            tl.store(told_by + 2 * tokens + at, tl.where(kept, by_slope, 0.0), mask=inside)
        else:
            for first in range(0, CHANNELS, CHUNK):
                p, t = _pair(
                    prediction, values, scales, factors, shifts, matrix, tops, image, y, live,
                    columns, first, p_row, p_token, t_row, t_token, s_row, s_token, CHANNELS,
                    CHUNK, LARGE, SMALL, LARGE_TILE, SMALL_TILE, TAPS, CODE, SCALED, AFFINE,
                    MINE_SMALLER, PRECISION,
                )  # fmt: skip
                found = _gradient(p, t, by_p, by_t, by_slope, kept, BETA, SMOOTH)
                channel = first + tl.arange(0, CHUNK)
                target = gradient + at[:, None] * CHANNELS + channel[None, :]
                mask = inside[:, None] & (channel < CHANNELS)[None, :]
                tl.store(target, found.to(gradient.dtype.element_ty), mask=mask)


@triton.jit
def _gradient(p, t, by_p, by_t, by_slope, kept, BETA: tl.constexpr, SMOOTH: tl.constexpr):
    found = by_p[:, None] * p + by_t[:, None] * t
    if SMOOTH != 0.0:
        found += by_slope[:, None] * slope(p - t, BETA)
    return tl.where(kept[:, None], found, 0.0)


@triton.jit
def small_row_kernel(
    prediction, values, scales, factors, shifts, matrix, tops, ends, told_by, weights, gradient,
    tokens, p_row, p_token, t_row, t_token, s_row, s_token, w_row, w_token,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr, LARGE: tl.constexpr, SMALL: tl.constexpr,
    LARGE_TILE: tl.constexpr, SMALL_TILE: tl.constexpr, TAPS: tl.constexpr,
    CODE: tl.constexpr, SCALED: tl.constexpr, AFFINE: tl.constexpr, PRECISION: tl.constexpr,
    SMOOTH: tl.constexpr, BETA: tl.constexpr,
):  # fmt: skip
    """Some channels of the gradient in a row of a smaller prediction: what the rows of the larger
    grid that it has a part in, from ends[0, row] to before ends[1, row], say of it."""
    program, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHUNK
    image, mine = program // SMALL, program % SMALL
    x, channel = tl.arange(0, LARGE_TILE), first + tl.arange(0, CHUNK)
    inside = x < LARGE
    columns = _columns(matrix, LARGE, SMALL, LARGE_TILE, SMALL_TILE)
    total = tl.zeros((SMALL_TILE, CHUNK), tl.float32)
    for y in range(tl.load(ends + mine), tl.load(ends + SMALL + mine)):
        token = y * LARGE + x
        weight = tl.load(weights + image * w_row + token * w_token, mask=inside, other=0.0)
        p, t = _pair(
            prediction, values, scales, factors, shifts, matrix, tops, image, y, weight != 0.0,
            columns, first, p_row, p_token, t_row, t_token, s_row, s_token, CHANNELS, CHUNK, LARGE,
            SMALL, LARGE_TILE, SMALL_TILE, TAPS, CODE, SCALED, AFFINE, True, PRECISION,
        )  # fmt: skip
        at = told_by + image * LARGE * LARGE + token
        by_p = tl.load(at, mask=inside, other=0.0)
        by_t = tl.load(at + tokens, mask=inside, other=0.0)
        by_slope = tl.load(at + 2 * tokens, mask=inside, other=0.0)
        kept = (by_p != 0.0) | (by_t != 0.0) | (by_slope != 0.0)
        found = _gradient(p, t, by_p, by_t, by_slope, kept, BETA, SMOOTH)
        back = tl.dot(tl.trans(columns), found, input_precision=PRECISION)
        total += tl.load(matrix + y * SMALL + mine) * back
    column = tl.arange(0, SMALL_TILE)
    at = (image * SMALL * SMALL + mine * SMALL + column) * CHANNELS
    mask = (column < SMALL)[:, None] & (channel < CHANNELS)[None, :]
    target = gradient + at[:, None] + channel[None, :]
    tl.store(target, total.to(gradient.dtype.element_ty), mask=mask)
