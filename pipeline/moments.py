"""Mean, variance and covariance of a teacher's vectors, before any of them is stored.

Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979) in float64, which does
not cancel however large a channel's mean is beside its spread.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from infra.codec.rotation import Float64s, Int32s
from schemas import tables
from schemas.measured import Moments

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
    shape_counts: Float64s
    """[2]: of each half, how many had a direction: all but those that are the mean of their
    batch."""
    shapes: Float64s
    """[2, width, width]: for each half of the pictures the sum of the outer products of the
    vectors, each standardised within its batch and brought to a root mean square of 1 (the spatial
    sign covariance, of which outliers are but as much a part as others are)."""

    @classmethod
    def of_none(cls, width: int) -> "Spread":
        nothing = np.zeros((width, width))
        return cls(0, np.zeros(width), nothing, np.zeros(2), np.zeros((2, width, width)))

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
        return Spread(
            total,
            self.mean + delta * (other.count / total),
            scatter,
            self.shape_counts + other.shape_counts,
            self.shapes + other.shapes,
        )


class MomentsMeter:
    """Streaming moments of vectors of one width."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.spread = Spread.of_none(width)
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

    def shapes(self) -> Float64s:
        """[2, width, width], each of trace `width`: the covariance of directions in each half of
        the pictures; of both in each where one has none, and without any the identity."""
        counts, sums = self.spread.shape_counts, self.spread.shapes
        if counts.sum() == 0:
            return np.stack([np.eye(self.width)] * 2)
        if (counts == 0).any():
            counts, sums = counts.sum(), np.stack([sums.sum(0)] * 2)
        return sums / np.reshape(counts, (-1, 1, 1))


def covariance_parquet(matrix: Float64s) -> bytes:
    """A covariance matrix [width, width] as the bytes of its object."""
    return tables.to_parquet(_matrices(tables.covariance_schema(len(matrix)), matrix))


def axes_parquet(principal: Int32s, equalised: Int32s) -> bytes:
    """Axes [width, width], in units of 2^-18, as the bytes of their object."""
    return tables.to_parquet(_matrices(tables.axes_schema(len(principal)), principal, equalised))


def _matrices(schema: pa.Schema, *matrices: npt.NDArray[Any]) -> pa.Table:
    """A row of each a line."""
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
        for matrix in matrices
    ]
    return pa.table(columns, schema=schema)


@torch.inference_mode()
def _spread(vectors: Tensor) -> Spread:
    """Of one batch [count, width], calculated where it lies if that can be."""
    if vectors.device.type not in _HAVE_FLOAT64:
        vectors = vectors.cpu()
    values = vectors.double()
    values = values[values.isfinite().all(dim=1)]
    count, width = values.shape
    if count == 0:
        return Spread.of_none(width)
    # Seen from one of them, so that a constant channel has a variance of 0 and not of a rounding.
    origin = values[0].clone()
    values -= origin
    shift = values.sum(dim=0) / count
    values -= shift
    scatter = _products(values)
    deviation = (scatter.diagonal() / count).sqrt()
    values /= torch.where(deviation > 0, deviation, 1.0)
    lengths = values.square().mean(dim=1, keepdim=True).sqrt()
    # Vectors come picture after picture, so halves of them are of different pictures.
    halves = [
        (part / length)[length[:, 0] > 0]
        for part, length in zip(values.tensor_split(2), lengths.tensor_split(2))
    ]
    return Spread(
        count,
        (origin + shift).cpu().numpy(),
        scatter.cpu().numpy(),
        np.array(list(map(len, halves)), np.float64),
        np.stack([_products(half).cpu().numpy() for half in halves]),
    )


def _products(vectors: Tensor) -> Tensor:
    """Sum of outer products; a matrix product's two halves may differ in their last bits."""
    sums = vectors.T @ vectors
    return (sums + sums.T) / 2
