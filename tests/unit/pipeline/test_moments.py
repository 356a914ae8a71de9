from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.codec.rotation import AXIS_BITS, equalised_axes, principal_axes
from pipeline.moments import MomentsMeter, axes_parquet, covariance_parquet
from schemas import tables
from schemas.codec import codec_record
from schemas.extract_config import CodecChoice
from schemas.measured import Moments
from tests.calibrations import calibration

Vectors = npt.NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)
MEANS = st.sampled_from([0.0, 1.0, -3e4, 1e6])


def vectors(seed: int, count: int, width: int = 3, mean: float = 0.0, std: float = 1.0) -> Vectors:
    """Correlated, as float32 holds them."""
    random = np.random.default_rng(seed)
    mixing = np.eye(width) + 0.5 * np.tri(width, k=-1)
    values = mean + std * random.standard_normal((count, width)) @ mixing
    return values.astype(np.float32).astype(np.float64)


def metered(batches: Sequence[Vectors]) -> MomentsMeter:
    meter = MomentsMeter(batches[0].shape[-1])
    for batch in batches:
        meter.add(torch.from_numpy(batch).float())
    return meter


def cut(values: Vectors, seed: int, cuts: int) -> list[Vectors]:
    places = np.random.default_rng(seed).integers(0, len(values) + 1, cuts)
    return np.split(values, np.sort(places))


def assert_same(found: Vectors, expected: Vectors, relative: float = 1e-9) -> None:
    """Relative to what a covariance is made of: the standard deviations of its two channels."""
    std = np.sqrt(np.diagonal(expected))
    assert (np.abs(found - expected) <= relative * np.outer(std, std) + 1e-14).all()
    assert (found == found.T).all()


@given(SEEDS, st.integers(1, 300), MEANS)
def test_add__equals_numpy_over_all_vectors(seed: int, count: int, mean: float) -> None:
    """Also for a spread 1e-6 of the mean, where the textbook sum of squares cancels."""
    values = vectors(seed, count, mean=mean)
    meter = metered(cut(values, seed, 3))
    moments = meter.moments()
    assert moments.count == count
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.variance, values.var(axis=0), rtol=1e-9, atol=1e-14)
    expected = np.cov(values, rowvar=False, bias=True)
    assert_same(meter.covariance(), expected)
    assert moments.variance == tuple(np.diagonal(meter.covariance()).tolist())


@given(SEEDS, st.integers(1, 200), st.integers(1, 6), MEANS)
def test_merge__in_any_split(seed: int, count: int, cuts: int, mean: float) -> None:
    values = vectors(seed, count, mean=mean)
    whole, merged = metered([values]), MomentsMeter(3)
    for part in cut(values, seed, cuts):
        merged.merge(metered([part]).spread)
    assert merged.moments().count == count
    np.testing.assert_allclose(merged.moments().mean, whole.moments().mean, rtol=1e-12, atol=1e-12)
    assert_same(merged.covariance(), whole.covariance())


