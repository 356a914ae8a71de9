"""The model folder that a training writes: what is in it, and how it is opened.

It holds `model.json`, which says what to build and how to feed it, and the weights as safetensors.
A finished run is one (`model.safetensors`), and so is each of its checkpoints
(`student.safetensors`). Beside a finished run's weights lie `heads.safetensors`, the adapter heads
to its teachers' features, and `statistics.safetensors`, what those features were standardised by:
with both a student speaks as its teachers did, and through a proxy as the proxy's.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import nn

from infra.models.encoder import Encoder
from infra.models.timm_encoder import build_timm
from infra.models.weights import load_weights, tensors_digest
from schemas.errors import ConfigError, DamageError, TeacherError
from schemas.names import ClsKind
from schemas.strict import StrictModel

PIXELS_PER_GRID = 16
RECORD = "model.json"
WEIGHTS = "model.safetensors"
CHECKPOINT_WEIGHTS = "student.safetensors"
HEADS = "heads.safetensors"
STATISTICS = "statistics.safetensors"


class HeadRecord(StrictModel):
    """The adapter heads to one teacher, and the teacher's sets that they were trained on."""

    patch_width: int
    cls_width: int | None
    """None: there is no CLS, and no head for it."""
    grids: tuple[int, ...]


class HeadsRecord(StrictModel):
    """What lies in the files of heads and of statistics."""

    hidden: int
    """Width between the two linear layers."""
    teachers: dict[str, HeadRecord]
    heads_sha256: str
    """Of the file; tensors `heads.TEACHER-cls.*` and `heads.TEACHER-tokens.*`, where 0 and 3 are
    the linear layers and 1 the LayerNorm."""
    statistics_sha256: str
    """Of the file; tensors `TEACHER/GRID/tokens_mean`, `tokens_std`, `cls_mean`, `cls_std`. What a
    head says, times std plus mean, is in the teacher's own scale."""


class ModelRecord(StrictModel):
    """`model.json`."""

    library: Literal["teachonce"] = "teachonce"
    library_model: str
    """timm's name of the architecture."""
    arguments: dict[str, Any]
    """Further arguments of timm's constructor."""
    patch_pixels: int
    patch_width: int
    cls_width: int | None
    cls_kind: ClsKind
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    grid: int
    """It was trained on pictures of 16 x grid pixels; of several the first that was named."""
    stage: str
    step: int
    snapshot: int
    """Of the cache it was trained from."""
    teachers: dict[str, str]
    """Fingerprint of each teacher it was trained on."""
    tensors_sha256: str
    """Of the weights beside this record."""
    heads: HeadsRecord | None = None
    """None where they are not beside it, as in a checkpoint."""


def read_record(folder: Path) -> ModelRecord:
    """What a model folder says of itself.

    Raises:
        ConfigError: the folder holds no model.
        DamageError: the record cannot be read.
    """
    try:
        data = (folder / RECORD).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"model folder {folder}: no {RECORD} there ({error.strerror}); give the folder of a "
            "finished run or one of its checkpoints"
        ) from None
    try:
        return ModelRecord.model_validate_json(data)
    except ValidationError as error:
        raise DamageError(f"model folder {folder}: {RECORD} is damaged: {error}") from None


def open_model(folder: Path) -> tuple[Encoder, ModelRecord]:
    """The model of a run or of a checkpoint.

    Raises:
        ConfigError: the folder holds no model.
        DamageError: the record cannot be read, or the weights are not those it names.
        TeacherError: the weights cannot be read, or do not fit the architecture.
    """
    record = read_record(folder)
    encoder = build_timm(record.library_model, record.arguments, None)
    if (encoder.cls_kind, encoder.cls_width) != (record.cls_kind, record.cls_width):
        raise TeacherError(
            f"model folder {folder}: was trained with CLS {record.cls_kind} of width "
            f"{record.cls_width}, and is read here with {encoder.cls_kind} of width "
            f"{encoder.cls_width}; use the version that trained it"
        )
    load_folder(folder, record, encoder.model)
    return replace(encoder, native_pixels=PIXELS_PER_GRID * record.grid), record


def load_folder(folder: Path, record: ModelRecord, model: nn.Module) -> None:
    """Put the weights of a model folder into `model`.

    Raises:
        DamageError: the weights are not those that the record names.
        TeacherError: they cannot be read, or do not fit the model.
    """
    weights = WEIGHTS if (folder / WEIGHTS).exists() else CHECKPOINT_WEIGHTS
    load_weights(model, str(folder / weights))
    if tensors_digest(model) != record.tensors_sha256:
        raise DamageError(
            f"model folder {folder}: {weights} does not hold the weights that {RECORD} names; run "
            "the training again to write both anew, or use one of its checkpoints"
        )


def build_trained(model: str, arguments: dict[str, Any], weights: str) -> Encoder:
    """The model in the folder `weights`, which says by itself what it is.

    Raises:
        As open_model, and TeacherError where a model or arguments are given.
    """
    if model or arguments:
        raise TeacherError(
            f"teachonce teacher {weights}: takes no `model` and no `arguments`, {RECORD} has them; "
            "leave them away"
        )
    encoder, _ = open_model(Path(weights).expanduser())
    return encoder
