"""Tokens in another basis, to the same bits on every device.

A matrix product in floating point depends on the order of its sums. Here both sides are whole
numbers small enough that every partial sum is exact in double precision.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.codec.powers import power_of_two

AXIS_BITS = 18
"""Axes are stored in units of 2^-18; what that rounding changes is below -80 dB."""
_TOKEN_BITS = 20
"""A token's largest value becomes at most 2^20: 2^20 x 2^18 x channels stays below 2^53."""

Int32s = npt.NDArray[np.int32]
Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rotation:
    """An orthonormal basis on one device."""

    axes: Tensor
    """float64 [channels, channels], whole numbers: row j is axis j in units of 2^-AXIS_BITS."""
    float_axes: Tensor
    """float32 [channels, channels]: the same in units of 1."""

    @classmethod
    def of(cls, axes: Int32s, device: torch.device | str) -> "Rotation":
        whole = torch.from_numpy(axes.astype(np.float64)).to(device)
        return cls(whole, (whole * 2.0**-AXIS_BITS).float())

    def forward(self, tokens: Tensor) -> Tensor:
        """float64 [..., channels]: of float32 tokens, exact for tokens as they were rounded."""
        exponent = torch.frexp(tokens.abs().amax(-1, keepdim=True)).exponent
        whole = (tokens.double() * power_of_two(_TOKEN_BITS - exponent)).round()
        return whole @ self.axes.T * power_of_two(exponent - _TOKEN_BITS - AXIS_BITS)

    def back(self, rotated: Tensor) -> Tensor:
        """float32 [..., channels]: the tokens of float32 `rotated`. Its last bits depend on the
        device, as those of any matrix product do."""
        return rotated @ self.float_axes


def principal_axes(shape: Float64s) -> Int32s:
    """The eigenvectors of a covariance [channels, channels], a row each, that of the largest
    variance first."""
    _, vectors = np.linalg.eigh(shape)
    return rounded(vectors[:, ::-1].T)


def held_out_variances(shapes: Float64s) -> Float64s:
    """Variances along the principal axes of covariances [2, channels, channels], each half's axes
    measured on the other half: what is found along an axis on the very tokens that gave it is too
    little where it is small, and nothing where there are fewer tokens than channels."""
    found = np.zeros(shapes.shape[1])
    for mine, other in (shapes, shapes[::-1]):
        _, vectors = np.linalg.eigh(mine)
        found += np.einsum("ij,ik,kj->j", vectors, other, vectors, optimize=True)[::-1] / 2
    return np.maximum(found, 0.0)


def equalised_axes(principal: Int32s) -> Int32s:
    """A basis in which every channel has the same variance, or nearly (PHI-S, arXiv 2410.01680:
    the principal axes, then a Hadamard matrix)."""
    return rounded(flat_orthonormal(len(principal)) @ (principal * 2.0**-AXIS_BITS))


def flat_orthonormal(width: int) -> Float64s:
    """[width, width]: Sylvester's Hadamard matrix for the power of two in the width, times
    Hartley's for the odd rest, which is flat on average. Any width has one."""
    power = width & -width
    matrix = np.ones((1, 1))
    while len(matrix) < power:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    angles = 2 * np.pi * np.outer(np.arange(width // power), np.arange(width // power))
    angles /= width // power
    flat: Float64s = np.kron(matrix, np.cos(angles) + np.sin(angles)) / np.sqrt(width)
    return flat


def rounded(axes: Float64s) -> Int32s:
    return np.asarray(np.rint(axes * 2.0**AXIS_BITS), np.int32)
