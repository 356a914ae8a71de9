"""Per-channel mean and variance of a teacher's tokens, before any of them is stored.

Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979) in float64, which does
not cancel however large a channel's mean is beside its spread.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from schemas.records import Moments


@dataclass
class MomentsMeter:
    """Streaming moments of vectors of one width."""

    width: int
    count: int = 0
    mean: npt.NDArray[np.float64] = field(init=False)
    squares: npt.NDArray[np.float64] = field(init=False)
    """Sum of squared distances from the mean."""

    def __post_init__(self) -> None:
        self.mean = np.zeros(self.width)
        self.squares = np.zeros(self.width)

    def add(self, vectors: Tensor) -> None:
        """Take in vectors [..., width]; those that are not finite are left out."""
        values = vectors.reshape(-1, self.width).double().cpu().numpy()
        values = values[np.isfinite(values).all(axis=1)]
        if len(values) == 0:
            return
        mean = values.mean(axis=0)
        self._merge(len(values), mean, ((values - mean) ** 2).sum(axis=0))

    def merge(self, other: Moments) -> None:
        variance = np.asarray(other.variance, np.float64)
        self._merge(other.count, np.asarray(other.mean, np.float64), variance * other.count)

    def _merge(
        self, count: int, mean: npt.NDArray[np.float64], squares: npt.NDArray[np.float64]
    ) -> None:
        total = self.count + count
        if total == 0:
            return
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta**2 * (self.count * count / total)
        self.count = total

    def moments(self) -> Moments:
        """What was seen; without any vectors mean 0 and variance 1."""
        variance = self.squares / self.count if self.count else np.ones(self.width)
        return Moments(
            count=self.count, mean=tuple(self.mean.tolist()), variance=tuple(variance.tolist())
        )
