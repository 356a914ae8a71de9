"""The codec as numbers: from calibration to codec.json, and its path.

Decoding ends in one line, `raw = mean + std x standardised`; how the standardised tokens become
bytes is infra/codec.
"""

import hashlib
import math
from typing import Literal, cast

import numpy as np

from schemas.extract_config import CodecChoice
from schemas.frequencies import normal_tables
from schemas.measured import Affine, Calibration, CodecRecord, Moments
from schemas.sealed import seal

CONSTANT_CHANNEL = 1e-6
"""A channel whose standard deviation is below this share of the root mean square is constant."""
SPREAD_PER_OCTAVE = 64
_LEAST_VARIANCE = 2.0**-16
"""Of a channel, as a share of the mean: one that never moved while it was measured may yet."""
_DEFAULT_BITS = 4.0

TokenCodecName = Literal["fp16", "int8", "int4", "variable"]
RotationName = Literal["none", "hadamard", "pca"]
_ROTATION: dict[TokenCodecName, RotationName] = {
    "fp16": "none",
    "int8": "none",
    "int4": "hadamard",
    "variable": "pca",
}
"""Which a codec has if none is asked for."""


def codec_record(choice: CodecChoice, calibration: Calibration) -> CodecRecord:
    """A pure function, so that every job derives the same bytes and the same path."""
    rotation = _rotation(choice)
    variable = choice.tokens == "variable"
    return CodecRecord(
        tokens_codec=choice.tokens,
        bits=_bits(choice) if variable else None,
        rotation=rotation,
        axes=None if rotation == "none" else calibration.tokens_shape.axes,
        spreads=_spreads(rotation, calibration) if variable else None,
        frequencies=normal_tables() if variable else None,
        tokens=_affine(calibration.tokens),
        cls=None if calibration.cls is None else _affine(calibration.cls),
        calibration_images=calibration.images,
        calibration_rows=calibration.rows,
    )


def codec_folder(record: CodecRecord) -> str:
    bits = "" if record.bits is None else f"{record.bits:g}"
    rotation = "" if record.rotation == "none" else f".{record.rotation}"
    label = f"{record.tokens_codec}{bits}{rotation}"
    return f"{label}-{hashlib.sha256(seal(record)).hexdigest()[:8]}"


def codec_label(choice: CodecChoice) -> str:
    """What a choice is called in paths, as `int8`, `int4.hadamard`, `variable3.pca`."""
    bits = f"{_bits(choice):g}" if choice.tokens == "variable" else ""
    rotation = _rotation(choice)
    return f"{choice.tokens}{bits}" + ("" if rotation == "none" else f".{rotation}")


def choice_of(label: str) -> CodecChoice:
    """The choice that a label is of."""
    name, _, rotation = label.rpartition(".")
    if rotation not in ("hadamard", "pca"):
        name, rotation = label, "none"
    bits = None
    if name.startswith("variable"):
        name, bits = "variable", float(name.removeprefix("variable"))
    return CodecChoice(
        tokens=cast("TokenCodecName", name), bits=bits, rotation=cast("RotationName", rotation)
    )


def _rotation(choice: CodecChoice) -> RotationName:
    return choice.rotation or _ROTATION[choice.tokens]


def _bits(choice: CodecChoice) -> float:
    return _DEFAULT_BITS if choice.bits is None else choice.bits


def _spreads(rotation: RotationName, calibration: Calibration) -> tuple[int, ...]:
    shape = calibration.tokens_shape
    variances = shape.principal if rotation == "pca" else shape.own
    if rotation == "hadamard":
        variances = (sum(shape.own) / len(shape.own),) * len(shape.own)
    return tuple(
        round(SPREAD_PER_OCTAVE / 2 * math.log2(max(variance, _LEAST_VARIANCE)))
        for variance in variances
    )


def _affine(moments: Moments) -> Affine:
    """float32 values, exactly representable in JSON; a constant channel is divided by one."""
    mean = np.asarray(moments.mean, np.float64)
    std = np.sqrt(np.asarray(moments.variance, np.float64))
    rms = np.sqrt(np.mean(mean**2 + std**2)) if len(mean) else 0.0
    # What is not a normal float32 would be stored as zero, or divide into infinity.
    smallest = max(CONSTANT_CHANNEL * rms, float(np.finfo(np.float32).tiny))
    std = np.where(std <= smallest, 1.0, std)
    return Affine(
        mean=tuple(mean.astype(np.float32).tolist()), std=tuple(std.astype(np.float32).tolist())
    )
