"""What the cases that Triton interprets have in common: whether a kernel is interpreted is decided
when it is made, so they run in a process of their own."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

assert os.environ.get("TRITON_INTERPRET") == "1"

MARKS = [
    pytest.mark.unit,
    # The interpreter computes with NumPy, which warns of the NaN that a test is about.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
GUARD = 4096
TRUNCATED = 2.0**-7
"""What the interpreter may lose of a bfloat16 when it stores one: a GPU rounds to the nearest."""
DTYPES = {torch.float32: None, torch.float16: None, torch.bfloat16: TRUNCATED}


@pytest.fixture(autouse=True)
def buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Are full of NaN when they are made, so that a place that nobody wrote shows; and so is what
    follows them, which must stay so."""
    behind: list[Tensor] = []

    def poisoned(like: Tensor) -> Tensor:
        whole = torch.full((like.numel() + GUARD,), torch.nan, dtype=like.dtype)
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
