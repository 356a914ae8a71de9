"""What a training run knows of a cached teacher."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infra.codec.codec import TokenCodec

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """What a set's features are standardised by, float32; raw = mean + std x stored."""

    tokens_mean: Floats
    """[patch_width], as tokens_std."""
    tokens_std: Floats
    cls_mean: Floats | None
    """[cls_width], as cls_std; None without a CLS."""
    cls_std: Floats | None


@dataclass(frozen=True)
class TeacherInfo:
    """What a training run needs to know of a cached teacher."""

    fingerprint: str
    grids: tuple[int, ...]
    patch_width: int
    cls_width: int | None
    statistics: dict[int, Statistics]
    """By grid."""
    codecs: dict[int, TokenCodec]
    """By grid."""
