"""What the kernels' cases have in common. They run in a process of their own, because whether a
kernel is interpreted is decided when it is made: in Triton's interpreter, or on a GPU."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.losses.told import Told

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
assert INTERPRETED or torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"

MARKS = [
    pytest.mark.unit,
    # The interpreter computes with NumPy, which warns of the NaN that a test is about.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
GUARD = 4096
ROUNDINGS = {
    torch.float32: 0.0,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-7 if INTERPRETED else 2.0**-8,
}
"""What storing one may lose of it: the interpreter truncates a bfloat16, a GPU rounds it."""


@pytest.fixture(autouse=True)
def buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Are full of NaN when they are made, so that a place that nobody wrote shows; and so is what
    follows them, which must stay so."""
    behind: list[Tensor] = []

    def poisoned(like: Tensor) -> Tensor:
        whole = torch.full((like.numel() + GUARD,), torch.nan, dtype=like.dtype, device=like.device)
        behind.append(whole[like.numel() :])
        return whole[: like.numel()].view(like.shape)

    def empty(*shape: Any, **options: Any) -> Tensor:
        return poisoned(function(*shape, **options))

    def new_empty(self: Tensor, *shape: Any, **options: Any) -> Tensor:
        found = method(self, *shape, **options)
        return found if options else poisoned(found)  # the interpreter's own has options

    function, method = torch.empty, Tensor.new_empty
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "new_empty", new_empty)
    yield
    assert all(each.isnan().all() for each in behind)


def there(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with all it is given on the device, and all it gives from there."""

    def called(*arguments: Any) -> Any:
        return moved(function(*(moved(each, DEVICE) for each in arguments)), "cpu")

    return called if DEVICE == "cuda" else function


def moved(value: Any, device: str) -> Any:
    """Every tensor of a named tuple or a Told; strides as they are."""
    if isinstance(value, Tensor):
        there = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        return there.copy_(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(each, device) for each in value))
    if isinstance(value, Told):
        tensors = ("values", "scales", "factor", "shift")
        return replace(value, **{name: moved(getattr(value, name), device) for name in tensors})
    return value
