from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.teachers import load_teacher
from schemas.errors import ConfigError, TeacherError
from schemas.extract_config import Teacher
from schemas.names import Precision
from schemas.records import TeacherRecord
from tests.builders import photograph
from trainer.students import build_student, describe, save_model

pytestmark = pytest.mark.unit

SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 2}
VIT: dict[str, Any] = {
    "library": "timm",
    "model": "vit_tiny_patch16_224",
    "weights": "random:0",
    "arguments": SMALL,
}


def record_of(precision: Precision = "float32", **changed: Any) -> TeacherRecord:
    teacher = Teacher.model_validate(VIT | changed)
    return load_teacher(teacher, precision, "cpu").record


def test_teacher__says_what_its_encoder_says_of_the_same_squares() -> None:
    loaded = load_teacher(Teacher.model_validate(VIT), "float32", "cpu")
    squares = [np.asarray(photograph(seed, 48, 48)) for seed in range(2)]
    cls, tokens = loaded(squares)
    pixels = (torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = loaded.encoder.model.forward_features(pixels)  # type: ignore[operator]
    assert cls is not None
    torch.testing.assert_close(cls, expected[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens, expected[:, 1:], atol=1e-5, rtol=0)
    assert cls.dtype == tokens.dtype == torch.float32


def test_teacher__without_a_cls_gives_none() -> None:
    lang = VIT | {"model": "vit_pe_lang_large_patch14_448.fb"}
    loaded = load_teacher(Teacher.model_validate(lang), "bfloat16", "cpu")
    cls, tokens = loaded([np.asarray(photograph(0, 42, 42))])
    assert cls is None
    assert tokens.shape == (1, 9, 48)
    assert (loaded.record.cls_kind, loaded.record.cls_width) == ("none", None)
    assert loaded.record.native_pixels == 448


def test_fingerprint__changes_with_whatever_changes_a_feature(tmp_path: Path) -> None:
    state = load_teacher(Teacher.model_validate(VIT), "float32", "cpu").encoder.model.state_dict()
    save_file({**state, "norm.bias": state["norm.bias"] + 1}, tmp_path / "w.safetensors")
    records = [
        record_of(),
        record_of(precision="bfloat16"),
        record_of(weights="random:1"),
        record_of(weights=str(tmp_path / "w.safetensors")),
        record_of(arguments=SMALL | {"qkv_bias": False}),
        record_of(arguments=SMALL | {"dynamic_img_pad": True}),
        record_of(arguments=SMALL | {"dynamic_img_pad": True}, pixels={4: 60}),
        record_of(model="vit_tiny_patch16_384"),
    ]
    assert len({record.fingerprint for record in records}) == len(records)


def test_fingerprint__does_not_change_with_what_the_weights_are_called(tmp_path: Path) -> None:
    state = load_teacher(Teacher.model_validate(VIT), "float32", "cpu").encoder.model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    again = record_of(weights=str(tmp_path / "w.safetensors"), grids=[3], pixels={3: 48})
    assert again.fingerprint == record_of().fingerprint
    assert again.pixels_by_grid == ()


def test_pixels__that_give_the_grid_are_recorded_in_order() -> None:
    padded = SMALL | {"dynamic_img_pad": True}
    record = record_of(arguments=padded, pixels={5: 75, 3: 40, 4: 64})
    assert record.pixels_by_grid == ((3, 40), (5, 75))
    assert [record.pixels(grid) for grid in (3, 4, 5)] == [40, 64, 75]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"pixels": {4: 80}}, r"pixels {4: 80}: 25 tokens came out, not 4 x 4; .* needs 64 px"),
        ({"pixels": {4: 60}}, r"pixels {4: 60}: cannot see such pictures: .*divisible"),
    ],
)
def test_pixels__that_do_not_give_the_grid_are_refused(changed: dict[str, Any], found: str) -> None:
    with pytest.raises(TeacherError, match=found):
        record_of(**changed)


def test_trained_model__is_a_teacher(tmp_path: Path) -> None:
    encoder = build_student("timm:test_vit", 3)
    record = describe(
        encoder, "timm:test_vit", grid=4, stage="proxy", step=7, snapshot=1, teachers={}
    )
    save_model(tmp_path / "run", encoder, record)
    teacher = Teacher(library="teachonce", weights=str(tmp_path / "run"))
    loaded = load_teacher(teacher, "float32", "cpu")
    told = loaded.record
    assert (told.library, told.model, told.arguments_json) == ("teachonce", "test_vit", "{}")
    assert (told.native_pixels, told.tensors_sha256) == (64, record.tensors_sha256)
    encoder.model.eval()
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.forward(pixels)[1], encoder(pixels)[1])
    with pytest.raises(ConfigError, match=r"no model\.json there"):
        load_teacher(Teacher(library="teachonce", weights=str(tmp_path)), "float32", "cpu")
