from pathlib import Path

import pytest
import torch

from infra.models.encoder import Encoder
from infra.models.folder import ModelRecord, open_model
from infra.models.timm_encoder import build_timm
from schemas.errors import ConfigError, DamageError, TeacherError
from schemas.train_config import Student
from trainer.students import (
    EUPE,
    build_student,
    describe,
    normalise,
    save_model,
    set_up_training,
    side_pixels,
    timm_arguments,
    timm_name,
    weights_of,
)

pytestmark = pytest.mark.unit

SMALL = "timm:test_vit"
PROXY_PARAMETERS = 1_889_775_616


def record_of(encoder: Encoder, model: str = SMALL) -> ModelRecord:
    return describe(
        encoder, model, grid=4, stage="fixed", step=7, snapshot=1, teachers={"a": "0" * 64}
    )


@pytest.mark.parametrize("model", [*EUPE, "proxy_vit_g", "timm:resnet18"])
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


def test_proxy__is_of_the_papers_size() -> None:
    with torch.device("meta"):
        proxy = build_timm(timm_name("proxy_vit_g"), timm_arguments("proxy_vit_g", {}), None)
    assert sum(parameter.numel() for parameter in proxy.model.parameters()) == PROXY_PARAMETERS
    assert (proxy.patch_pixels, proxy.patch_width, proxy.cls_kind) == (16, 1536, "class_token")
    assert proxy.model.num_prefix_tokens == 1 + 4
    assert proxy.model.rope is not None
    assert proxy.model.blocks[0].mlp.fc2.in_features == 8192


def test_arguments__go_over_ours_into_the_record(tmp_path: Path) -> None:
    small = {"depth": 2, "embed_dim": 64, "num_heads": 2}
    encoder = build_student("proxy_vit_g", 0, small)
    assert encoder.patch_width == 64
    assert len(encoder.model.blocks) == 2  # type: ignore[arg-type]
    record = describe(
        encoder,
        "proxy_vit_g",
        arguments=small,
        grid=4,
        stage="proxy",
        step=1,
        snapshot=1,
        teachers={},
    )
    assert record.arguments.items() >= small.items()
    save_model(tmp_path, encoder, record)
    picture = torch.randn(1, 3, 48, 48)
    encoder.model.eval()
    assert torch.equal(open_model(tmp_path)[0](picture)[1], encoder(picture)[1])


def test_rope_rescale__is_drawn_while_training_alone() -> None:
    encoder = build_student("proxy_vit_g", 0, {"depth": 1, "embed_dim": 64, "num_heads": 2})
    model, picture = encoder.model, torch.randn(1, 3, 48, 48)
    for block in model.blocks:  # type: ignore[union-attr]
        torch.nn.init.ones_(block.gamma_1)
    plain = encoder(picture)[1]
    set_up_training(encoder, Student(model="proxy_vit_g", rope_rescale=2.0))
    assert torch.equal(encoder(picture)[1], plain)
    model.train()
    assert not torch.equal(encoder(picture)[1], encoder(picture)[1])


@pytest.mark.parametrize("model", ["timm:test_vit", "timm:test_convnext"])
def test_rope_rescale__needs_a_rope(model: str) -> None:
    with pytest.raises(ConfigError, match=f"student.rope_rescale: {model} has no rotary"):
        set_up_training(build_student(model, 0), Student(model=model, rope_rescale=2.0))


def test_grad_checkpointing__gives_the_same_gradient() -> None:
    gradients = []
    for on in (False, True):
        encoder = build_student(SMALL, 0)
        set_up_training(encoder, Student(model=SMALL, grad_checkpointing=on))
        encoder.model.train()
        torch.manual_seed(0)
        encoder(torch.randn(2, 3, 64, 64))[1].square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.model.parameters()])
    assert encoder.model.grad_checkpointing
    for mine, theirs in zip(*gradients):
        assert (mine is None) == (theirs is None)
        assert mine is None or theirs is None or torch.equal(mine, theirs)


def test_grad_checkpointing__that_a_model_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = build_student(SMALL, 0)
    monkeypatch.delattr(type(encoder.model), "set_grad_checkpointing")
    with pytest.raises(ConfigError, match="does not support it"):
        set_up_training(encoder, Student(model=SMALL, grad_checkpointing=True))


@pytest.mark.parametrize("model", ["timm:test_vit", "timm:vit_pe_core_tiny_patch16_384"])
def test_position_embedding__of_one_size_works_at_the_drawn_sides(model: str) -> None:
    encoder = build_student(model, 0)
    for grid in (2, 3, 5):
        assert encoder(torch.randn(1, 3, 16 * grid, 16 * grid))[1].shape[1] == grid**2


def test_weights__of_a_file_are_what_a_student_begins_with(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(weights_of(build_student(SMALL, 5).model))
    begun = build_student(SMALL, 0, weights=str(file)).model.state_dict()
    expected = build_student(SMALL, 5).model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in begun.items())


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
    torch.testing.assert_close(normalise(pixels.float() / 255, encoder), values)


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
