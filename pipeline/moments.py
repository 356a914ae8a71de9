"""Mean, variance and covariance of a teacher's vectors, before any of them is stored.

Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979) in float64, which does
not cancel however large a channel's mean is beside its spread.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from schemas import tables
from schemas.records import Moments

Float64s = npt.NDArray[np.float64]
_HAVE_FLOAT64 = ("cpu", "cuda")
"""Devices that calculate in double precision."""


@dataclass(frozen=True, eq=False)
class Spread:
    """What is known of a number of vectors; travels between processes."""

    count: int
    mean: Float64s
    """[width]"""
    scatter: Float64s
    """[width, width]: sum of the outer products of the distances from the mean; symmetric."""

    def merged(self, other: "Spread") -> "Spread":
        """Of both kinds of vectors together."""
        total = self.count + other.count
        if total == 0:
            return self
        delta = other.mean - self.mean
        scatter = np.outer(delta, delta)
        scatter *= self.count * other.count / total
        scatter += self.scatter
        scatter += other.scatter
        return Spread(total, self.mean + delta * (other.count / total), scatter)


class MomentsMeter:
    """Streaming moments of vectors of one width."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.spread = Spread(0, np.zeros(width), np.zeros((width, width)))
        """Of all vectors so far."""

    def add(self, vectors: Tensor) -> None:
        """Take in vectors [..., width]; those that are not finite are left out."""
        self.merge(_spread(vectors.reshape(-1, self.width)))

    def merge(self, spread: Spread) -> None:
        """Take in what another meter of the same width has seen."""
        self.spread = self.spread.merged(spread)

    def moments(self) -> Moments:
        """What was seen; without any vectors mean 0 and variance 1."""
        variance = np.diagonal(self.covariance())
        return Moments(
            count=self.spread.count,
            mean=tuple(self.spread.mean.tolist()),
            variance=tuple(variance.tolist()),
        )

    def covariance(self) -> Float64s:
        """[width, width], symmetric to the bit; its diagonal is the variance of `moments`.
        Without any vectors the identity."""
        if self.spread.count == 0:
            return np.eye(self.width)
        return self.spread.scatter / self.spread.count


def covariance_parquet(matrix: Float64s) -> bytes:
    """A covariance matrix [width, width] as the bytes of its object."""
    schema = tables.covariance_schema(len(matrix))
    rows = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), len(matrix))
    return tables.to_parquet(pa.table([rows], schema=schema))


@torch.inference_mode()
def _spread(vectors: Tensor) -> Spread:
    """Of one batch [count, width], calculated where it lies if that can be."""
    if vectors.device.type not in _HAVE_FLOAT64:
        vectors = vectors.cpu()
    values = vectors.double()
    values = values[values.isfinite().all(dim=1)]
    count, width = values.shape
    if count == 0:
        return Spread(0, np.zeros(width), np.zeros((width, width)))
    # Seen from one of them, so that a constant channel has a variance of 0 and not of a rounding.
    origin = values[0].clone()
    values -= origin
    shift = values.sum(dim=0) / count
    values -= shift
    scatter = values.T @ values
    # A matrix product's two halves may differ in their last bits.
    scatter = (scatter + scatter.T) / 2
    return Spread(count, (origin + shift).cpu().numpy(), scatter.cpu().numpy())
