from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infra.codec.rotation import (
    AXIS_BITS,
    Float64s,
    Int32s,
    Rotation,
    equalised_axes,
    flat_orthonormal,
    held_out_variances,
    power_of_two,
    principal_axes,
    rounded,
)

WIDTHS = [*range(1, 51), 384, 768]


def covariance(width: int, seed: int = 0, rank: int | None = None) -> Float64s:
    random = np.random.default_rng(seed)
    factors = random.standard_normal((rank or 2 * width, width)) * random.uniform(0.1, 3, width)
    return factors.T @ factors / len(factors)


def axes_of(width: int, seed: int = 0) -> Int32s:
    return principal_axes(covariance(width, seed))


def random_tokens(rows: int, tokens: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(rows, tokens, 1, generator=generator).mul(4).exp2()
    return torch.randn(rows, tokens, width, generator=generator) * sizes


def test_principal_axes__the_widest_first() -> None:
    matrix = covariance(24)
    axes = principal_axes(matrix)
    assert axes.dtype == np.int32
    # An axis a row, along which nothing hangs together with another's.
    units = axes * 2.0**-AXIS_BITS
    along = units @ matrix @ units.T
    variances = np.diagonal(along)
    assert (np.diff(variances) < 0).all()
    np.testing.assert_allclose(along, np.diag(variances), atol=1e-3)


def test_held_out_variances__of_halves_alike_are_the_eigenvalues() -> None:
    matrix = covariance(24)
    found = held_out_variances(np.stack([matrix, matrix]))
    np.testing.assert_allclose(found, np.linalg.eigvalsh(matrix)[::-1], rtol=1e-9)


def test_held_out_variances__know_each_half_only_from_the_other() -> None:
    """Fewer vectors than channels: along axes that they do not reach they seem to be nothing."""
    random = np.random.default_rng(1)
    factors = random.standard_normal((2, 16, 32))
    halves = np.einsum("hni,hnj->hij", factors, factors) / 16
    found = held_out_variances(halves)
    assert found.min() > 0.5  # of 1, which it truly is in any direction
    assert found.max() < 2
    assert found.sum() == pytest.approx(np.trace(halves.mean(0)))


def test_held_out_variances__are_never_below_zero() -> None:
    """What is nothing comes out as a little less as often as as a little more."""
    dead = covariance(32, rank=8)
    assert (held_out_variances(np.stack([dead, dead])) >= 0).all()


@pytest.mark.parametrize("width", [1, 2, 3, 7, 33, 48, 384])
@pytest.mark.parametrize("equalise", [False, True])
def test_axes__are_orthonormal(width: int, equalise: bool) -> None:
    axes = axes_of(width)
    units = (equalised_axes(axes) if equalise else axes) * 2.0**-AXIS_BITS
    np.testing.assert_allclose(units @ units.T, np.eye(width), atol=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_flat_orthonormal__of_any_width(width: int) -> None:
    matrix = flat_orthonormal(width)
    assert matrix.shape == (width, width)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)
    # Flat: no channel is more than twice as large a part of an axis as it would be of an even one.
    assert np.square(matrix).max() <= 2 / width + 1e-12


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32, 64, 512])
def test_flat_orthonormal__makes_variances_equal_where_the_width_is_a_power_of_two(
    width: int,
) -> None:
    matrix = flat_orthonormal(width)
    # Every channel is an equally large part of every axis, to the bit.
    assert len(np.unique(np.abs(matrix))) == 1
    variances = np.random.default_rng(0).integers(1, 1000, width)
    mixed = np.square(np.sign(matrix)).astype(np.int64) @ variances
    assert set(mixed.tolist()) == {int(variances.sum())}


def test_equalised_axes__every_channel_has_the_mean_variance() -> None:
    matrix = covariance(64)
    units = equalised_axes(principal_axes(matrix)) * 2.0**-AXIS_BITS
    variances = np.diagonal(units @ matrix @ units.T)
    np.testing.assert_allclose(variances, np.diagonal(matrix).mean(), rtol=1e-4)


