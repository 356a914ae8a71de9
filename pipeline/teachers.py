"""A teacher as the worker runs it, and as its record describes it."""

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.devices import autocast
from infra.models.timm_encoder import Encoder, build_timm
from infra.models.weights import tensors_digest
from infra.pixels.views import Pixels
from infra.provenance import versions
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
        return (None if self.record.cls_kind == "none" else cls.float()), tokens.float()


def load_teacher(teacher: Teacher, precision: Precision, device: str) -> LoadedTeacher:
    """Build a teacher, load its weights and take its fingerprint.

    Raises:
        TeacherError: the model or its weights cannot be had.
    """
    encoder = build_timm(teacher.model, teacher.arguments, teacher.weights)
    parts: dict[str, object] = {
        "library": teacher.library,
        "model": teacher.model,
        "arguments_json": json.dumps(teacher.arguments, sort_keys=True),
        "tensors_sha256": tensors_digest(encoder.model),
        "pixel_recipe": PIXEL_RECIPE,
        "pixel_mean": encoder.pixel_mean,
        "pixel_std": encoder.pixel_std,
        "precision": teacher.precision or precision,
        "patch_pixels": encoder.patch_pixels,
        "patch_width": encoder.patch_width,
        "cls_width": encoder.cls_width,
        "cls_kind": encoder.cls_kind,
    }
    record = TeacherRecord.model_validate(
        {
            **parts,
            "fingerprint": fingerprint(parts),
            "weights": teacher.weights,
            "versions": {**versions(), "device": device},
        }
    )
    encoder.model.to(device)
    return LoadedTeacher(record, encoder, device)