def test_merge__of_nothing_changes_nothing() -> None:
    meter = MomentsMeter(2)
    meter.add(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    meter.merge(MomentsMeter(2).spread)
    assert meter.moments() == Moments(count=2, mean=(2.0, 4.0), variance=(1.0, 4.0))
    assert meter.covariance().tolist() == [[1.0, 2.0], [2.0, 4.0]]


def test_merge__leaves_the_other_as_it_is() -> None:
    one, other = metered([vectors(0, 9)]), metered([vectors(1, 7)])
    before = other.spread.scatter.copy()
    one.merge(other.spread)
    one.add(torch.ones(4, 3))
    assert (other.spread.scatter == before).all()
    assert other.spread.count == 7


def test_add__takes_any_leading_shape_and_leaves_it_as_it_is() -> None:
    meter = MomentsMeter(2)
    given = torch.arange(24.0, dtype=torch.float64).reshape(3, 4, 2)
    meter.add(given)
    assert meter.moments().count == 12
    assert meter.moments().mean == (11.0, 12.0)
    assert (given.flatten() == torch.arange(24.0)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_add__calculates_in_double_precision(dtype: torch.dtype) -> None:
    given = torch.from_numpy(vectors(3, 500, std=100)).to(dtype)
    meter = MomentsMeter(3)
    with torch.inference_mode():
        meter.add(given.clone())
    assert_same(meter.covariance(), np.cov(given.double().numpy(), rowvar=False, bias=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_add__leaves_out_what_is_not_finite(bad: float) -> None:
    values = vectors(0, 50)
    spoilt = values.copy()
    spoilt[7, 1] = bad
    found, expected = metered([spoilt]), metered([np.delete(values, 7, axis=0)])
    assert found.moments() == expected.moments()
    assert (found.covariance() == expected.covariance()).all()
    assert metered([spoilt[7:8]]).moments().count == 0


def test_moments__of_nothing_are_the_identity() -> None:
    meter = metered([vectors(0, 0)])
    assert meter.moments() == Moments(count=0, mean=(0, 0, 0), variance=(1, 1, 1))
    assert (meter.covariance() == np.eye(3)).all()


def test_moments__of_one_vector() -> None:
    meter = metered([np.array([[1.0, -2.0, 3e6]])])
    assert meter.moments() == Moments(count=1, mean=(1.0, -2.0, 3e6), variance=(0, 0, 0))
    assert (meter.covariance() == 0).all()


@given(SEEDS, st.floats(-(2.0**100), 2.0**100, width=32), st.integers(0, 4))
def test_add__a_constant_channel_has_no_variance_at_all(seed: int, value: float, cuts: int) -> None:
    values = vectors(seed, 100)
    values[:, 1] = value
    meter = metered(cut(values, seed, cuts))
    covariance = meter.covariance()
    assert meter.moments().mean[1] == value
    assert (covariance[1] == 0).all()
    assert (covariance[:, 1] == 0).all()
    assert np.isfinite(covariance).all()


def test_add__a_constant_channel_is_divided_by_one() -> None:
    values = vectors(0, 100)
    values[:, 1] = 7.25
    record = codec_record(CodecChoice(), calibration(metered([values]).moments()))
    assert record.tokens.std[1] == 1.0
    assert record.tokens.mean[1] == 7.25
    assert record.tokens.std[0] == pytest.approx(values[:, 0].std())


@pytest.mark.parametrize("width", [1, 3, 70])
def test_covariance_parquet__holds_the_matrix_to_the_bit(width: int) -> None:
    matrix = metered([vectors(1, 300, width, mean=1e3)]).covariance()
    data = covariance_parquet(matrix)
    table = tables.from_parquet(data, "covariance", tables.covariance_schema(width))
    assert isinstance(table, pa.Table)
    assert (np.array(table["covariance"].to_pylist()) == matrix).all()
    assert covariance_parquet(matrix) == data


def directions(values: Vectors) -> Vectors:
    """The covariance of what is standardised within its batch and brought to one length."""
    seen = (values - values.mean(0)) / values.std(0)
    seen /= np.sqrt((seen**2).mean(1, keepdims=True))
    return seen.T @ seen / len(seen)


def test_shapes__are_of_the_directions_in_each_half() -> None:
    values = vectors(7, 300, mean=50.0, std=3.0)
    shapes = metered([values]).shapes()
    assert (shapes == shapes.transpose(0, 2, 1)).all()
    np.testing.assert_allclose(np.trace(shapes, axis1=1, axis2=2), 3.0)
    np.testing.assert_allclose(shapes.mean(0), directions(values), atol=1e-9)
    assert (shapes[0] != shapes[1]).any()


def test_shapes__do_not_depend_on_the_scale_of_a_channel() -> None:
    values = vectors(7, 300)
    np.testing.assert_allclose(
        metered([values * [1, 2**-20, 2**10]]).shapes(), metered([values]).shapes(), atol=1e-9
    )


def test_shapes__of_batches_are_means_weighted_by_their_vectors() -> None:
    one, other = vectors(1, 60), vectors(2, 20)
    mine, theirs = metered([one]).shapes(), metered([other]).shapes()
    both = metered([one, other]).shapes()
    np.testing.assert_allclose(both, (60 * mine + 20 * theirs) / 80, atol=1e-12)


def test_shapes__a_few_outliers_hardly_change_them() -> None:
    """One vector in a hundred, a thousand times as long, is nearly all of a covariance."""
    values = vectors(4, 2000, width=8)
    spoilt = values.copy()
    spoilt[::200], spoilt[100::200] = 1000.0, -1000.0
    along = np.full(8, 8**-0.5)
    before, after = (along @ metered([each]).shapes().mean(0) @ along for each in (values, spoilt))
    covariance = metered([spoilt]).covariance()
    assert along @ covariance @ along > 0.99 * np.trace(covariance)
    assert after < before + 0.05 * 8


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.array([[1.0, 2.0, 3.0]] * 5)])
def test_shapes__without_any_direction_are_the_identity(values: Vectors) -> None:
    assert (metered([values]).shapes() == np.eye(3)).all()


def test_shapes__of_one_half_are_of_both() -> None:
    """Of three vectors the middle one is the mean, and of one picture there is one half."""
    meter = metered([np.array([[1.0, 0.0]])])
    meter.merge(metered([np.array([[1.0, -1.0], [0.0, 0.0], [-1.0, 1.0]])]).spread)
    np.testing.assert_allclose(meter.shapes(), [[[1, -1], [-1, 1]]] * 2)


@pytest.mark.parametrize("width", [1, 3, 70])
def test_axes_parquet__holds_both_bases_to_the_bit(width: int) -> None:
    principal = principal_axes(metered([vectors(1, 300, width)]).shapes().mean(0))
    equalised = equalised_axes(principal)
    data = axes_parquet(principal, equalised)
    table = tables.from_parquet(data, "axes", tables.axes_schema(width))
    for name, axes in (("pca", principal), ("hadamard", equalised)):
        held = np.array(table[name].to_pylist())
        assert (held == axes).all()
        whole = held * 2.0**-AXIS_BITS
        np.testing.assert_allclose(whole @ whole.T, np.eye(width), atol=1e-4)
    assert axes_parquet(principal, equalised) == data


@pytest.mark.gpu
def test_add__on_a_gpu() -> None:
    given = torch.from_numpy(vectors(5, 1000, 64, mean=1e6)).float()
    here, there = MomentsMeter(64), MomentsMeter(64)
    here.add(given)
    there.add(given.cuda())
    assert_same(there.covariance(), here.covariance())