def test_rounded__to_units_of_two_to_the_minus_eighteen() -> None:
    axes = rounded(np.array([[1.0, -0.5], [2.0**-18, 0.4 * 2.0**-18]]))
    assert axes.tolist() == [[262144, -131072], [1, 0]]


@settings(max_examples=40)
@given(
    st.lists(
        st.floats(-65504, 65504, width=32, allow_subnormal=False).map(lambda value: value + 0.0),
        min_size=1,
        max_size=9,
    )
)
def test_forward__is_what_whole_numbers_come_to(token: list[float]) -> None:
    """Computed here in fractions: tokens rounded to 20 bits below their largest value."""
    axes = axes_of(len(token))
    got = Rotation.of(axes, "cpu").forward(torch.tensor(token)).tolist()
    largest = max(abs(Fraction(value)) for value in token)
    unit = Fraction(1, 2**20)
    while unit * 2**20 <= largest:
        unit *= 2
    while largest and unit * 2**19 > largest:
        unit /= 2
    whole = [round(Fraction(value) / unit) for value in token]
    for value, axis in zip(got, axes.tolist(), strict=True):
        total = sum(part * share for part, share in zip(whole, axis, strict=True))
        assert Fraction(value) == total * unit / 2**AXIS_BITS


def test_forward__the_largest_sums_are_still_exact() -> None:
    """The worst that can be: all values alike and an axis along them, of a wide teacher."""
    width = 4096
    axes = np.zeros((width, width), np.int32)
    axes[0] = 2**AXIS_BITS  # far longer than one of length 1
    axes[0, -1] -= 1
    got = Rotation.of(axes, "cpu").forward(torch.full((1, width), 2.0 - 2.0**-23))
    whole = 2**20  # as it is rounded
    assert Fraction(got[0, 0].item()) == Fraction(whole * (width * 2**AXIS_BITS - 1), 2**37)


def test_forward__rows_have_the_same_bits_in_any_company() -> None:
    """Sums in floating point would differ: a matrix product's order depends on its shape."""
    rotation = Rotation.of(axes_of(384), "cpu")
    tokens = random_tokens(5, 49, 384)
    together = rotation.forward(tokens)
    for row in range(5):
        assert torch.equal(rotation.forward(tokens[row]), together[row])
    assert torch.equal(rotation.forward(tokens[0, 7]), together[0, 7])
    order = torch.randperm(5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(rotation.forward(tokens[order]), together[order])
    assert torch.equal(rotation.forward(tokens.flip(1)), together.flip(1))


def test_forward__order_of_channels_changes_no_bit() -> None:
    axes = axes_of(48)
    tokens = random_tokens(1, 20, 48)
    order = np.random.default_rng(1).permutation(48)
    shuffled = Rotation.of(axes[:, order], "cpu").forward(tokens[..., order])
    assert torch.equal(shuffled, Rotation.of(axes, "cpu").forward(tokens))


@pytest.mark.parametrize("width", [1, 3, 33, 384])
def test_back__of_forward_is_near(width: int) -> None:
    rotation = Rotation.of(axes_of(width), "cpu")
    tokens = random_tokens(2, 30, width)
    found = rotation.back(rotation.forward(tokens).float())
    error = (found - tokens).norm(dim=-1) / tokens.norm(dim=-1)
    assert error.max() < 1e-4


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 6e-8, 65504.0, 3e38])
def test_forward__extreme_tokens(value: float) -> None:
    rotation = Rotation.of(rounded(np.eye(3)), "cpu")
    tokens = torch.full((2, 3), value)
    torch.testing.assert_close(rotation.forward(tokens), tokens.double(), rtol=2.0**-19, atol=0.0)


def test_power_of_two__is_exact() -> None:
    exponents = torch.arange(-200, 201, dtype=torch.int32)
    assert power_of_two(exponents).tolist() == [2.0**n for n in range(-200, 201)]
