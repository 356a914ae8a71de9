"""Arrow schemas of the Parquet tables in a cache, and how they are written and read."""

import io
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import DamageError
from schemas.names import BLOCK_ROWS

ROWS_PER_PLAN_PART = 1 << 20
ROWS_PER_PLAN_GROUP = 1 << 11
"""Rows of a Parquet row group of the plan: what a reader of a few rows has to read."""
READING_FAILED = (pa.ArrowException, OSError, ValueError)
OK = "ok"
BAD = "bad"

PLAN = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        # Uniform draws in [0, 1); null for view 0, which is the whole image.
        pa.field("draw_scale", pa.float64()),
        pa.field("draw_ratio", pa.float64()),
        pa.field("draw_x", pa.float64()),
        pa.field("draw_y", pa.float64()),
        pa.field("draw_flip", pa.float64()),
        # Also null where views are not photometric.
        pa.field("draw_jitter", pa.float64()),
        pa.field("draw_brightness", pa.float64()),
        pa.field("draw_contrast", pa.float64()),
        pa.field("draw_saturation", pa.float64()),
        pa.field("draw_hue", pa.float64()),
        pa.field("draw_blur", pa.float64()),
        pa.field("draw_blur_radius", pa.float64()),
        pa.field("draw_solarize", pa.float64()),
    ]
)

SUPERSEDED = pa.schema([pa.field("row", pa.int64(), nullable=False)])
"""Plan rows that a later generation replaces, ascending."""

SNAPSHOT = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("ok", pa.int32(), nullable=False),
        pa.field("bad", pa.int32(), nullable=False),
        pa.field("tokens_key", pa.string(), nullable=False),
        pa.field("tokens_size", pa.int64(), nullable=False),
        pa.field("tokens_sha256", pa.string(), nullable=False),
        pa.field("cls_key", pa.string(), nullable=False),
        pa.field("cls_size", pa.int64(), nullable=False),
        pa.field("cls_sha256", pa.string(), nullable=False),
        pa.field("codec_sha256", pa.string(), nullable=False),
        pa.field("array_sha256", pa.string(), nullable=False),
        pa.field("commit_sha256", pa.string(), nullable=False),
    ]
)


def cls_schema(cls_width: int | None) -> pa.Schema:
    """One row of a shard: what became of it, and its CLS vector (fp16, standardised)."""
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("image_sha256", pa.binary(32)),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("pixels_sha256", pa.binary(32)),
        pa.field("tokens_crc32c", pa.uint32()),
        pa.field("relative_rms", pa.float32()),
    ]
    if cls_width is not None:
        fields.append(pa.field("cls", pa.list_(pa.float16(), cls_width)))
    return pa.schema(fields)


def covariance_schema(width: int) -> pa.Schema:
    """One row of a covariance matrix a line."""
    return pa.schema([pa.field("covariance", pa.list_(pa.float64(), width), nullable=False)])


def axes_schema(width: int) -> pa.Schema:
    """An axis of each rotation a line, in units of 2^-18 (infra/codec/rotation.py)."""
    axis = pa.list_(pa.int32(), width)
    return pa.schema(
        [pa.field("pca", axis, nullable=False), pa.field("hadamard", axis, nullable=False)]
    )


def to_parquet(table: pa.Table) -> bytes:
    """Parquet with a checksum on every page."""
    return joined([table], table.schema)


def joined(pieces: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    """The Parquet of tables that follow on one another, of which only one is held at a time. All
    but the last have a multiple of ROWS_PER_PLAN_GROUP rows."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for piece in pieces:
            writer.write_table(piece, row_group_size=ROWS_PER_PLAN_GROUP)
    return sink.getvalue()


def blocks_to_parquet(table: pa.Table) -> bytes:
    """Parquet with a checksum on every page and a row group for each block. Neither compressed nor
    in dictionaries, which float16 hardly yields to, and which cost ten times the reading."""
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=BLOCK_ROWS,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue()


def from_parquet(data: bytes, key: str, schema: pa.Schema) -> pa.Table:
    """Read the table found at `key`, checking every page.

    Raises:
        DamageError: a page is damaged, or the columns are not those of `schema`.
    """
    try:
        table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
    except READING_FAILED as error:
        raise _unreadable(key, error) from None
    _refuse_other_columns(table.schema, schema, key)
    return table


class Blocks:
    """A table that is read a row group at a time, by any number of threads.

    Args:
        data: the whole object, known to be the one that was written.

    Raises:
        DamageError: it is no Parquet, its columns are not those of `schema`, or its row groups are
            not blocks.
    """

    def __init__(self, data: bytes, key: str, schema: pa.Schema) -> None:
        self._data, self._key = pa.py_buffer(data), key
        try:
            file = pq.ParquetFile(pa.BufferReader(self._data))
        except READING_FAILED as error:
            raise _unreadable(key, error) from None
        _refuse_other_columns(file.schema_arrow, schema, key)
        self._metadata = file.metadata
        groups = range(self._metadata.num_row_groups)
        sizes = [self._metadata.row_group(group).num_rows for group in groups]
        rows = self._metadata.num_rows
        if sizes != [min(BLOCK_ROWS, rows - first) for first in range(0, rows, BLOCK_ROWS)]:
            raise DamageError(f"{key}: its row groups are not blocks of {BLOCK_ROWS} rows", key=key)

    @property
    def bytes(self) -> int:
        return int(self._data.size)

    def block(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of the rows of one block, those that there are.

        Raises:
            DamageError: a page is damaged, or there is no such block.
        """
        try:
            file = pq.ParquetFile(
                pa.BufferReader(self._data),
                metadata=self._metadata,
                page_checksum_verification=True,
            )
            return file.read_row_group(number, list(columns), use_threads=False)
        except READING_FAILED as error:
            raise _unreadable(self._key, error) from None


def _unreadable(key: str, error: Exception) -> DamageError:
    return DamageError(f"{key}: not readable as Parquet: {error}", key=key)


def _refuse_other_columns(found: pa.Schema, expected: pa.Schema, key: str) -> None:
    if not found.equals(expected):
        raise DamageError(f"{key}: its columns are not those of this format", key=key)
