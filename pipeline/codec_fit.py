"""From what a meter has seen of a teacher's tokens to the codecs that suit them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from infra.codec.codec import TokenCodec
from infra.codec.rotation import (
    Float64s,
    Int32s,
    equalised_axes,
    held_out_variances,
    principal_axes,
)
from pipeline.moments import MomentsMeter
from schemas.codec import codec_record
from schemas.extract_config import CodecChoice
from schemas.measured import Calibration, Shape
from schemas.records import ObjectRecord

NOWHERE = ObjectRecord(key="", size=0, sha256="")
"""Of what is not stored."""


@dataclass(frozen=True, eq=False)
class Directions:
    """What directions tokens take, and the axes that suit them."""

    principal: Int32s
    """[channels, channels], as `equalised`: an axis a row, in units of 2^-18."""
    equalised: Int32s
    own_variances: Float64s
    """[channels], as `principal_variances`."""
    principal_variances: Float64s

    @classmethod
    def of(cls, shapes: Float64s) -> "Directions":
        """Of covariances [2, channels, channels], one for each half of the pictures."""
        shape = shapes.mean(0)
        principal = principal_axes(shape)
        variances = held_out_variances(shapes)
        return cls(principal, equalised_axes(principal), np.diagonal(shape), variances)

    def record(self, axes: ObjectRecord) -> Shape:
        """With the object that holds the axes."""
        return Shape(
            own=tuple(self.own_variances.tolist()),
            principal=tuple(self.principal_variances.tolist()),
            axes=axes,
        )


def fitted(
    meter: MomentsMeter, choices: Iterable[CodecChoice]
) -> Iterator[tuple[CodecChoice, TokenCodec]]:
    """Codecs as a calibration by `meter` would make them; nothing is stored."""
    directions = Directions.of(meter.shapes())
    axes = {"pca": directions.principal, "hadamard": directions.equalised}
    calibration = Calibration(
        images=0,
        rows=0,
        tokens=meter.moments(),
        cls=None,
        tokens_covariance=NOWHERE,
        cls_covariance=None,
        tokens_shape=directions.record(NOWHERE),
    )
    for choice in choices:
        record = codec_record(choice, calibration)
        yield choice, TokenCodec(record, axes.get(record.rotation))
