"""What the loss's kernels have in common: the arithmetic of twin.py, a few tokens at a time."""

import triton
import triton.language as tl

from trainer.losses.twin import EPS

_EPS = tl.constexpr(EPS)


@triton.jit
def decode_e4m3(byte):
    """float32 of float8_e4m3fn, also where the hardware has none: its bits are those of a float16
    that is 256 times as small."""
    wide = byte.to(tl.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    value = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((byte & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def code_tile(values, at, channel, mask, CHANNELS: tl.constexpr, CODE: tl.constexpr):
    """float32 [tokens, channels] of codes before their scales; anything outside of `mask`."""
    if CODE == "int4":
        low = channel < (CHANNELS + 1) // 2
        byte = tl.where(low, channel, channel - (CHANNELS + 1) // 2)
        both = tl.load(values + at[:, None] + byte[None, :], mask=mask, other=0).to(tl.int32)
        return (tl.where(low[None, :], both & 0xF, both >> 4) - 8).to(tl.float32)
    code = tl.load(values + at[:, None] + channel[None, :], mask=mask, other=0)
    return decode_e4m3(code) if CODE == "fp8" else code.to(tl.float32)


@triton.jit
def affine(tile, factors, shifts, channel, CHANNELS: tl.constexpr):
    """[tokens, channels] x factor + shift of each channel."""
    inside = channel < CHANNELS
    factor = tl.load(factors + channel, mask=inside, other=0.0)
    shift = tl.load(shifts + channel, mask=inside, other=0.0)
    return tile * factor[None, :] + shift[None, :]


@triton.jit
def sums_of(p, t, BETA: tl.constexpr, SMOOTH: tl.constexpr):
    """|p|^2, |t|^2, <p, t> and the sum of smooth-L1 of each token."""
    far = tl.sum(tl.zeros_like(p), 1)
    if SMOOTH != 0.0:
        size = tl.abs(p - t)
        if BETA != 0.0:
            size = tl.where(size < BETA, size * size * (0.5 / BETA), size - 0.5 * BETA)
        far = tl.sum(size, 1)
    return tl.sum(p * p, 1), tl.sum(t * t, 1), tl.sum(p * t, 1), far


@triton.jit
def coefficients(
    pp, tt, pt, far, weight, factor,
    CHANNELS: tl.constexpr, COSINE: tl.constexpr, SMOOTH: tl.constexpr,
    DROP: tl.constexpr,
):  # fmt: skip
    """Of each token: its weighted loss, what p, t and the slope of smooth-L1 are multiplied by in
    its gradient, whether it has no direction, and whether it is not finite."""
    long_p, long_t = tl.sqrt_rn(pp), tl.sqrt_rn(tt)
    spread = tl.div_rn(far, CHANNELS + tl.zeros_like(far))
    known = long_p + long_t + pt + spread
    bad = ~(tl.abs(known) < float("inf"))
    weight = tl.where(bad, 0.0 if DROP else float("nan"), weight)
    live = weight != 0.0
    short = (long_p <= _EPS) | (long_t <= _EPS)
    product = tl.where(short, 1.0, long_p * long_t)
    cosine = tl.where(short, 0.0, tl.div_rn(pt, product))
    loss = tl.where(live, (COSINE * (1.0 - cosine) + SMOOTH * spread) * weight, 0.0)
    share = weight * factor
    square = tl.where(short, 1.0, pp)
    by_p = tl.where(short, 0.0, tl.div_rn(COSINE * cosine, square)) * share
    by_t = tl.where(short, 0.0, tl.div_rn(-COSINE * share, product))
    return loss, by_p, by_t, SMOOTH / CHANNELS * share, short, bad, live


@triton.jit
def slope(distance, BETA: tl.constexpr):
    """Derivative of smooth-L1; of NaN, NaN."""
    if BETA == 0.0:
        ends = tl.where(distance < 0.0, -1.0, distance)
        return tl.where(distance > 0.0, 1.0, ends)
    steep = distance * (1.0 / BETA)
    steep = tl.where(steep < -1.0, -1.0, steep)
    return tl.where(steep > 1.0, 1.0, steep)
