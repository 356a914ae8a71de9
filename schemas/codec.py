"""The codec as numbers: from calibration to codec.json, and its path.

Decoding is one line, `raw = mean + std x stored`; encoding standardises and rounds to float16.
"""

import hashlib

import numpy as np

from schemas.records import Affine, Calibration, CodecRecord, Moments
from schemas.sealed import seal

CONSTANT_CHANNEL = 1e-6
"""A channel whose standard deviation is below this share of the root mean square is constant."""


def codec_record(tokens_codec: str, calibration: Calibration) -> CodecRecord:
    """A pure function, so that every job derives the same bytes and the same path."""
    return CodecRecord(
        tokens_codec=tokens_codec,
        tokens=_affine(calibration.tokens),
        cls=None if calibration.cls is None else _affine(calibration.cls),
        calibration_images=calibration.images,
        calibration_rows=calibration.rows,
    )


def codec_folder(record: CodecRecord) -> str:
    return f"{record.tokens_codec}-{hashlib.sha256(seal(record)).hexdigest()[:8]}"


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
