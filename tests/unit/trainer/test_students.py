from pathlib import Path

import pytest
import torch

from infra.models.encoder import Encoder
from infra.models.folder import ModelRecord, open_model
from schemas.errors import ConfigError, DamageError, TeacherError
from trainer.students import (
    EUPE,
    build_student,
    describe,
    normalise,
    save_model,
    side_pixels,
    timm_name,
)

pytestmark = pytest.mark.unit

SMALL = "timm:test_vit"


def record_of(encoder: Encoder, model: str = SMALL) -> ModelRecord:
    return describe(
        encoder, model, grid=4, stage="fixed", step=7, snapshot=1, teachers={"a": "0" * 64}
    )


@pytest.mark.parametrize("model", [*EUPE, "timm:resnet18"])
def test_timm_name__is_one_that_timm_has(model: str) -> None:
    build_student("timm:test_vit", 0)  # makes timm importable
    import timm

    name, _, tag = timm_name(model).partition(".")
    assert timm.is_model(name)
    assert not tag or f"{name}.{tag}" in timm.list_pretrained(f"{name}*")


def test_timm_name__refuses_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean eupe_vit_s"):
        timm_name("eupe_vit_ss")


def test_build__eupe_vit_t_is_the_papers() -> None:
    encoder = build_student("eupe_vit_t", 0)
    assert (encoder.patch_pixels, encoder.patch_width, encoder.cls_width) == (16, 192, 192)
    parameters = list(encoder.model.parameters())
    assert 5.4e6 < sum(parameter.numel() for parameter in parameters) < 5.6e6
    assert all(parameter.requires_grad for parameter in parameters)
    cls, tokens = encoder(torch.randn(2, 3, 64, 64))
    assert cls is not None
    assert cls.shape == (2, 192)
    assert tokens.shape == (2, 16, 192)


def test_build__weights_depend_on_the_seed_alone() -> None:
    states = []
    for noise, seed in [(1, 0), (2, 0), (3, 1)]:
        torch.manual_seed(noise)
        states.append(build_student(SMALL, seed).model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_build__unknown_model_of_timm_is_named() -> None:
    with pytest.raises(TeacherError, match="no_such_net"):
        build_student("timm:no_such_net", 0)


def test_build__student_without_a_global_vector_is_refused() -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match="has no global vector"):
        build_student("timm:vit_pe_spatial_tiny_patch16_512.fb", 0)


def test_side__is_16_pixels_a_token_whatever_the_stride() -> None:
    assert side_pixels(build_student(SMALL, 0), 5) == 80
    convolutional = build_student("timm:test_resnet", 0)
    assert side_pixels(convolutional, 4) == 64
    with pytest.raises(ConfigError, match="80 px are not a multiple of the model's 32 px"):
        side_pixels(convolutional, 5)


def test_normalise__equals_the_definition() -> None:
    encoder = build_student("timm:test_resnet", 0)
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    values = normalise(pixels, encoder)
    for channel in range(3):
        expected = (pixels[:, channel] / 255 - encoder.pixel_mean[channel]) / encoder.pixel_std[
            channel
        ]
        torch.testing.assert_close(values[:, channel], expected)


@pytest.mark.parametrize("model", [SMALL, "timm:test_resnet"])
def test_model_folder__opens_as_it_was_saved(tmp_path: Path, model: str) -> None:
    encoder = build_student(model, 3)
    encoder.model.train()
    encoder(torch.randn(4, 3, 64, 64))  # moves the statistics of a batch norm, which are saved too
    record = record_of(encoder, model)
    save_model(tmp_path / "run", encoder, record)
    opened, found = open_model(tmp_path / "run")
    assert found == record
    assert not opened.model.training
    picture = torch.randn(1, 3, 64, 64)
    for mine, theirs in zip(encoder_in_eval(encoder)(picture), opened(picture)):
        assert mine is not None
        assert theirs is not None
        assert torch.equal(mine, theirs)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


def encoder_in_eval(encoder: Encoder) -> Encoder:
    encoder.model.eval()
    return encoder


def test_model_folder__refuses_weights_of_another_record(tmp_path: Path) -> None:
    first, second = build_student(SMALL, 0), build_student(SMALL, 1)
    save_model(tmp_path, first, record_of(first))
    (tmp_path / "model.json").write_text(record_of(second).model_dump_json())
    with pytest.raises(DamageError, match="not hold the weights"):
        open_model(tmp_path)


def test_model_folder__says_what_to_give_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finished run or one of its checkpoints"):
        open_model(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(DamageError, match="damaged"):
        open_model(tmp_path)
