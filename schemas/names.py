"""Constants and small types that several schemas share."""

from typing import Annotated, Literal

from pydantic import Field

FORMAT_VERSION = 6
BLOCK_ROWS = 32
"""Rows of a block, the unit of reading and shuffling."""
MAX_SPAN_IMAGES = 512
PACK_IMAGES = 128
"""Images of one pack: an object worth a request, and still held in memory while it is written."""
PIXEL_RECIPE = 1

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
Grid = Annotated[int, Field(ge=1, le=256)]
Precision = Literal["float32", "bfloat16", "float16"]
ClsKind = Literal["class_token", "attention_pool", "mean", "projected", "none"]
"""Which global vector of a teacher stands in the CLS column; `projected` is the embedding that a
CLIP-like model compares with text, before it is brought to unit length."""
