from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from infra.models.encoder import Encoder
from infra.models.folder import ModelRecord, open_model, read_record
from infra.models.libraries import HOOKS, build_encoder
from infra.models.timm_encoder import build_timm
from infra.models.weights import tensors_digest
from schemas.errors import ConfigError, DamageError, TeacherError
from schemas.extract_config import Teacher
from tests.unit.infra.models.looks import pictures

pytestmark = pytest.mark.unit


def written(folder: Path, weights: str = "model.safetensors", **changed: Any) -> Encoder:
    """A model folder, and the model that is in it."""
    encoder = build_timm("test_vit", {}, "random:5")
    record = {
        "library_model": "test_vit",
        "arguments": {},
        "grid": 9,
        "stage": "fixed",
        "step": 7,
        "snapshot": 1,
        "teachers": {},
        "patch_pixels": 16,
        "patch_width": 64,
        "cls_width": 64,
        "cls_kind": "class_token",
        "pixel_mean": (0.5,) * 3,
        "pixel_std": (0.5,) * 3,
        "tensors_sha256": tensors_digest(encoder.model),
    }
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(
        ModelRecord.model_validate({**record, **changed}).model_dump_json()
    )
    save_file(encoder.model.state_dict(), folder / weights)
    return encoder


@pytest.mark.parametrize("weights", ["model.safetensors", "student.safetensors"])
def test_teacher__of_a_run_or_a_checkpoint_speaks_as_it_did(tmp_path: Path, weights: str) -> None:
    model = written(tmp_path / "run", weights)
    teacher = build_encoder(Teacher(library="teachonce", weights=str(tmp_path / "run")))
    for mine, theirs in zip(model(pictures(48)), teacher(pictures(48))):
        assert mine is not None
        assert theirs is not None
        assert torch.equal(mine, theirs)
    assert teacher.native_pixels == 144
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_teacher__says_by_itself_what_it_is(tmp_path: Path) -> None:
    written(tmp_path)
    for extra in ({"model": "test_vit"}, {"arguments": {"depth": 2}}):
        with pytest.raises(TeacherError, match="takes no `model` and no `arguments`"):
            build_encoder(
                Teacher.model_validate({"library": "teachonce", "weights": str(tmp_path), **extra})
            )


def test_folder__says_what_to_give_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finished run or one of its checkpoints"):
        open_model(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(DamageError, match="damaged"):
        read_record(tmp_path)


def test_folder__whose_weights_are_of_another_record_is_damaged(tmp_path: Path) -> None:
    written(tmp_path, tensors_sha256="0" * 64)
    with pytest.raises(DamageError, match="not hold the weights"):
        open_model(tmp_path)


def test_folder__read_otherwise_than_it_was_trained_is_refused(tmp_path: Path) -> None:
    written(tmp_path, cls_kind="mean")
    with pytest.raises(TeacherError, match="trained with CLS mean of width 64, and is read here"):
        open_model(tmp_path)


def test_libraries__are_those_a_configuration_may_name() -> None:
    assert set(Teacher.model_fields["library"].annotation.__args__) == set(HOOKS)  # type: ignore[union-attr]
    unknown = Teacher.model_construct(library="torchvision", model="resnet18", arguments={})  # type: ignore[arg-type]
    with pytest.raises(TeacherError, match="'torchvision' is not known; there are timm, open_clip"):
        build_encoder(unknown)
