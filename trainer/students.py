"""Students: timm's architectures, from random weights to a model folder and back.

A model folder holds `model.json`, which says what to build and how to feed it, and the weights as
safetensors. A finished run is one (`model.safetensors`), and so is each of its checkpoints
(`student.safetensors`).
"""

import difflib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from infra.durable import replace_file
from infra.models.timm_encoder import Encoder, build_timm
from infra.models.weights import load_weights, tensors_digest
from schemas.errors import ConfigError, DamageError
from schemas.names import ClsKind
from schemas.strict import StrictModel

TIMM = "timm:"
PIXELS_PER_GRID = 16
RECORD = "model.json"
WEIGHTS = "model.safetensors"
CHECKPOINT_WEIGHTS = "student.safetensors"

EUPE = {
    "eupe_vit_t": "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m",
    "eupe_vit_s": "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m",
    "eupe_vit_b": "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m",
    "eupe_convnext_t": "convnext_tiny.eupe_lvd1689m",
    "eupe_convnext_s": "convnext_small.eupe_lvd1689m",
    "eupe_convnext_b": "convnext_base.eupe_lvd1689m",
}
"""EUPE's students (arXiv 2603.22387, table 11) by timm's names."""


class ModelRecord(StrictModel):
    """`model.json`."""

    library: Literal["teachonce"] = "teachonce"
    library_model: str
    """timm's name of the architecture."""
    arguments: dict[str, Any]
    """Further arguments of timm's constructor."""
    patch_pixels: int
    patch_width: int
    cls_width: int
    cls_kind: ClsKind
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    grid: int
    """It was trained on pictures of 16 x grid pixels."""
    stage: str
    step: int
    snapshot: int
    """Of the cache it was trained from."""
    teachers: dict[str, str]
    """Fingerprint of each teacher it was trained on."""
    tensors_sha256: str
    """Of the weights beside this record."""


def timm_name(model: str) -> str:
    """timm's name for a configured student.

    Raises:
        ConfigError: neither one of EUPE's students nor `timm:NAME`.
    """
    if model.startswith(TIMM):
        return model.removeprefix(TIMM)
    if model not in EUPE:
        near = difflib.get_close_matches(model, EUPE, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"student.model: {model!r} is not a student{hint}; there are {', '.join(EUPE)}, and "
            f"any model of timm's as {TIMM}NAME"
        )
    return EUPE[model]


def build_student(model: str, seed: int) -> Encoder:
    """A student with random weights that depend on the seed alone; nothing is downloaded.

    Raises:
        ConfigError: no such student.
        TeacherError: timm has no such model, or it gives no square grid of tokens.
    """
    encoder = build_timm(timm_name(model), {}, f"random:{seed}")
    encoder.model.requires_grad_(True)
    return encoder


def side_pixels(encoder: Encoder, grid: int) -> int:
    """Side of the pictures of a student grid: 16 x grid pixels, whatever the model's stride.

    Raises:
        ConfigError: the model cannot divide such a picture into its patches.
    """
    side = PIXELS_PER_GRID * grid
    if side % encoder.patch_pixels:
        raise ConfigError(
            f"student grid {grid}: {side} px are not a multiple of the model's "
            f"{encoder.patch_pixels} px patches; choose another grid"
        )
    return side


def normalise(pixels: Tensor, encoder: Encoder) -> Tensor:
    """uint8 [batch, 3, side, side] as the float32 that the model expects, on the same device."""
    mean, std = (
        _channels(values, pixels.device) for values in (encoder.pixel_mean, encoder.pixel_std)
    )
    return (pixels.float() / 255 - mean) / std


@lru_cache(maxsize=16)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept, because a copy to a GPU in every step would wait for it."""
    return torch.tensor(values, device=device).reshape(-1, 1, 1)


def describe(
    encoder: Encoder,
    model: str,
    *,
    grid: int,
    stage: str,
    step: int,
    snapshot: int,
    teachers: dict[str, str],
) -> ModelRecord:
    """The record of a student as it stands."""
    return ModelRecord(
        library_model=timm_name(model),
        arguments={},
        patch_pixels=encoder.patch_pixels,
        patch_width=encoder.patch_width,
        cls_width=encoder.cls_width,
        cls_kind=encoder.cls_kind,
        pixel_mean=encoder.pixel_mean,
        pixel_std=encoder.pixel_std,
        grid=grid,
        stage=stage,
        step=step,
        snapshot=snapshot,
        teachers=teachers,
        tensors_sha256=tensors_digest(encoder.model),
    )


def weights_of(model: nn.Module) -> bytes:
    """Every parameter and buffer as safetensors."""
    state: dict[str, Tensor] = model.state_dict()
    return bytes(to_safetensors({name: tensor.contiguous() for name, tensor in state.items()}))


def save_model(folder: Path, encoder: Encoder, record: ModelRecord) -> None:
    """Write a finished student. The record comes last, and names the weights it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / WEIGHTS, weights_of(encoder.model))
    replace_file(folder / RECORD, record_bytes(record))


def record_bytes(record: ModelRecord) -> bytes:
    return record.model_dump_json(indent=2).encode() + b"\n"


def open_model(folder: Path) -> tuple[Encoder, ModelRecord]:
    """The student of a run or of a checkpoint, frozen, in evaluation mode.

    Raises:
        ConfigError: the folder holds no student.
        DamageError: the record cannot be read, or the weights are not those it names.
        TeacherError: the weights cannot be read, or do not fit the architecture.
    """
    try:
        data = (folder / RECORD).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"student {folder}: no {RECORD} there ({error.strerror}); give the folder of a "
            f"finished run, one of its checkpoints, or {TIMM}NAME"
        ) from None
    try:
        record = ModelRecord.model_validate_json(data)
    except ValidationError as error:
        raise DamageError(f"student {folder}: {RECORD} is damaged: {error}") from None
    encoder = build_timm(record.library_model, record.arguments, None)
    weights = WEIGHTS if (folder / WEIGHTS).exists() else CHECKPOINT_WEIGHTS
    load_weights(encoder.model, str(folder / weights))
    if tensors_digest(encoder.model) != record.tensors_sha256:
        raise DamageError(
            f"student {folder}: {weights} does not hold the weights that {RECORD} names; run the "
            "training again to write both anew, or use one of its checkpoints"
        )
    return encoder, record
