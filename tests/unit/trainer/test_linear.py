"""The linear probe, against problems whose answer is known and the conditions of an optimum."""

import pytest
import torch
from torch import Tensor

from infra.terminal import Terminal
from trainer import linear
from trainer.linear import Scale, fit, linear_top1, loss_and_gradient, measure

pytestmark = pytest.mark.unit

CLASSES = 4
QUIET = Terminal(quiet=True)


def rows(count: int, seed: int, spread: float, width: int = 12) -> tuple[Tensor, Tensor]:
    """Features around one centre a class, on scales that differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    features = centres[labels] + spread * torch.randn(count, width, generator=generator)
    return features * torch.logspace(-3, 3, width) + 5, labels


def keys(count: int) -> list[str]:
    return [f"picture {number}" for number in range(count)]


def probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    return linear_top1(train, keys(len(train[0])), test, CLASSES, QUIET)


def test_separable__is_learnt_whole() -> None:
    assert probe(rows(300, 1, 0.05), rows(200, 2, 0.05)) == 1.0


def test_noise__gives_chance() -> None:
    features, labels = rows(1000, 1, 1.0)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    share = probe((features, labels[order]), rows(2000, 2, 1.0))
    assert share == pytest.approx(1 / CLASSES, abs=0.06)


@pytest.mark.parametrize("strength", linear.STRENGTHS)
def test_fit__is_the_optimum(strength: float) -> None:
    """The problem is strictly convex but for a constant on all biases: where autograd's gradient of
    the problem as one would write it is 0, there is its solution."""
    features, labels = rows(400, 1, 1.5)
    # Channels that nearly repeat one another: where a plain descent takes longest.
    features = torch.cat([features, features + 1e-3 * features.std(dim=0)], dim=1)
    found = fit(features, labels, measure(features), CLASSES, strength)
    double = features.double()
    inputs = (double - double.mean(dim=0)) / double.std(dim=0, correction=0)
    weights = found.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(inputs @ weights[:-1] + weights[-1], labels)
    whole = loss + strength / 2 * weights[:-1].square().sum()
    whole.backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None
    assert weights.grad.abs().max() < 1e-5
    assert loss_and_gradient(features, labels, measure(features), found, strength)[
        0
    ] == pytest.approx(whole.item())


def test_fit__of_two_rows_is_the_solution_by_hand() -> None:
    """One channel at -1 and 1, two classes: by symmetry the weights are (-w, w), and a row's loss
    is log(1 + exp(-2w)). Its slope and the penalty's cancel where 2 / (1 + exp(2w)) = 2 s w."""
    features, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    scale = Scale(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    found = fit(features, labels, scale, 2, strength=0.1)
    slope = found[0, 1].item()
    assert found[0, 0].item() == pytest.approx(-slope)
    assert 2 / (1 + torch.tensor(2 * slope).exp().item()) == pytest.approx(
        2 * 0.1 * slope, abs=1e-6
    )


def test_fit__begun_elsewhere_ends_at_the_same() -> None:
    features, labels = rows(200, 1, 1.0)
    scale = measure(features)
    first = fit(features, labels, scale, CLASSES, 1e-2)
    other = fit(features, labels, scale, CLASSES, 1e-2, begin=torch.ones_like(first))
    torch.testing.assert_close(first[:-1], other[:-1], atol=1e-4, rtol=0)


def test_chunks__change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = rows(300, 1, 1.0)
    whole = fit(features, labels, measure(features), CLASSES, 1e-3)
    monkeypatch.setattr(linear, "CHUNK_ELEMENTS", 12 * 7)
    cut = fit(features, labels, measure(features), CLASSES, 1e-3)
    torch.testing.assert_close(whole, cut, atol=1e-5, rtol=0)


def test_probe__repeats_to_the_bit() -> None:
    train, test = rows(200, 1, 2.0), rows(100, 2, 2.0)
    assert probe(train, test) == probe(train, test)
    scale = measure(train[0])
    first, second = (fit(*train, scale, CLASSES, 1e-3) for _ in range(2))
    assert torch.equal(first, second)


def test_channels__that_do_not_vary_are_left_out() -> None:
    train, test = rows(300, 1, 0.05), rows(200, 2, 0.05)
    constant = torch.full((1, 2), 0.1)
    train, test = (
        (torch.cat([features, constant.expand(len(features), 2)], dim=1), labels)
        for features, labels in (train, test)
    )
    assert measure(train[0]).factor[-2:].tolist() == [0.0, 0.0]
    assert probe(train, test) == 1.0


def test_penalty__is_chosen_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    train = rows(30, 1, 4.0)
    linear_top1(train, keys(30), rows(20, 2, 4.0), CLASSES, Terminal())
    printed = capsys.readouterr().out
    assert "L2  " in printed
    assert "of 3 training pictures kept back for the choice" in printed
    assert "linear probe  6/6 fits" in printed


def test_few_pictures__are_enough() -> None:
    train = (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    assert linear_top1(train, keys(2), train, 2, QUIET) == 1.0
