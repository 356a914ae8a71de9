"""Tokens whose covariance is known, codecs fitted to them, and how good any codec could be."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

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
from schemas.measured import Calibration
from tests import calibrations

Spectrum = Literal["white", "pink"]
"""Of the variances along the principal axes: equal, or falling as 1/f."""


def drawn(spectrum: Spectrum, rows: int, tokens: int, channels: int, seed: int) -> Tensor:
    """Normally distributed raw tokens, float32 [rows, tokens, channels]; seeds share one basis."""
    noise = torch.randn(rows, tokens, channels, generator=torch.Generator().manual_seed(seed))
    return (noise.double() @ _directions(spectrum, channels)).float()


def correlations(spectrum: Spectrum, channels: int) -> Float64s:
    """The covariance of standardised tokens that are drawn."""
    directions = _directions(spectrum, channels)
    covariance = (directions.T @ directions).numpy()
    deviation = np.sqrt(np.diagonal(covariance))
    return covariance / np.outer(deviation, deviation)


def _directions(spectrum: Spectrum, channels: int) -> Tensor:
    deviations = torch.ones(channels).double()
    if spectrum == "pink":
        deviations /= torch.arange(1, channels + 1).sqrt()
    basis = torch.Generator().manual_seed(channels)
    axes, _ = torch.linalg.qr(torch.randn(channels, channels, generator=basis).double())
    return deviations[:, None] * axes


def with_outliers(tokens: Tensor) -> Tensor:
    """Two channels a hundred times as wide, and every 97th token twenty times as long."""
    wild = tokens.clone()
    wild[..., [3, 9]] *= 100
    wild.flatten(0, 1)[::97] *= 20
    return wild


@dataclass(frozen=True)
class Measured:
    """What a calibration finds, and with it any codec."""

    calibration: Calibration
    principal: Int32s

    @classmethod
    def of(cls, raw: Tensor) -> "Measured":
        """Of raw tokens [..., channels]."""
        meter = MomentsMeter(raw.shape[-1])
        meter.add(raw)
        shapes = meter.shapes()
        found = calibrations.calibration(
            meter.moments(),
            own=np.diagonal(shapes.mean(0)).tolist(),
            principal=held_out_variances(shapes).tolist(),
        )
        return cls(found, principal_axes(shapes.mean(0)))

    def codec(self, choice: CodecChoice) -> TokenCodec:
        record = codec_record(choice, self.calibration)
        match record.rotation:
            case "none":
                return TokenCodec(record)
            case "pca":
                return TokenCodec(record, self.principal)
            case "hadamard":
                return TokenCodec(record, equalised_axes(self.principal))


def standardised(codec: TokenCodec, raw: Tensor) -> Tensor:
    affine = codec.record.tokens
    return (raw - torch.tensor(affine.mean)) / torch.tensor(affine.std)


def stored_bits(codec: TokenCodec, tokens: int) -> float:
    """Per channel of a token, with all that a row holds."""
    return codec.row_form(tokens).bytes * 8 / (tokens * codec.channels)


def least_distortion(covariance: Float64s, bits: float) -> float:
    """Of normally distributed vectors with so many bits a channel, as a share of their power:
    reverse water-filling (Cover and Thomas, 13.3.3)."""
    variances = np.linalg.eigvalsh(covariance).clip(1e-12)
    low, high = 1e-12, float(variances.max())
    for _ in range(100):
        level = (low * high) ** 0.5
        rate = np.log2(np.maximum(variances / level, 1)).mean() / 2
        low, high = (level, high) if rate > bits else (low, level)
    return float(np.minimum(variances, high).sum() / variances.sum())


def distortion(exact: Tensor, decoded: Tensor) -> float:
    """Mean over tokens of the share of each one's power that is error."""
    error = (exact - decoded).double().square().sum(-1)
    return float((error / exact.double().square().sum(-1)).mean())


def decibels(ratio: float) -> float:
    return 10 * float(np.log10(ratio))


def cosine(exact: Tensor, decoded: Tensor) -> float:
    """Mean over tokens."""
    return float(torch.nn.functional.cosine_similarity(exact, decoded, dim=-1).mean())
