"""What was measured of a teacher, made by hand."""

from collections.abc import Sequence

from schemas.measured import Calibration, Moments, Shape
from schemas.records import ObjectRecord

NOWHERE = ObjectRecord(key="", size=0, sha256="")


def calibration(
    tokens: Moments,
    cls: Moments | None = None,
    images: int = 9,
    own: Sequence[float] = (),
    principal: Sequence[float] = (),
) -> Calibration:
    """Tokens as wide in one direction as in any other, unless `own` and `principal` say more."""
    even = (1.0,) * len(tokens.mean)
    return Calibration(
        images=images,
        rows=images,
        tokens=tokens,
        cls=cls,
        tokens_covariance=NOWHERE,
        cls_covariance=None if cls is None else NOWHERE,
        tokens_shape=Shape(
            own=tuple(own) or even, principal=tuple(principal) or even, axes=NOWHERE
        ),
    )
