"""The loss from its formulas in float64, with torch's own derivatives.

Nothing of the code that is tested is in here: targets are decoded by arithmetic, tokens of weight 0
are taken out instead of masked, and cosine and smooth-L1 are torch's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.trainer.losses.cases import Case
from trainer.losses.told import Told
from trainer.losses.twin import Found

NO_LENGTH = 1e-8


def reference(case: Case, unit: bool) -> Found:
    """Of tokens that are finite, unless they are dropped.

    Args:
        unit: leave share and scale out of the gradient.
    """
    prediction, told, weight, share, scale, terms = case
    leaf = prediction.detach().double().requires_grad_()
    live = weight != 0
    p, t, by = leaf[live], decoded(told)[live], weight[live].double()
    finite = (p.isfinite() & t.isfinite()).all(-1)
    assert terms.drop or finite.all(), "without drop the loss of such tokens is NaN"
    p, t, by = p[finite], t[finite], by[finite]
    long = (p.norm(dim=-1) > NO_LENGTH) & (t.norm(dim=-1) > NO_LENGTH)
    spread = F.smooth_l1_loss(p, t, reduction="none", beta=terms.beta).mean(-1)
    cosine = F.cosine_similarity(p[long], t[long], dim=-1)
    apart = by.sum() - (by[long] * cosine).sum()
    total = terms.cosine * apart + terms.smooth_l1 * (by * spread).sum()
    loss = total * share.double()
    (gradient,) = torch.autograd.grad(total if unit else loss * scale.double(), leaf)
    counts = torch.tensor([float((~long).sum()), float((~finite).sum())])
    return Found(loss.detach(), gradient, counts)


def decoded(told: Told) -> Tensor:
    values = told.values.double()
    match told.code:
        case "int8":
            values = values - 256 * (values > 127)
        case "int4":
            half = values.shape[-1]
            channel = torch.arange(told.channels)
            byte = values[..., channel % half]
            values = torch.where(channel < half, byte % 16, byte // 16) - 8
        case "fp8":
            sign, exponent, mantissa = values // 128, values // 8 % 16, values % 8
            large = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
            size = torch.where(exponent == 0, mantissa / 8 * 2.0**-6, large)
            size[values % 128 == 127] = torch.nan
            values = size * (1 - 2 * sign)
    if told.scales is not None:
        values = values * told.scales.double()[..., None]
    if told.factor is not None and told.shift is not None:
        values = values * told.factor.double() + told.shift.double()
    return values
