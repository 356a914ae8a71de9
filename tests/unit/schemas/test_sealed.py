import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DamageError
from schemas.extract_config import Columns
from schemas.measured import CodecRecord
from schemas.records import ObjectRecord, TeacherRecord
from schemas.sealed import digest, seal, unseal

FLOATS = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=4)
AFFINES = st.builds(dict, mean=FLOATS, std=FLOATS)


OBJECTS = st.builds(dict, key=st.text(max_size=8), size=st.integers(0, 2**60), sha256=st.just("0"))
WHOLE = st.lists(st.integers(-(2**31), 2**31), max_size=4)


@given(OBJECTS, AFFINES, st.none() | AFFINES, st.none() | WHOLE, st.integers(0, 2**60))
def test_seal__round_trip(
    axes: dict, tokens: dict, cls: dict | None, numbers: list[int] | None, images: int
) -> None:
    record = CodecRecord(
        tokens_codec="variable",
        bits=2.5,
        rotation="pca",
        axes=axes,
        spreads=numbers,
        frequencies=numbers and [numbers, numbers],
        tokens=tokens,
        cls=cls,
        calibration_images=images,
        calibration_rows=images,
    )
    data = seal(record)
    assert unseal(data, CodecRecord, "codec.json") == record
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")


def test_seal__is_json_with_its_digest_last() -> None:
    data = seal(Columns(image="ü"))
    assert list(json.loads(data)) == ["image", "key", "label", "sha256"]
    assert "ü".encode() in data
    body, _, tail = data.rpartition(b',"sha256":"')
    assert tail.decode().removesuffix('"}\n') == digest(body + b"}")


def test_unseal__finds_every_flipped_bit_and_every_truncation() -> None:
    data = seal(ObjectRecord(key="features/é", size=12, sha256="ab" * 32))
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(DamageError, match="commits/1"):
                unseal(bytes(damaged), ObjectRecord, "commits/1")
        with pytest.raises(DamageError):
            unseal(data[:position], ObjectRecord, "commits/1")
    with pytest.raises(DamageError):
        unseal(data + b"\n", ObjectRecord, "commits/1")


def test_unseal__sound_bytes_of_another_record_are_damage() -> None:
    with pytest.raises(DamageError, match="k: not a TeacherRecord"):
        unseal(seal(ObjectRecord(key="a", size=1, sha256="0")), TeacherRecord, "k")
