"""On a GPU: the kernels' cases themselves, and what an interpreter cannot show."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.aot import run
from trainer.losses.op import Impl, feature_loss
from trainer.losses.told import Told
from trainer.losses.twin import Terms

pytestmark = [pytest.mark.unit, pytest.mark.gpu]

IMPLS: tuple[Impl, ...] = ("triton", "fused")


@pytest.fixture
def given() -> tuple[Tensor, Told, Tensor, Tensor]:
    """A smaller prediction, so that all kernels run; and weights and scale."""
    prediction = torch.randn(8, 64, 384, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    codes = torch.randint(0, 256, (8, 144, 384), device="cuda", dtype=torch.uint8)
    scales = torch.rand(8, 144, device="cuda").half() / 50
    weight = torch.ones(8, device="cuda")
    return prediction, Told("int8", codes, 384, scales), weight, torch.ones((), device="cuda")


def took(given: tuple[Tensor, Told, Tensor, Tensor], impl: Impl) -> tuple[Tensor, Tensor]:
    prediction, told, weight, one = given
    prediction.grad = None
    terms = Terms(0.9, 0.1, 1.0)
    loss, _ = feature_loss(prediction, told, weight, weight.sum(), one, terms, impl)
    loss.backward()
    assert prediction.grad is not None
    return loss.detach(), prediction.grad


@pytest.mark.timeout(1800)  # each of some hundred forms is compiled
@pytest.mark.parametrize("cases", ["row", "resize", "cls"])
def test_kernels__on_the_gpu_are_as_defined(cases: str) -> None:
    file = str(Path(__file__).with_name(f"{cases}_cases.py"))
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", file)
    assert " passed" in told


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("impl", IMPLS)
def test_loss__never_waits_for_the_gpu(
    given: tuple[Tensor, Told, Tensor, Tensor], impl: Impl
) -> None:
    took(given, impl)  # what is made once for a pair of grids comes from the host
    try:
        torch.cuda.set_sync_debug_mode("error")
        took(given, impl)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("impl", IMPLS)
def test_loss__is_replayed_from_a_graph(
    given: tuple[Tensor, Told, Tensor, Tensor], impl: Impl
) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        took(given, impl)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient = took(given, impl)
    with torch.no_grad():
        given[0].copy_(torch.randn_like(given[0]))
    graph.replay()
    replayed = loss.clone(), gradient.clone()
    for found, expected in zip(replayed, took(given, impl)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_loss__twice_gives_the_same_bits(
    given: tuple[Tensor, Told, Tensor, Tensor], impl: Impl
) -> None:
    first = took(given, impl)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.synchronize()
        again = took(given, impl)
        torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(first, again))
