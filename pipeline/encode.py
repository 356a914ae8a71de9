"""From raw features to what a shard holds: standardised, coded, and what that cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.codec.codec import TokenCodec
from schemas.shard import Rows

Halves = npt.NDArray[np.float16]
LARGEST = 65504.0
"""What float16 can hold: a row with a standardised value beyond is bad, whatever its codec."""


@dataclass(frozen=True)
class Encoded:
    """A batch of rows as they are stored."""

    tokens: Rows
    """[rows, height, width], of the codec's `row_form`."""
    cls: Halves | None
    """[rows, channels]"""
    finite: npt.NDArray[np.bool_]
    """[rows] False where a feature does not fit float16."""
    cosine: npt.NDArray[np.float32]
    """[rows, tokens] to the exact ones, standardised."""
    relative_rms: npt.NDArray[np.float32]
    """[rows] root mean square of what coding changed, as a share of the row's."""
    saturated: npt.NDArray[np.float32]
    """[rows] share of values beyond the last code; of `variable`, of tokens made coarser."""


def encode(codec: TokenCodec, cls: Tensor | None, tokens: Tensor) -> Encoded:
    """Encode raw features.

    Args:
        cls: [rows, channels] or None. tokens: [rows, tokens, channels]. On any device.
    """
    record = codec.record
    if cls is not None and record.cls is not None:
        cls = _standardise(cls, record.cls.mean, record.cls.std)
    standardised = _standardise(tokens, record.tokens.mean, record.tokens.std)
    return encode_standardised(codec, cls if record.cls else None, standardised)


def encode_standardised(codec: TokenCodec, cls: Tensor | None, standardised: Tensor) -> Encoded:
    """As `encode`, of features that are standardised already."""
    finite = (standardised.abs() <= LARGEST).flatten(1).all(1)
    coded = codec.encode(torch.where(finite[:, None, None], standardised, 0.0))
    exact, kept = coded.exact, coded.decoded
    cosine = torch.nn.functional.cosine_similarity(exact, kept, dim=-1)
    difference, size = (exact - kept).flatten(1).norm(dim=1), exact.flatten(1).norm(dim=1)
    stored_cls = None
    if cls is not None:
        stored_cls = cls.half()
        finite &= stored_cls.isfinite().all(1)
    return Encoded(
        tokens=coded.stored.cpu().numpy(),
        cls=None if stored_cls is None else stored_cls.cpu().numpy(),
        finite=finite.cpu().numpy(),
        cosine=cosine.cpu().numpy(),
        relative_rms=(difference / size.clamp_min(1e-12)).cpu().numpy(),
        saturated=coded.saturated.float().cpu().numpy(),
    )


def _standardise(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    options = {"dtype": torch.float32, "device": values.device}
    return (values - torch.tensor(mean, **options)) / torch.tensor(std, **options)  # type: ignore[arg-type]
