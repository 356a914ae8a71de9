import pytest
import torch
from torch import nn

from trainer.heads import Heads, Widths, adapter_head

pytestmark = pytest.mark.unit

STUDENT = Widths(tokens=8, cls=6)


def test_adapter_head__is_the_papers() -> None:
    head = adapter_head(8, 32, 5)
    assert [type(layer) for layer in head] == [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear]
    assert head[0].bias is None
    assert head[3].bias is None
    assert head(torch.randn(2, 9, 8)).shape == (2, 9, 5)


def test_heads__predict_each_teacher_in_its_widths() -> None:
    teachers = {"dinov3": Widths(12, 10), "pe_lang": Widths(7, None)}
    heads = Heads(STUDENT, teachers, hidden=16, seed=0)
    cls, tokens = torch.randn(3, 6), torch.randn(3, 4, 8)
    assert heads.kinds("dinov3") == ("tokens", "cls")
    assert heads.predict("dinov3", "tokens", tokens).shape == (3, 4, 12)
    assert heads.predict("dinov3", "cls", cls).shape == (3, 10)
    assert heads.kinds("pe_lang") == ("tokens",)
    assert heads.predict("pe_lang", "tokens", tokens).shape == (3, 4, 7)


def test_heads__are_called_through_what_wraps_them() -> None:
    heads = Heads(STUDENT, {"a": Widths(4, 4)}, hidden=8, seed=0)
    names = [*heads.state_dict()]
    heads.call_through(lambda head: nn.Sequential(head, nn.Softmax(-1)))
    assert torch.allclose(heads.predict("a", "cls", torch.randn(2, 6)).sum(-1), torch.ones(2))
    assert [*heads.state_dict()] == names
    assert len([*heads.called]) == 2


def test_heads__first_weights_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    alone = Heads(STUDENT, {"a": Widths(4, 4)}, hidden=8, seed=3).state_dict()
    torch.manual_seed(2)
    both = Heads(STUDENT, {"b": Widths(4, 4), "a": Widths(4, 4)}, hidden=8, seed=3).state_dict()
    assert all(torch.equal(value, both[name]) for name, value in alone.items())
    other = Heads(STUDENT, {"a": Widths(4, 4)}, hidden=8, seed=4).state_dict()
    assert not torch.equal(alone["heads.a-cls.0.weight"], other["heads.a-cls.0.weight"])
    assert not torch.equal(both["heads.a-cls.3.weight"], both["heads.b-cls.3.weight"])


def test_heads__leave_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Heads(STUDENT, {"a": Widths(4, 4)}, hidden=8, seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["items", "train", "forward", "a-cls", "type"])
def test_heads__take_any_name_a_configuration_allows(name: str) -> None:
    heads = Heads(STUDENT, {name: Widths(4, 4), "a": Widths(3, 3)}, hidden=8, seed=0)
    assert heads.predict(name, "tokens", torch.randn(1, 4, 8)).shape == (1, 4, 4)
