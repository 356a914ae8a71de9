"""Faults that the checks of an implementation must see: each is the twin with one place changed."""

import inspect
from typing import NamedTuple

import pytest

from tests.unit.trainer.losses.definition import CHECKS
from trainer.losses import twin
from trainer.losses.op import LossAndGradient

pytestmark = pytest.mark.unit


class Fault(NamedTuple):
    check: str
    """That sees it."""
    right: str
    wrong: str


FAULTS = {
    "a gradient of 0": Fault(
        "formulas", "found.to(prediction.dtype)", "p.new_zeros(p.shape).to(prediction.dtype)"
    ),
    "no 1/D in the gradient": Fault(
        "formulas", "terms.smooth_l1 / p.shape[-1] * slope", "terms.smooth_l1 * slope"
    ),
    "no 1/D in the loss": Fault("formulas", ".mean(-1) if", ".sum(-1) if"),
    "beta ignored in the loss": Fault(
        "formulas", "smooth_l1(distance, terms.beta)", "smooth_l1(distance, 1.0)"
    ),
    "beta ignored in the gradient": Fault("formulas", "(distance / terms.beta)", "distance"),
    "beta the wrong way round": Fault(
        "formulas", "(distance / terms.beta)", "(distance * terms.beta)"
    ),
    "the terms swapped": Fault(
        "formulas",
        "terms.cosine * (1 - cosine) + terms.smooth_l1 * spread",
        "terms.smooth_l1 * (1 - cosine) + terms.cosine * spread",
    ),
    "no radial part": Fault("formulas", "terms.cosine * cosine / long_p.square()", "0.0 * cosine"),
    "the sign of the target's part": Fault("formulas", "-terms.cosine / (", "terms.cosine / ("),
    "weights only in the loss": Fault("formulas", "else weight * (share", "else (keep * share"),
    "scale in the loss": Fault("formulas", ".sum() * share", ".sum() * share * scale"),
    "no scale in the gradient": Fault("formulas", "(share * scale)", "share"),
    "share in a float16 gradient": Fault(
        "formulas", "weight if prediction.dtype == torch.float16 else weight", "weight"
    ),
    "means over tokens that count": Fault(
        "formulas", ".sum() * share", ".sum() * share * keep.numel() / keep.sum()"
    ),
    "masked after the sum": Fault(
        "drops", "(torch.where(weight != 0, tokens, 0.0) * weight)", "(tokens * weight)"
    ),
    "a gradient masked by a product": Fault(
        "drops",
        "torch.where((weight != 0)[..., None], found * by[..., None], 0.0)",
        "found * by[..., None]",
    ),
    "a masked target is read": Fault(
        "masked", "torch.where(keep[..., None], told.decoded(exact), 0.0)", "told.decoded(exact)"
    ),
    "a masked prediction is read": Fault(
        "masked", "torch.where(keep[..., None], prediction.to(exact), 0.0)", "prediction.to(exact)"
    ),
    "masked tokens are counted": Fault("formulas", "keep & short", "short"),
    "no rule for no length": Fault("no_direction", "(long_p <= EPS) | (long_t <= EPS)", "~finite"),
    "a rule for predictions alone": Fault(
        "no_direction", "(long_p <= EPS) | (long_t <= EPS)", "long_p <= EPS"
    ),
    "norms clamped as torch does": Fault(
        "no_direction",
        "short = (long_p <= EPS) | (long_t <= EPS)",
        "short = keep & ~keep; long_p = long_p.clamp(min=EPS); long_t = long_t.clamp(min=EPS)",
    ),
    "a radial part below EPS": Fault(
        "no_direction",
        "by_t = torch.where(short, 0.0, -terms.cosine / (long_p * long_t))",
        "by_t = -terms.cosine / (long_p.clamp(min=EPS) * long_t.clamp(min=EPS))",
    ),
    "what is not finite is never dropped": Fault("drops", "0.0 if terms.drop else", ""),
    "what is not finite is always dropped": Fault(
        "stops", "0.0 if terms.drop else torch.nan", "0.0"
    ),
    "what is not finite goes unnoticed": Fault(
        "stops", "torch.where(finite, weight, 0.0 if terms.drop else torch.nan)", "weight"
    ),
    "what is not finite is not counted": Fault("stops", "(keep & ~finite)", "(keep & ~keep)"),
    "only NaN is not finite": Fault("stops", ".isfinite()", ".isnan().logical_not()"),
}


def faulty(fault: Fault) -> LossAndGradient:
    source = inspect.getsource(twin)
    assert source.count(fault.right) == 1, "the twin has changed: say anew where it may be wrong"
    module = {"__name__": "faulty"}
    exec(source.replace(fault.right, fault.wrong), module)
    found: LossAndGradient = module["loss_and_gradient"]  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_fault__is_seen(name: str) -> None:
    fault = FAULTS[name]
    with pytest.raises(AssertionError):
        CHECKS[fault.check](faulty(fault))


def test_faults__are_of_code_that_passes() -> None:
    """What is compared with is only text that was changed, not how it was run."""
    for name in {fault.check for fault in FAULTS.values()}:
        CHECKS[name](faulty(Fault(name, "keep = weight != 0", "keep = weight != 0.0")))
