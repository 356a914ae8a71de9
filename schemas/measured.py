"""The sealed records of what was measured of a teacher at one grid, and of the codec made of it."""

from typing import Literal

from schemas.records import ObjectRecord
from schemas.strict import StrictModel


class Moments(StrictModel):
    """Per-channel statistics in float64."""

    count: int
    mean: tuple[float, ...]
    variance: tuple[float, ...]


class Shape(StrictModel):
    """Of tokens standardised within their batch and brought to unit spread: what directions they
    take, however long they are. A few outlier tokens hardly change it."""

    own: tuple[float, ...]
    """Variance of each channel."""
    principal: tuple[float, ...]
    """Variance along each principal axis, of pictures that did not give the axis."""
    axes: ObjectRecord
    """Table of the axes (tables.axes_schema)."""


class Calibration(StrictModel):
    """What was measured of one teacher at one grid, before any codec is chosen."""

    images: int
    rows: int
    tokens: Moments
    cls: Moments | None
    tokens_covariance: ObjectRecord
    cls_covariance: ObjectRecord | None
    tokens_shape: Shape


class ProbeVectors(StrictModel):
    """Raw features of one synthetic picture."""

    cls: tuple[float, ...] | None
    tokens: tuple[tuple[float, ...], ...]
    """Of a few tokens, spread over the grid."""


class Probe(StrictModel):
    """`probe.json`: what a teacher said of two synthetic pictures when a set began."""

    fingerprint: str
    grid: int
    pictures: tuple[ProbeVectors, ...]
    versions: dict[str, str]


class Affine(StrictModel):
    """raw = mean + std x stored, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class CodecRecord(StrictModel):
    """`codec.json`: all that is needed to decode; a pure function of a calibration and a choice."""

    tokens_codec: Literal["fp16", "int8", "int4", "variable"]
    bits: float | None
    """Of `variable`: mean of a channel of a token."""
    rotation: Literal["none", "hadamard", "pca"]
    axes: ObjectRecord | None
    """Table of the axes of the rotation (tables.axes_schema); none without one."""
    spreads: tuple[int, ...] | None
    """Of `variable`: 64 log2 of each channel's spread, in the rotated basis."""
    frequencies: tuple[tuple[int, ...], ...] | None
    """Of `variable`: for each table of 2^15 the share of code 0, and of each of +-1, +-2, ..."""
    tokens: Affine
    cls: Affine | None
    calibration_images: int
    calibration_rows: int
