"""Which implementation runs, and why."""

import pytest

from schemas.errors import ConfigError
from schemas.train_config import Loss
from trainer.losses import choice
from trainer.losses.choice import choose
from trainer.losses.op import WIDEST

pytestmark = pytest.mark.unit


@pytest.fixture
def _with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: name)


@pytest.fixture
def _without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None)


@pytest.mark.usefixtures("_with_triton")
def test_choose__auto_is_the_kernel_where_it_runs() -> None:
    assert choose(Loss(), "cuda", WIDEST) == ("triton", "in one pass over the data")


NO_GPU = "torch sees no GPU"
TOO_WIDE = f"a head is {WIDEST + 1} channels wide, and a kernel holds {WIDEST}"


@pytest.mark.usefixtures("_with_triton")
@pytest.mark.parametrize(
    ("device", "widest", "why"), [("cpu", 8, NO_GPU), ("cuda", WIDEST + 1, TOO_WIDE)]
)
def test_choose__without_what_the_kernel_needs(device: str, widest: int, why: str) -> None:
    assert choose(Loss(), device, widest) == ("twin", why)
    with pytest.raises(ConfigError) as refused:
        choose(Loss(impl="triton"), device, widest)
    assert str(refused.value) == f"loss.impl: triton was asked for, and {why}; leave it at auto"


@pytest.mark.usefixtures("_without_triton")
def test_choose__without_triton() -> None:
    assert choose(Loss(), "cuda", 8) == ("twin", "Triton is not installed")
    with pytest.raises(ConfigError, match="and Triton is not installed; leave it at auto"):
        choose(Loss(impl="triton"), "cuda", 8)


@pytest.mark.usefixtures("_with_triton")
@pytest.mark.parametrize(
    ("impl", "device"), [("twin", "cpu"), ("twin", "cuda"), ("compiled", "cpu"), ("triton", "cuda")]
)
def test_choose__what_was_asked_for(impl: str, device: str) -> None:
    assert choose(Loss.model_validate({"impl": impl}), device, 8) == (impl, "as configured")
