"""Students: timm's architectures, from random weights to a model folder (infra.models.folder)."""

import difflib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from infra.durable import replace_file
from infra.models.encoder import Encoder
from infra.models.folder import PIXELS_PER_GRID, RECORD, WEIGHTS, ModelRecord
from infra.models.timm_encoder import build_timm
from infra.models.weights import RANDOM, tensors_digest
from schemas.errors import ConfigError
from schemas.train_config import Student

TIMM = "timm:"
NOTHING: Mapping[str, Any] = MappingProxyType({})

EUPE = {
    "eupe_vit_t": "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m",
    "eupe_vit_s": "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m",
    "eupe_vit_b": "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m",
    "eupe_convnext_t": "convnext_tiny.eupe_lvd1689m",
    "eupe_convnext_s": "convnext_small.eupe_lvd1689m",
    "eupe_convnext_b": "convnext_base.eupe_lvd1689m",
}
"""EUPE's students (arXiv 2603.22387, table 11) by timm's names."""

PROXY = "proxy_vit_g"
PROXY_TIMM = "vit_huge_plus_patch16_dinov3"
PROXY_ARGUMENTS: Mapping[str, Any] = {
    "embed_dim": 1536,
    "depth": 40,
    "num_heads": 24,
    "mlp_ratio": 8192 / 1536,
    "swiglu_align_to": 8,
}
"""EUPE's proxy, of which the paper says 1.9 B parameters and 4 registers, and the released heads a
width of 1536. Depth, heads and SwiGLU of 8192 are ours, and come to 1.89 B: DINOv3's ViT-H+ made
wider and deeper."""


def timm_name(model: str) -> str:
    """timm's name for a configured student.

    Raises:
        ConfigError: neither one of EUPE's students nor `timm:NAME`.
    """
    if model.startswith(TIMM):
        return model.removeprefix(TIMM)
    known = EUPE | {PROXY: PROXY_TIMM}
    if model not in known:
        near = difflib.get_close_matches(model, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"student.model: {model!r} is not a student{hint}; there are {', '.join(known)}, and "
            f"any model of timm's as {TIMM}NAME"
        )
    return known[model]


def timm_arguments(model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """timm's further arguments of a configured student: ours for the proxy, and `arguments`."""
    return {**(PROXY_ARGUMENTS if model == PROXY else {}), **arguments}


def build_student(
    model: str, seed: int, arguments: Mapping[str, Any] = NOTHING, weights: str | None = None
) -> Encoder:
    """A student of random weights that depend on the seed alone, or of a file of tensors.

    Raises:
        ConfigError: no such student, or one without a global vector.
        TeacherError: timm has no such model, it gives no square grid of tokens, or the file does
            not hold its weights.
    """
    given = weights or f"{RANDOM}{seed}"
    encoder = build_timm(timm_name(model), timm_arguments(model, arguments), given)
    if encoder.cls_width is None:
        raise ConfigError(
            f"student.model: {model!r} has no global vector to learn the teachers' CLS with; "
            "choose a model that has one"
        )
    encoder.model.requires_grad_(True)
    return encoder


def set_up_training(encoder: Encoder, student: Student) -> None:
    """What a student does while it trains, and a finished one does not.

    Raises:
        ConfigError: the model cannot do it.
    """
    if student.rope_rescale is not None:
        rope: Any = getattr(encoder.model, "rope", None)
        if not hasattr(rope, "rescale_coords"):
            raise ConfigError(
                f"student.rope_rescale: {student.model} has no rotary position embedding to "
                "rescale; remove it"
            )
        # timm's `rope_rescale_coords`: one factor a forward, where EUPE draws one for each block.
        rope.rescale_coords, rope.aug_active = float(student.rope_rescale), True
    if student.grad_checkpointing:
        try:
            encoder.model.set_grad_checkpointing(True)  # type: ignore[operator]
        # timm's models without it assert, and a few have no such function.
        except (AssertionError, AttributeError):
            raise ConfigError(
                f"student.grad_checkpointing: {student.model} does not support it; remove it"
            ) from None


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
    """Pictures [batch, 3, side, side], uint8 or float32 in [0, 1], as the float32 that the model
    expects, on the same device."""
    mean, std = (
        _channels(values, pixels.device) for values in (encoder.pixel_mean, encoder.pixel_std)
    )
    values = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return (values - mean) / std


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
    arguments: Mapping[str, Any] = NOTHING,
) -> ModelRecord:
    """The record of a student as it stands."""
    return ModelRecord(
        library_model=timm_name(model),
        arguments=timm_arguments(model, arguments),
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


def save_model(
    folder: Path, encoder: Encoder, record: ModelRecord, others: Mapping[str, bytes] = NOTHING
) -> None:
    """Write a finished student, and `others` by name beside it. The record comes last, and names
    the weights it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {WEIGHTS: weights_of(encoder.model), **others}.items():
        replace_file(folder / name, data)
    replace_file(folder / RECORD, record_bytes(record))


def record_bytes(record: ModelRecord) -> bytes:
    return record.model_dump_json(indent=2).encode() + b"\n"
