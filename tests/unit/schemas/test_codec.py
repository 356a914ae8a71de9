import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import codec_folder, codec_record
from schemas.records import Calibration, CodecRecord, Moments, ObjectRecord
from schemas.sealed import seal, unseal


def calibration(mean: list[float], variance: list[float], images: int = 512) -> Calibration:
    moments = Moments(count=1000, mean=mean, variance=variance)
    return Calibration(
        images=images,
        rows=images,
        tokens=moments,
        cls=moments,
        tokens_covariance=ObjectRecord(key="tokens", size=0, sha256=""),
        cls_covariance=ObjectRecord(key="cls", size=0, sha256=""),
    )


def test_codec_record__constant_channel_is_divided_by_one() -> None:
    record = codec_record("fp16", calibration([5.0, 0.0, 1.0, 2.0], [0.0, 0.0, 1e-16, 4.0]))
    assert record.tokens.std == (1.0, 1.0, 1.0, 2.0)
    assert record.tokens.mean == (5.0, 0.0, 1.0, 2.0)


def test_codec_record__all_channels_constant_zero() -> None:
    assert codec_record("fp16", calibration([0.0, 0.0], [0.0, 0.0])).tokens.std == (1.0, 1.0)


def test_codec_record__a_small_channel_is_not_a_constant_one() -> None:
    record = codec_record("fp16", calibration([0.0, 0.0], [1.0, 1e-8]))
    assert record.tokens.std == (1.0, float(np.float32(1e-4)))


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), min_size=1, max_size=8))
def test_codec_record__values_are_float32_to_the_bit_after_storing(
    channels: list[tuple[float, float]],
) -> None:
    mean, variance = (list(column) for column in zip(*channels, strict=True))
    record = codec_record("fp16", calibration(mean, variance))
    read = unseal(seal(record), CodecRecord, "k")
    for values in (read.tokens.mean, read.tokens.std):
        assert np.asarray(values, np.float32).astype(np.float64).tolist() == list(values)
    assert min(read.tokens.std) > 0
    assert read == record


def test_codec_record__a_deviation_below_float32_is_a_constant() -> None:
    assert codec_record("fp16", calibration([0.0], [1e-180])).tokens.std == (1.0,)


def test_codec_record__without_cls() -> None:
    bare = calibration([0.0], [1.0]).model_copy(update={"cls": None})
    assert codec_record("fp16", bare).cls is None


def test_codec_folder__is_of_the_content() -> None:
    one = codec_record("fp16", calibration([1.0], [1.0]))
    assert codec_folder(one) == codec_folder(codec_record("fp16", calibration([1.0], [1.0])))
    others = [
        codec_record("fp16", calibration([1.0], [4.0])),
        codec_record("fp16", calibration([2.0], [1.0])),
        codec_record("fp16", calibration([1.0], [1.0], images=511)),
    ]
    assert len({codec_folder(record) for record in [one, *others]}) == 4
    assert codec_folder(one).startswith("fp16-")
