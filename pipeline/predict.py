"""What each codec would cost a teacher's tokens: bytes and error, of a few pictures."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.codec.codec import TokenCodec, open_codec
from infra.store import ObjectStore
from pipeline.codec_fit import fitted
from pipeline.encode import encode
from pipeline.moments import MomentsMeter
from schemas import layout
from schemas.codec import codec_label, codec_record
from schemas.errors import NotFound
from schemas.extract_config import CodecChoice
from schemas.measured import Calibration
from schemas.sealed import unseal

CHOICES = (
    CodecChoice(),
    CodecChoice(tokens="int8"),
    CodecChoice(tokens="int4"),
    *(CodecChoice(tokens="variable", bits=bits) for bits in (4, 3, 2)),
)


@dataclass(frozen=True)
class Prediction:
    """Of one codec."""

    codec: str
    """Its label."""
    bytes: int
    """Of a row's tokens."""
    cosine: float
    """Mean over tokens, to the exact ones, standardised."""
    cosine_p1: float
    relative_rms: float

    def __str__(self) -> str:
        return f"{self.codec} {self.bytes / 1000:.1f} KB, cosine {self.cosine:.4f}"


def predict(
    store: ObjectStore, place: tuple[str, int], tokens: Tensor, asked: CodecChoice
) -> list[Prediction]:
    """Of every usual codec, and of the one that is asked for.

    Args:
        place: the teacher's fingerprint (12 digits) and its grid. Where it is calibrated, that is
            what the codecs are made of; else half of the pictures stands for the calibration.
        tokens: raw [rows, tokens, channels] of different pictures.
    """
    labels = {codec_label(choice): choice for choice in (*CHOICES, asked)}
    codecs = dict(_calibrated(store, place, labels))
    if not codecs:
        half = max(1, len(tokens) // 2)
        meter = MomentsMeter(tokens.shape[-1])
        meter.add(tokens[:half])
        made = fitted(meter, labels.values())
        codecs = {codec_label(choice): codec for choice, codec in made}
        tokens = tokens[half:] if len(tokens) > 1 else tokens
    return [_of(label, codec, tokens) for label, codec in codecs.items()]


def _calibrated(
    store: ObjectStore, place: tuple[str, int], labels: dict[str, CodecChoice]
) -> Iterator[tuple[str, TokenCodec]]:
    key = layout.calibration(*place)
    try:
        calibration = unseal(store.get(key), Calibration, key)
    except NotFound:
        return
    for label, choice in labels.items():
        yield label, open_codec(store, codec_record(choice, calibration))


@torch.inference_mode()
def _of(label: str, codec: TokenCodec, tokens: Tensor) -> Prediction:
    encoded = encode(codec, None, tokens)
    cosine = encoded.cosine[encoded.finite]
    rms = encoded.relative_rms[encoded.finite]
    return Prediction(
        codec=label,
        bytes=codec.row_form(tokens.shape[1]).bytes,
        cosine=float(cosine.mean()),
        cosine_p1=float(np.percentile(cosine, 1)),
        relative_rms=float(np.sqrt(np.mean(np.square(rms)))),
    )
