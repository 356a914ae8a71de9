"""EUPE's names, and the way back through timm's own converter."""

import contextlib
import sys

import pytest
import torch
from torch import Tensor, nn

from infra.models.encoder import Encoder
from infra.models.timm_encoder import build_timm
from trainer.eupe_names import HUB_ENTRIES, eupe_state
from trainer.students import EUPE

pytestmark = pytest.mark.unit

Shapes = dict[str, tuple[int, ...]]

VITS = {"eupe_vit_t": (192, 3), "eupe_vit_s": (384, 6), "eupe_vit_b": (768, 12)}
"""Width and heads, of 12 blocks each."""

CONVNEXTS = {
    "eupe_convnext_t": ((96, 192, 384, 768), (3, 3, 9, 3), 182),
    "eupe_convnext_s": ((96, 192, 384, 768), (3, 3, 27, 3), 344),
    "eupe_convnext_b": ((128, 256, 512, 1024), (3, 3, 27, 3), 344),
}
"""Widths and blocks of the four stages, and how many tensors there are."""


def layer(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def vit_shapes(width: int, heads: int) -> Shapes:
    """As EUPE's vision_transformer.py has them."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, 4, width),
        "mask_token": (1, width),
        "rope_embed.periods": (width // heads // 4,),
    }
    shapes |= layer("patch_embed.proj", width, 3, 16, 16) | layer("norm", width)
    for number in range(12):
        block = f"blocks.{number}"
        shapes |= layer(f"{block}.norm1", width) | layer(f"{block}.norm2", width)
        shapes |= layer(f"{block}.attn.qkv", 3 * width, width)
        shapes |= layer(f"{block}.attn.proj", width, width)
        shapes |= layer(f"{block}.mlp.fc1", 4 * width, width)
        shapes |= layer(f"{block}.mlp.fc2", width, 4 * width)
        shapes[f"{block}.attn.qkv.bias_mask"] = (3 * width,)
        shapes |= {f"{block}.ls{number}.gamma": (width,) for number in (1, 2)}
    return shapes


def convnext_shapes(widths: tuple[int, ...], blocks: tuple[int, ...]) -> Shapes:
    """As EUPE's convnext.py has them."""
    shapes = layer("downsample_layers.0.0", widths[0], 3, 4, 4)
    shapes |= layer("downsample_layers.0.1", widths[0])
    for stage, (width, count) in enumerate(zip(widths, blocks)):
        if stage:
            before = widths[stage - 1]
            shapes |= layer(f"downsample_layers.{stage}.0", before)
            shapes |= layer(f"downsample_layers.{stage}.1", width, before, 2, 2)
        for number in range(count):
            block = f"stages.{stage}.{number}"
            shapes[f"{block}.gamma"] = (width,)
            shapes |= layer(f"{block}.dwconv", width, 1, 7, 7) | layer(f"{block}.norm", width)
            shapes |= layer(f"{block}.pwconv1", 4 * width, width)
            shapes |= layer(f"{block}.pwconv2", width, 4 * width)
    return shapes | layer("norm", widths[-1]) | layer("norms.3", widths[-1])


def exported(student: str) -> dict[str, Tensor]:
    """The names and shapes alone, without memory for the values."""
    with torch.device("meta"):
        return eupe_state(build_timm(EUPE[student], {}, None).model)


def trained(student: str) -> Encoder:
    """Values that differ in every tensor, where a new model has zeros, ones and 1e-5."""
    encoder = build_timm(EUPE[student], {}, None)
    random = torch.Generator().manual_seed(0)
    for parameter in encoder.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
    return encoder


def through_timm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What timm makes of a file of EUPE's."""
    module = sys.modules[type(model).__module__]
    with contextlib.redirect_stdout(None):
        renamed: dict[str, Tensor] = module.checkpoint_filter_fn(state, model)
    return renamed


def test_entries__are_of_the_students_there_are() -> None:
    assert list(HUB_ENTRIES) == [name.partition(".")[0] for name in EUPE.values()]


@pytest.mark.parametrize("student", VITS)
def test_vit__has_eupes_names_and_shapes(student: str) -> None:
    state = exported(student)
    assert len(state) == 188
    assert {name: tuple(value.shape) for name, value in state.items()} == vit_shapes(*VITS[student])
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("student", CONVNEXTS)
def test_convnext__has_eupes_names_and_shapes(student: str) -> None:
    widths, blocks, count = CONVNEXTS[student]
    state = exported(student)
    assert len(state) == count
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == convnext_shapes(widths, blocks)
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_vit__what_timm_has_not_is_as_eupe_computes_it() -> None:
    encoder = trained("eupe_vit_t")
    state, mine = eupe_state(encoder.model), encoder.model.state_dict()
    for number in range(12):
        attention = f"blocks.{number}.attn"
        query, key, value = state[f"{attention}.qkv.bias"].chunk(3)
        assert torch.equal(query, mine[f"{attention}.q_bias"])
        assert torch.equal(value, mine[f"{attention}.v_bias"])
        assert not key.any()
        mask = state[f"{attention}.qkv.bias_mask"]
        assert torch.equal(mask, torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(192))
    assert not state["mask_token"].any()
    periods = 100 ** (torch.arange(16, dtype=torch.float32) / 16)
    torch.testing.assert_close(state["rope_embed.periods"], periods, rtol=1e-6, atol=0)


def test_convnext__final_norm_stands_twice_in_memory_of_its_own() -> None:
    state = eupe_state(trained("eupe_convnext_t").model)
    for part in ("weight", "bias"):
        first, second = state[f"norm.{part}"], state[f"norms.3.{part}"]
        assert torch.equal(first, second)
        assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("student", ["eupe_vit_t", "eupe_convnext_t"])
def test_timm__reads_the_same_student_from_eupes_names(student: str) -> None:
    encoder, fresh = trained(student), build_timm(EUPE[student], {}, "random:1")
    state = through_timm(eupe_state(encoder.model), fresh.model)
    mine = encoder.model.state_dict()
    assert state.keys() == mine.keys()
    assert all(torch.equal(value, mine[name]) for name, value in state.items())
    fresh.model.load_state_dict(state)
    pictures = torch.randn(2, 3, 96, 96)
    for told, expected in zip(fresh(pictures), encoder(pictures)):
        assert told is not None
        assert expected is not None
        assert told.isfinite().all()
        assert torch.equal(told, expected)
