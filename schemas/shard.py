"""One shard of patch tokens as a Zarr v3 `sharding_indexed` object, to the byte.

    index   rows x (offset u64, length u64), little-endian; both 2^64 - 1 where a row has no chunk
            crc32c of the index, u32
    chunks  one row each: tokens x channels float16, little-endian, C order; crc32c of them, u32

The index stands first, so that one ranged read at a known offset brings it. Written by hand rather
than through zarr-python because a shard must be one create-only put of bytes known beforehand, and
because a general reader answers a missing row with the fill value; ours must not. zarr-python and
tensorstore read the same bytes (tests/contract).
"""

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from schemas.errors import DamageError

ENTRY_BYTES = 16
CRC_BYTES = 4
_ABSENT = np.uint64(2**64 - 1)

Buffer: TypeAlias = bytes | bytearray | memoryview
Rows: TypeAlias = npt.NDArray[np.float16] | npt.NDArray[np.uint8]


class RowForm(NamedTuple):
    """What a row's tokens are in a shard."""

    dtype: Literal["float16", "uint8"]
    height: int
    """Tokens of a row; 1 where a row is one string of bytes."""
    width: int
    """Channels, or bytes."""

    @property
    def bytes(self) -> int:
        return self.height * self.width * np.dtype(self.dtype).itemsize


def array_metadata(rows: int, form: RowForm, rows_per_shard: int) -> bytes:
    """`zarr.json` of a set's generation: a pure function of its shape and frozen shard size."""
    endian = {"name": "bytes", "configuration": {"endian": "little"}}
    checksum = {"name": "crc32c"}
    is_float = form.dtype == "float16"
    sharding = {
        "chunk_shape": [1, form.height, form.width],
        "codecs": [endian if is_float else {"name": "bytes"}, checksum],
        "index_codecs": [endian, checksum],
        "index_location": "start",
    }
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, form.height, form.width],
        "data_type": form.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [rows_per_shard, form.height, form.width]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if is_float else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["row", "token", "channel" if is_float else "byte"],
    }
    return json.dumps(metadata, indent=1).encode()


def rows_per_shard_of(metadata: bytes) -> int:
    """The frozen shard size that a `zarr.json` states."""
    return int(json.loads(metadata)["chunk_grid"]["configuration"]["chunk_shape"][0])


def form_of(metadata: bytes) -> tuple[int, RowForm]:
    """How many rows a `zarr.json` states, and of which form."""
    told = json.loads(metadata)
    rows, height, width = told["shape"]
    return int(rows), RowForm(told["data_type"], int(height), int(width))


def index_bytes(rows_per_shard: int) -> int:
    return ENTRY_BYTES * rows_per_shard + CRC_BYTES


def encode(rows: Rows, present: Sequence[bool], rows_per_shard: int) -> bytearray:
    """Encode `rows` [n <= rows_per_shard, height, width]; a row not `present` gets no chunk."""
    body_bytes = rows[0].nbytes
    start = index_bytes(rows_per_shard)
    chunk_bytes = body_bytes + CRC_BYTES
    data = bytearray(start + chunk_bytes * sum(present))
    index = np.full((rows_per_shard, 2), _ABSENT, dtype="<u8")
    chunks = np.frombuffer(data, np.uint8)[start:].reshape(-1, chunk_bytes)
    little = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
    for slot, row in enumerate(np.flatnonzero(present)):
        body = little[row].reshape(-1).view(np.uint8)
        chunks[slot, :body_bytes] = body
        chunks[slot, body_bytes:] = np.frombuffer(_crc(body.data), np.uint8)
        index[row] = start + slot * chunk_bytes, chunk_bytes
    packed = index.tobytes()
    data[:start] = packed + _crc(packed)
    return data


def decode_index(data: bytes | memoryview, key: str, rows_per_shard: int) -> npt.NDArray[np.uint64]:
    """The index [rows_per_shard, (offset, length)] from an object's first `index_bytes`.

    Raises:
        DamageError: the index is short or does not match its checksum.
    """
    size = index_bytes(rows_per_shard)
    body, stored = data[: size - CRC_BYTES], data[size - CRC_BYTES : size]
    if len(data) < size or _crc(body) != bytes(stored):
        raise DamageError(f"{key}: the shard's index is damaged", key=key)
    return np.frombuffer(body, "<u8").reshape(-1, 2)


def is_absent(index: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which rows of an index have no chunk."""
    return np.asarray(index[:, 1] == _ABSENT)


def checksums(data: Buffer, key: str, rows_per_shard: int) -> list[int | None]:
    """The stored crc32c of every row of a whole object; None where it has no chunk. These tie the
    rows of a shard to the table that names them. Raises DamageError: the index is damaged.
    """
    index = decode_index(memoryview(data), key, rows_per_shard)
    ends = [None if length == _ABSENT else int(offset + length) for offset, length in index]
    view = memoryview(data)
    return [None if end is None else stored_checksum(view[:end]) for end in ends]


def stored_checksum(chunk: memoryview) -> int:
    """What a row's chunk ends in."""
    return int.from_bytes(chunk[-CRC_BYTES:], "little")


def check_chunk(chunk: memoryview, key: str, row: int) -> memoryview:
    """The body of one row's chunk, after its checksum.

    Raises:
        DamageError: the chunk is short or altered.
    """
    body, stored = chunk[:-CRC_BYTES], chunk[-CRC_BYTES:]
    if len(chunk) <= CRC_BYTES or _crc(body) != bytes(stored):
        raise DamageError(f"{key}: row {row} of the shard is damaged", key=key, row=row)
    return body


def decode(data: bytes, key: str, form: RowForm, rows_per_shard: int) -> Rows:
    """Every row of a whole object [rows_per_shard, height, width]; where it has no chunk, NaN or 0.

    Raises:
        DamageError: any byte that a reader would use is not what was written.
    """
    index = decode_index(data, key, rows_per_shard)
    shape = (rows_per_shard, form.height, form.width)
    rows: Rows = np.full(shape, np.nan if form.dtype == "float16" else 0, form.dtype)
    view = memoryview(data)
    for row in np.flatnonzero(~is_absent(index)):
        offset, length = (int(value) for value in index[row])
        body = check_chunk(view[offset : offset + length], key, int(row))
        if len(body) != rows[row].nbytes:
            raise DamageError(f"{key}: row {row} has {len(body)} bytes", key=key, row=int(row))
        rows[row] = rows_from(body, form)[0]
    return rows


def rows_from(body: Buffer, form: RowForm) -> Rows:
    """Rows that follow one another [rows, height, width], a view of the bytes."""
    little = np.dtype(form.dtype).newbyteorder("<")
    return np.frombuffer(body, little).reshape(-1, form.height, form.width)


def _crc(data: Buffer) -> bytes:
    return int(crc32c(data)).to_bytes(CRC_BYTES, "little")
