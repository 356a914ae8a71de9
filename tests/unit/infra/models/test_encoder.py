from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infra.models.encoder import Encoder
from schemas.errors import TeacherError
from tests.unit.infra.models.looks import pictures

pytestmark = pytest.mark.unit


class Patches(nn.Module):
    """The mean colour of each 16 px patch, and of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
        colours = nn.functional.avg_pool2d(self.dropout(pixels), 16).flatten(2).transpose(1, 2)
        return colours.mean(dim=1), colours * self.scale


STATED: dict[str, Any] = {
    "patch_pixels": 16,
    "patch_width": 3,
    "cls_width": 3,
    "cls_kind": "mean",
    "pixel_mean": (0, 0, 0),
    "pixel_std": (1, 1, 1),
    "native_pixels": 64,
}


def test_encoder__calls_its_model_frozen_and_in_evaluation_mode() -> None:
    encoder = Encoder(model=Patches().train(), **STATED)
    assert not encoder.model.training
    first, tokens = encoder(pictures(32))
    assert first is not None
    assert not tokens.requires_grad
    assert torch.equal(tokens, encoder(pictures(32))[1])
    torch.testing.assert_close(tokens[0, 1], pictures(32)[0, :, :16, 16:].mean(dim=(1, 2)))


def test_encoder__whole_numbers_of_a_normalisation_become_floats() -> None:
    encoder = Encoder(model=Patches(), **STATED)
    assert [type(value) for value in (*encoder.pixel_mean, *encoder.pixel_std)] == [float] * 6


def test_encoder__on_the_meta_device_is_checked_too() -> None:
    with torch.device("meta"):
        model = Patches()
    assert Encoder(model=model, **STATED).cls_width == 3
    with pytest.raises(TeacherError, match="width 4"):
        Encoder(model=model, **{**STATED, "patch_width": 4})


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ({"patch_width": 5}, r"tokens of shape \(16, 3\) for 64 px, not .* of width 5"),
        ({"patch_pixels": 8}, r"not a square grid of 8 px patches"),
        ({"cls_width": 4}, r"gives a CLS of shape \(3,\), not of width 4"),
        (
            {"cls_width": None, "cls_kind": "none"},
            r"gives a CLS of shape \(3,\), not of width None",
        ),
        ({"cls_width": None}, "`none` goes with None"),
        ({"cls_kind": "none"}, "`none` goes with None"),
        ({"cls_kind": "register"}, "'register' is none of class_token, attention_pool"),
        ({"fixed_size": True, "native_pixels": 8}, "cannot see 8 px pictures"),
    ],
)
def test_encoder__that_does_not_keep_what_it_states_is_refused(
    stated: dict[str, Any], found: str
) -> None:
    with pytest.raises(TeacherError, match=found):
        Encoder(model=Patches(), **{**STATED, **stated})


def test_encoder__of_one_size_says_which_grid_that_is() -> None:
    encoder = Encoder(model=Patches(), **STATED, fixed_size=True)
    assert encoder(pictures(64))[1].shape == (2, 16, 3)
    with pytest.raises(TeacherError, match=r"64 px only, not of 32 px; .* `grids: \[4\]`"):
        encoder(pictures(32))
