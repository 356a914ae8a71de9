"""What is left of the loss's backward on a GPU: a gradient times a scalar, and nothing at all where
that is 1. The scalar is looked at on the GPU, so nobody waits for it."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
PROGRAMS = 1024


@triton.jit
def rescale_kernel(values, by, count, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    factor = tl.load(by)
    if factor != 1.0:
        for first in range(tl.program_id(0).to(tl.int64) * BLOCK, count, PROGRAMS * BLOCK):
            place = first + tl.arange(0, BLOCK)
            inside = place < count
            value = tl.load(values + place, mask=inside).to(tl.float32) * factor
            tl.store(values + place, value.to(values.dtype.element_ty), mask=inside)


def rescale(values: Tensor, by: Tensor) -> None:
    """Multiply dense `values` by the scalar `by`, in place."""
    programs = min(PROGRAMS, -(-values.numel() // BLOCK))
    if programs:
        rescale_kernel[(programs,)](values, by, values.numel(), programs, BLOCK)
