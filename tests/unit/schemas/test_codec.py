import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import choice_of, codec_folder, codec_label, codec_record
from schemas.extract_config import CodecChoice
from schemas.frequencies import normal_tables
from schemas.measured import Calibration, CodecRecord, Moments
from schemas.sealed import seal, unseal
from tests import calibrations
from tests.calibrations import NOWHERE

FP16 = CodecChoice()
LABELS = {
    "fp16": {},
    "int8": {"tokens": "int8"},
    "int8.hadamard": {"tokens": "int8", "rotation": "hadamard"},
    "int4.hadamard": {"tokens": "int4"},
    "int4": {"tokens": "int4", "rotation": "none"},
    "variable4.pca": {"tokens": "variable"},
    "variable3.pca": {"tokens": "variable", "bits": 3},
    "variable2.5": {"tokens": "variable", "bits": 2.5, "rotation": "none"},
    "variable2.5.hadamard": {"tokens": "variable", "bits": 2.5, "rotation": "hadamard"},
}


def calibration(mean: list[float], variance: list[float], images: int = 512) -> Calibration:
    moments = Moments(count=1000, mean=mean, variance=variance)
    return calibrations.calibration(moments, moments, images)


def test_codec_record__constant_channel_is_divided_by_one() -> None:
    record = codec_record(FP16, calibration([5.0, 0.0, 1.0, 2.0], [0.0, 0.0, 1e-16, 4.0]))
    assert record.tokens.std == (1.0, 1.0, 1.0, 2.0)
    assert record.tokens.mean == (5.0, 0.0, 1.0, 2.0)


def test_codec_record__all_channels_constant_zero() -> None:
    assert codec_record(FP16, calibration([0.0, 0.0], [0.0, 0.0])).tokens.std == (1.0, 1.0)


def test_codec_record__a_small_channel_is_not_a_constant_one() -> None:
    record = codec_record(FP16, calibration([0.0, 0.0], [1.0, 1e-8]))
    assert record.tokens.std == (1.0, float(np.float32(1e-4)))


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), min_size=1, max_size=8))
def test_codec_record__values_are_float32_to_the_bit_after_storing(
    channels: list[tuple[float, float]],
) -> None:
    mean, variance = (list(column) for column in zip(*channels, strict=True))
    record = codec_record(FP16, calibration(mean, variance))
    read = unseal(seal(record), CodecRecord, "k")
    for values in (read.tokens.mean, read.tokens.std):
        assert np.asarray(values, np.float32).astype(np.float64).tolist() == list(values)
    assert min(read.tokens.std) > 0
    assert read == record


def test_codec_record__a_deviation_below_float32_is_a_constant() -> None:
    assert codec_record(FP16, calibration([0.0], [1e-180])).tokens.std == (1.0,)


def test_codec_record__without_cls() -> None:
    bare = calibration([0.0], [1.0]).model_copy(update={"cls": None})
    assert codec_record(FP16, bare).cls is None


def test_codec_folder__is_of_the_content() -> None:
    one = codec_record(FP16, calibration([1.0], [1.0]))
    assert codec_folder(one) == codec_folder(codec_record(FP16, calibration([1.0], [1.0])))
    others = [
        codec_record(FP16, calibration([1.0], [4.0])),
        codec_record(FP16, calibration([2.0], [1.0])),
        codec_record(FP16, calibration([1.0], [1.0], images=511)),
    ]
    assert len({codec_folder(record) for record in [one, *others]}) == 4
    assert codec_folder(one).startswith("fp16-")


@pytest.mark.parametrize("label", LABELS)
def test_codec_label__names_a_choice_and_gives_it_back(label: str) -> None:
    choice, measured = CodecChoice(**LABELS[label]), calibration([1.0, 2.0], [1.0, 4.0])
    record = codec_record(choice, measured)
    assert codec_label(choice) == label
    assert codec_folder(record).rpartition("-")[0] == label
    assert codec_record(choice_of(label), measured) == record


@pytest.mark.parametrize(
    ("rotation", "spreads"),
    # 64 log2 of the square roots of 4, 1/4 and 1; of 9, 1/9 and 1; of 7/4, the mean of `own`.
    [("none", (64, -64, 0)), ("pca", (101, -101, 0)), ("hadamard", (26, 26, 26))],
)
def test_codec_record__spreads_are_of_the_rotated_basis(
    rotation: str, spreads: tuple[int, ...]
) -> None:
    moments = Moments(count=9, mean=(0.0,) * 3, variance=(1.0,) * 3)
    measured = calibrations.calibration(moments, own=(4.0, 0.25, 1.0), principal=(9.0, 1 / 9, 1.0))
    choice = CodecChoice.model_validate({"tokens": "variable", "rotation": rotation})
    record = codec_record(choice, measured)
    assert record.spreads == spreads
    assert record.axes == (None if rotation == "none" else NOWHERE)
    assert record.frequencies == normal_tables()
    assert codec_record(CodecChoice(tokens="int8"), measured).spreads is None


def test_codec_record__a_direction_without_variance_has_a_spread() -> None:
    moments = Moments(count=9, mean=(0.0, 0.0), variance=(1.0, 1.0))
    measured = calibrations.calibration(moments, principal=(2.0, 0.0))
    assert codec_record(CodecChoice(tokens="variable"), measured).spreads == (32, -512)
