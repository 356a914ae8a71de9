"""A teacher as the worker runs it, and as its record describes it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infra.devices import autocast
from infra.heap import keep_freed_memory
from infra.models.encoder import Encoder
from infra.models.folder import read_record
from infra.models.libraries import build_encoder
from infra.models.weights import tensors_digest
from infra.pixels.views import Pixels
from infra.provenance import versions
from infra.redact import public_url
from schemas.errors import TeacherError
from schemas.extract_config import Teacher
from schemas.fingerprint import fingerprint
from schemas.names import PIXEL_RECIPE, Precision
from schemas.records import TeacherRecord


@dataclass(frozen=True)
class LoadedTeacher:
    """A frozen encoder on a device, with the record that identifies it."""

    record: TeacherRecord
    encoder: Encoder
    device: str

    def __call__(self, squares: list[Pixels]) -> tuple[Tensor | None, Tensor]:
        """Raw features in float32 of RGB squares of one size, in one forward.

        Returns:
            CLS [batch, cls_width], or None; patch tokens [batch, grid x grid, patch_width].
        """
        return self.forward(self.tensor(squares))

    def tensor(self, squares: list[Pixels]) -> Tensor:
        """The squares as the model takes them: normalised float32 [batch, 3, side, side]."""
        batch = torch.from_numpy(np.stack(squares)).to(self.device, non_blocking=True)
        mean = torch.tensor(self.record.pixel_mean, device=self.device)
        std = torch.tensor(self.record.pixel_std, device=self.device)
        return batch.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
        """As calling the teacher, from `tensor`."""
        with autocast(self.device, self.record.precision):
            cls, tokens = self.encoder(pixels)
        return (None if cls is None else cls.float()), tokens.float()


def load_teacher(teacher: Teacher, precision: Precision, device: str) -> LoadedTeacher:
    """Build a teacher, load its weights, take its fingerprint, and try the sizes given by hand.

    Raises:
        TeacherError: the model or its weights cannot be had, or do not give a grid at its pixels.
        ConfigError, DamageError: what should be a model folder is none, or damaged.
    """
    if device == "cpu":
        keep_freed_memory()
    encoder = build_encoder(teacher)
    model, arguments = teacher.model, teacher.arguments
    if teacher.library == "teachonce":
        trained = read_record(Path(teacher.weights).expanduser())
        model, arguments = trained.library_model, trained.arguments
    by_grid = sorted(teacher.pixels.items())
    parts: dict[str, object] = {
        "library": teacher.library,
        "model": model,
        "arguments_json": json.dumps(arguments, sort_keys=True),
        "tensors_sha256": tensors_digest(encoder.model),
        "pixel_recipe": PIXEL_RECIPE,
        "pixel_mean": encoder.pixel_mean,
        "pixel_std": encoder.pixel_std,
        "precision": teacher.precision or precision,
        "patch_pixels": encoder.patch_pixels,
        "patch_width": encoder.patch_width,
        "cls_width": encoder.cls_width,
        "cls_kind": encoder.cls_kind,
        "pixels_by_grid": [
            (grid, pixels) for grid, pixels in by_grid if pixels != grid * encoder.patch_pixels
        ],
    }
    record = TeacherRecord.model_validate(
        {
            **parts,
            "fingerprint": fingerprint(parts),
            "native_pixels": encoder.native_pixels,
            "weights": public_url(teacher.weights),
            "versions": {**versions(), "device": device},
        }
    )
    encoder.model.to(device)
    loaded = LoadedTeacher(record, encoder, device)
    for grid, pixels in record.pixels_by_grid:
        _refuse_other_grid(loaded, grid, pixels)
    return loaded


def _refuse_other_grid(loaded: LoadedTeacher, grid: int, pixels: int) -> None:
    name = f"teacher {loaded.record.model}: pixels {{{grid}: {pixels}}}"
    try:
        _, tokens = loaded.forward(torch.zeros(1, 3, pixels, pixels, device=loaded.device))
    # Models check sizes each in their own way.
    except Exception as error:
        raise TeacherError(f"{name}: cannot see such pictures: {error}") from None
    if tokens.shape[1] != grid * grid:
        fitting = grid * loaded.record.patch_pixels
        raise TeacherError(
            f"{name}: {tokens.shape[1]} tokens came out, not {grid} x {grid}; with patches of "
            f"{loaded.record.patch_pixels} px, grid {grid} needs {fitting} px"
        )
