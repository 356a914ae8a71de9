"""From raw features to what a shard holds: standardised, rounded to float16, and what that cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.records import CodecRecord

Halves = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Encoded:
    """A batch of rows as they are stored."""

    tokens: Halves
    """[rows, tokens, channels]"""
    cls: Halves | None
    """[rows, channels]"""
    finite: npt.NDArray[np.bool_]
    """[rows] False where a feature does not fit float16."""
    cosine: npt.NDArray[np.float32]
    """[rows] to the exact tokens, standardised: the mean over a row's tokens."""
    relative_rms: npt.NDArray[np.float32]
    """[rows] root mean square of what rounding changed, as a share of the row's."""


def encode(codec: CodecRecord, cls: Tensor | None, tokens: Tensor) -> Encoded:
    """Encode raw features.

    Args:
        cls: [rows, channels] or None. tokens: [rows, tokens, channels]. On any device.
    """
    exact = _standardise(tokens, codec.tokens.mean, codec.tokens.std)
    stored = exact.half()
    kept = stored.float()
    cosine = torch.nn.functional.cosine_similarity(exact, kept, dim=-1).mean(dim=1)
    difference, size = (exact - kept).flatten(1).norm(dim=1), exact.flatten(1).norm(dim=1)
    finite = stored.isfinite().flatten(1).all(1)
    stored_cls = None
    if cls is not None and codec.cls is not None:
        stored_cls = _standardise(cls, codec.cls.mean, codec.cls.std).half()
        finite &= stored_cls.isfinite().all(1)
    return Encoded(
        tokens=stored.cpu().numpy(),
        cls=None if stored_cls is None else stored_cls.cpu().numpy(),
        finite=finite.cpu().numpy(),
        cosine=cosine.cpu().numpy(),
        relative_rms=(difference / size.clamp_min(1e-12)).cpu().numpy(),
    )


def _standardise(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    options = {"dtype": torch.float32, "device": values.device}
    return (values - torch.tensor(mean, **options)) / torch.tensor(std, **options)  # type: ignore[arg-type]
