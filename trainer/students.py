"""Students: timm's architectures, from random weights to a model folder (infra.models.folder)."""

import difflib
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from infra.durable import replace_file
from infra.models.encoder import Encoder
from infra.models.folder import PIXELS_PER_GRID, RECORD, WEIGHTS, ModelRecord
from infra.models.timm_encoder import build_timm
from infra.models.weights import tensors_digest
from schemas.errors import ConfigError

TIMM = "timm:"

EUPE = {
    "eupe_vit_t": "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m",
    "eupe_vit_s": "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m",
    "eupe_vit_b": "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m",
    "eupe_convnext_t": "convnext_tiny.eupe_lvd1689m",
    "eupe_convnext_s": "convnext_small.eupe_lvd1689m",
    "eupe_convnext_b": "convnext_base.eupe_lvd1689m",
}
"""EUPE's students (arXiv 2603.22387, table 11) by timm's names."""


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
        ConfigError: no such student, or one without a global vector.
        TeacherError: timm has no such model, or it gives no square grid of tokens.
    """
    encoder = build_timm(timm_name(model), {}, f"random:{seed}")
    if encoder.cls_width is None:
        raise ConfigError(
            f"student.model: {model!r} has no global vector to learn the teachers' CLS with; "
            "choose a model that has one"
        )
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
