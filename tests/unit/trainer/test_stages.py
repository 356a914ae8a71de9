from typing import Any

import pytest

from schemas.errors import ConfigError
from tests.unit.trainer.learning import train_config
from trainer.stages import head_hidden

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "fit",
    [
        {"stage": "proxy", "teachers": {"a": {"grids": [32]}, "b": {"grids": [16]}}},
        {"stage": "fixed"},
        {"stage": "multires", "student_grids": [16, 24]},
        {"stage": "multires", "teachers": {"a": {"grids": [16, 24]}}},
        {"stage": "multires", "teachers": {"a": {"grids": [16, 24]}, "b": {"grids": [32]}}},
        {
            "stage": "multires",
            "student_grids": [16],
            "teachers": {"a": {"grids": [16, 24]}, "b": {"grids": [24, 16], "drop": 0.5}},
        },
    ],
)
def test_stage__is_trained_with_what_fits(fit: dict[str, Any]) -> None:
    train_config(**fit)


@pytest.mark.parametrize(
    ("unfit", "found"),
    [
        ({"stage": "proxy", "student_grids": [16, 24]}, "student_grids: stage proxy has one grid"),
        (
            {"stage": "fixed", "teachers": {"a": {"grids": [16, 24]}}},
            r"teachers.a.grids: stage fixed has one grid, found \[16, 24\]",
        ),
        ({"stage": "multires"}, "nothing to draw from"),
        ({"stage": "multires", "student_grids": [16, 16]}, "names a grid twice"),
        (
            {"stage": "multires", "teachers": {"a": {"grids": [16, 24]}, "b": {"grids": [16, 32]}}},
            r"must be the same; found teachers.a.grids \[16, 24\], teachers.b.grids \[16, 32\]",
        ),
        ({"teachers": {"a": {"weight": 0}, "b": {"weight": 0}}}, "every weight is 0"),
        ({"teachers": {"a": {"drop": 0.5}}}, "teachers.a.drop: the only teacher"),
    ],
)
def test_stage__refuses_what_does_not(unfit: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        train_config(**unfit)


def test_hidden__is_the_papers_unless_it_is_named() -> None:
    several = {"student_grids": [2, 3]}
    assert head_hidden(train_config(stage="proxy", head={})) == 1536
    assert head_hidden(train_config(stage="fixed", head={})) == 3072
    assert head_hidden(train_config(stage="multires", head={}, **several)) == 3072
    assert head_hidden(train_config(stage="proxy", head={"hidden": 7})) == 7
