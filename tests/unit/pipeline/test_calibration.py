import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibration import MomentsMeter
from schemas.codec import codec_record
from schemas.records import Calibration, Moments

Vectors = npt.NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)


def vectors(seed: int, count: int, width: int = 3, mean: float = 0.0, std: float = 1.0) -> Vectors:
    values = mean + std * np.random.default_rng(seed).standard_normal((count, width))
    return values.astype(np.float32).astype(np.float64)


def metered(*batches: Vectors) -> Moments:
    meter = MomentsMeter(batches[0].shape[-1])
    for batch in batches:
        meter.add(torch.from_numpy(batch).float())
    return meter.moments()


@given(SEEDS, st.integers(1, 300), st.sampled_from([0.0, 1.0, -3e4, 1e6]))
def test_add__equals_numpy_over_all_vectors(seed: int, count: int, mean: float) -> None:
    """Also for a spread 1e-5 of the mean, where the textbook sum of squares cancels."""
    values = vectors(seed, count, mean=mean, std=max(1.0, abs(mean) * 1e-5))
    cuts = np.random.default_rng(seed).integers(0, count + 1, 3)
    found = metered(*np.split(values, np.sort(cuts)))
    assert found.count == count
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.variance, values.var(axis=0), rtol=1e-9, atol=1e-14)


@given(SEEDS, st.integers(2, 200), st.integers(0, 200))
def test_merge__in_any_split(seed: int, count: int, cut: int) -> None:
    values = vectors(seed, count, mean=1e4)
    whole, merged = metered(values), MomentsMeter(3)
    for part in (values[:cut], values[cut:]):
        merged.merge(metered(part))
    found = merged.moments()
    assert found.count == whole.count
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(found.variance, whole.variance, rtol=1e-12)


def test_merge__of_nothing_changes_nothing() -> None:
    meter = MomentsMeter(2)
    meter.add(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    meter.merge(MomentsMeter(2).moments())
    assert meter.moments() == Moments(count=2, mean=(2.0, 4.0), variance=(1.0, 4.0))


def test_add__takes_any_leading_shape() -> None:
    meter = MomentsMeter(2)
    meter.add(torch.arange(24.0).reshape(3, 4, 2))
    assert meter.moments().count == 12
    assert meter.moments().mean == (11.0, 12.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_add__leaves_out_what_is_not_finite(bad: float) -> None:
    values = vectors(0, 50)
    spoilt = values.copy()
    spoilt[7, 1] = bad
    assert metered(spoilt) == metered(np.delete(values, 7, axis=0))


def test_moments__of_nothing_are_the_identity() -> None:
    assert metered(vectors(0, 0)) == Moments(count=0, mean=(0, 0, 0), variance=(1, 1, 1))


def test_add__a_constant_channel_is_divided_by_one() -> None:
    values = vectors(0, 100)
    values[:, 1] = 7.25
    moments = metered(values)
    record = codec_record("fp16", Calibration(images=1, rows=1, tokens=moments, cls=None))
    assert record.tokens.std[1] == 1.0
    assert record.tokens.mean[1] == 7.25
    assert record.tokens.std[0] == pytest.approx(values[:, 0].std())
