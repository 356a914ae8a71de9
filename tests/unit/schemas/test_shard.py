import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import shard
from schemas.errors import DamageError
from schemas.shard import RowForm


def features(rows: int, tokens: int, channels: int) -> np.ndarray:
    """Distinct finite values, the same on every machine."""
    count = rows * tokens * channels
    return (
        (np.arange(count, dtype=np.float32) / 8 - 3)
        .astype(np.float16)
        .reshape(rows, tokens, channels)
    )


def form_of(rows: np.ndarray) -> RowForm:
    return RowForm("uint8" if rows.dtype == np.uint8 else "float16", *rows.shape[1:])


@st.composite
def shards(draw: st.DrawFn) -> tuple[np.ndarray, list[bool], int]:
    rows_per_shard = draw(st.sampled_from([1, 2, 8, 32]))
    rows = draw(st.integers(1, rows_per_shard))
    shape = (rows, draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    dtype = np.dtype(draw(st.sampled_from(["<f2", "u1"])))
    size = dtype.itemsize * int(np.prod(shape))
    bits = draw(st.binary(min_size=size, max_size=size))
    present = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    return np.frombuffer(bits, dtype).reshape(shape), present, rows_per_shard


@given(shards())
def test_encode__round_trip_with_absent_rows(case: tuple[np.ndarray, list[bool], int]) -> None:
    rows, present, rows_per_shard = case
    data = shard.encode(rows, present, rows_per_shard)
    index = shard.decode_index(data, "k", rows_per_shard)
    absent = shard.is_absent(index)
    assert absent.tolist() == [not row for row in present] + [True] * (rows_per_shard - len(rows))
    for row in np.flatnonzero(~absent):
        offset, length = map(int, index[row])
        body = shard.check_chunk(memoryview(data)[offset : offset + length], "k", int(row))
        assert bytes(body) == rows[row].tobytes()
    decoded = shard.decode(data, "k", form_of(rows), rows_per_shard)
    # As bits: NaNs of every kind must come back as they were.
    kept = np.flatnonzero(present)
    assert decoded.dtype == rows.dtype
    np.testing.assert_array_equal(decoded.view(np.uint8)[kept], rows.view(np.uint8)[kept])
    empty = decoded[absent]
    assert not empty.any() if rows.dtype == np.uint8 else np.isnan(empty).all()


def test_decode__finds_every_flipped_bit_and_every_truncation() -> None:
    rows = features(3, 2, 3)
    data = bytes(shard.encode(rows, [True, False, True], 4))
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(DamageError, match="features/1"):
                shard.decode(damaged, "features/1", form_of(rows), 4)
        with pytest.raises(DamageError):
            shard.decode(data[:position], "features/1", form_of(rows), 4)


def test_decode__sound_chunks_of_another_shape_are_damage() -> None:
    data = shard.encode(features(2, 2, 3), [True, True], 2)
    with pytest.raises(DamageError, match="row 0 has 12 bytes"):
        shard.decode(data, "k", RowForm("float16", 2, 4), 2)


def test_check_chunk__says_which_row_of_which_object() -> None:
    data = shard.encode(features(2, 1, 1), [True, True], 2)
    data[-1] ^= 1
    with pytest.raises(DamageError) as caught:
        shard.decode(data, "features/1", RowForm("float16", 1, 1), 2)
    assert str(caught.value) == "features/1: row 1 of the shard is damaged"
    assert (caught.value.key, caught.value.row) == ("features/1", 1)


def test_encode__does_not_depend_on_memory_layout() -> None:
    rows = features(4, 3, 2)
    strided = np.asfortranarray(np.repeat(rows, 2, axis=0)[::2]).astype(">f2")
    assert shard.encode(strided, [True] * 4, 4) == shard.encode(rows, [True] * 4, 4)


def test_encode__golden_bytes() -> None:
    """The format for ever: a change here makes every cache on every store unreadable."""
    data = shard.encode(features(3, 4, 5), [True, False, True], 4)
    assert len(data) == 4 * 16 + 4 + 2 * (4 * 5 * 2 + 4)
    assert hashlib.sha256(data).hexdigest() == (
        "b967ae0915884eaf46e538f785a290fffee1d36d362f796ca079a5ea6dcdffd9"
    )


def test_array_metadata__golden_bytes() -> None:
    metadata = shard.array_metadata(1000, RowForm("float16", 256, 384), rows_per_shard=128)
    assert hashlib.sha256(metadata).hexdigest() == (
        "bc821059dc75812ae0aeb335533beca6ef6764ee9eafb2cd8cbe2fe544c26a57"
    )
    assert json.loads(metadata)["shape"] == [1000, 256, 384]
    assert shard.rows_per_shard_of(metadata) == 128


def test_array_metadata__of_codes_differs_in_what_codes_are() -> None:
    halves, codes = (
        json.loads(shard.array_metadata(1000, RowForm(dtype, 256, 384), rows_per_shard=128))
        for dtype in ("float16", "uint8")
    )
    (sharding,) = halves["codecs"]
    sharding["configuration"]["codecs"][0] = {"name": "bytes"}
    names = ["row", "token", "byte"]
    assert codes == halves | {"data_type": "uint8", "fill_value": 0, "dimension_names": names}


@pytest.mark.parametrize("form", [RowForm("float16", 256, 384), RowForm("uint8", 1, 2712)])
def test_form_of__is_what_the_metadata_was_made_for(form: RowForm) -> None:
    assert shard.form_of(shard.array_metadata(77, form, rows_per_shard=64)) == (77, form)
    assert form.bytes == (2 * 256 * 384 if form.dtype == "float16" else 2712)
