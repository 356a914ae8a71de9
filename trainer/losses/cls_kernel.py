"""The CLS losses of all teachers in one launch: a program has one row of one of them. There are few
such vectors, so starting a kernel for each would take longer than all of them do."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.losses.pieces_kernel import affine, code_tile, coefficients, sums_of
from trainer.losses.told import Told
from trainer.losses.twin import Several, Terms

WARPS = 4


@triton.jit
def cls_kernel(
    predictions, values, factors, shifts, gradients, weights, share, scales, losses, counts,
    programs, p_rows, t_rows, w_row,
    WIDTHS: tl.constexpr, TILES: tl.constexpr, AFFINE: tl.constexpr, DROP: tl.constexpr,
    GRADIENT: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    row, teacher = tl.program_id(0).to(tl.int64), tl.program_id(1)
    one = tl.zeros((1,), tl.int64)
    weight = tl.load(weights + row * w_row + one)
    live = weight != 0.0
    part = tl.load(share)
    factor = 1.0
    if not UNIT:
        factor = part * tl.load(scales + teacher)
    for each in tl.static_range(len(WIDTHS)):
        if teacher == each:
            channel = tl.arange(0, TILES[each])
            mask = live[:, None] & (channel < WIDTHS[each])[None, :]
            p = code_tile(predictions[each], one + row * p_rows[each], channel, mask, 0, "float")
            t = code_tile(values[each], one + row * t_rows[each], channel, mask, 0, "float")
            if AFFINE:
                t = affine(t, factors[each], shifts[each], channel, WIDTHS[each])
            p, t = tl.where(mask, p, 0.0), tl.where(mask, t, 0.0)
            pp, tt, pt, far = sums_of(p, t, 1.0, 0.0)
            loss, by_p, by_t, _, short, bad, kept = coefficients(
                pp, tt, pt, far, weight, factor, WIDTHS[each], 1.0, 0.0, DROP
            )
            at = teacher * tl.num_programs(0) + row
            tl.store(losses + at, tl.sum(loss, 0) * part)
            tl.store(counts + at, tl.sum((live & short).to(tl.float32), 0))
            tl.store(counts + programs + at, tl.sum((live & bad).to(tl.float32), 0))
            if GRADIENT:
                found = tl.where(kept[:, None], by_p[:, None] * p + by_t[:, None] * t, 0.0)
                target = gradients[each] + row * WIDTHS[each] + channel[None, :]
                inside = (channel < WIDTHS[each])[None, :]
                tl.store(target, found.to(gradients[each].dtype.element_ty), mask=inside)


def losses_and_gradients(
    predictions: Sequence[Tensor],
    told: Sequence[Told],
    weight: Tensor,
    share: Tensor,
    scales: Tensor,
    terms: Terms,
    gradient: bool,
) -> Several:
    """As `one_by_one` of cls_op.py."""
    rows, teachers = len(weight), len(told)
    programs, device = rows * teachers, weight.device
    losses = torch.empty((teachers, rows), device=device)
    counts = torch.empty((2, programs), device=device)
    found = [each.new_empty(each.shape if gradient else 0) for each in predictions]
    has_affine = told[0].factor is not None
    widths = tuple(each.channels for each in told)
    if programs:
        cls_kernel[(rows, teachers)](
            *(tuple(predictions), tuple(each.values for each in told)),
            tuple(each.factor if has_affine else weight for each in told),
            tuple(each.shift if has_affine else weight for each in told),
            *(tuple(found), weight, share, scales, losses, counts, programs),
            tuple(each.stride(0) for each in predictions),
            tuple(each.values.stride(0) for each in told),
            weight.stride(0),
            WIDTHS=widths,
            TILES=tuple(triton.next_power_of_2(width) for width in widths),
            AFFINE=has_affine,
            DROP=terms.drop,
            GRADIENT=gradient,
            UNIT=predictions[0].dtype == torch.float16,
            num_warps=WARPS,
        )
    return Several(losses.sum(1), found, counts.sum(1))
