"""What several processes need; that they come to what one does is in tests/integration."""

import pytest
import torch
from torch import Tensor, nn

from schemas.errors import ConfigError
from trainer.parallel import ALONE, freeze_unused, joined, unsynchronised

pytestmark = pytest.mark.unit


class Partly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.used(values).square()
        return result


def test_freeze__what_the_outputs_do_not_depend_on() -> None:
    model = Partly()
    freeze_unused(model, [model(torch.zeros(1, 2))])
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert frozen == ["unused.weight", "unused.bias"]


def test_alone__everything_is_as_without() -> None:
    model, value = Partly(), torch.ones(2)
    assert ALONE.wrap(model) is model
    assert ALONE.total(value) is value
    ALONE.wait()
    ALONE.agree(3, "out")
    with unsynchronised([model]):
        model(torch.zeros(1, 2)).sum().backward()
    assert model.used.weight.grad is not None


def test_joined__without_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as ranks:
        assert ranks is ALONE


def test_joined__refuses_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ConfigError, match=r"process 3 on a machine with 2 GPUs"),
        joined("cuda"),
    ):
        pass
