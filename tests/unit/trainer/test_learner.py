import math
from typing import Any

import pytest
import torch

from infra.models.timm_encoder import build_timm
from schemas.errors import TeachonceError
from schemas.train_config import Optim, TeacherTerm
from tests.unit.trainer.learning import batch_of, gradients, learner_of, loss_of
from trainer.dropped import taking_part
from trainer.learner import Learner, learning_rate
from trainer.parts import parts_of

pytestmark = pytest.mark.unit


def test_step__learns_a_batch_by_heart() -> None:
    learner, batch = learner_of(), batch_of(0)
    losses = [loss_of(learner, number, batch) for number in range(1, 31)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("model", ["timm:test_vit", "timm:test_resnet"])
def test_step__repeats_to_the_bit_whatever_was_drawn_before(model: str) -> None:
    weights = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        learner = learner_of(student={"model": model})
        for number in (1, 2, 3):
            learner.step(number, batch_of(number))
            torch.rand(noise)
        weights.append([*learner.encoder.model.state_dict().values()])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*weights))


def test_step__batch_without_weight_moves_nothing_but_by_decay() -> None:
    learner = learner_of(optim={"lr": 1e-2, "weight_decay": 0.0})
    before = {name: value.clone() for name, value in learner.encoder.model.state_dict().items()}
    batch = batch_of(0)
    batch.weight.zero_()
    assert loss_of(learner, 1, batch) == 0
    after = learner.encoder.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_step__clips_the_gradient_and_tells_its_norm_before() -> None:
    free, clipped = learner_of(), learner_of(optim={"clip_norm": 1e-3})
    expected = free.step(1, batch_of(0)).gradient_norm
    torch.testing.assert_close(torch.nn.utils.get_total_norm([*gradients(free).values()]), expected)
    assert clipped.step(1, batch_of(0)).gradient_norm.item() == pytest.approx(expected.item())
    norm = torch.nn.utils.get_total_norm([*gradients(clipped).values()])
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("accumulate", [2, 3, 5, 8])
def test_step__is_the_same_in_parts(accumulate: int) -> None:
    batch = batch_of(0, rows=5)
    batch.weight[1] = 0
    whole, cut = learner_of(), learner_of(optim={"accumulate": accumulate})
    assert loss_of(cut, 1, batch) == pytest.approx(loss_of(whole, 1, batch), rel=1e-5)
    expected = gradients(whole)
    for name, value in gradients(cut).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6)


def test_parts__are_consecutive_rows() -> None:
    batch = batch_of(0, rows=5)
    parts = [part.rows.tolist() for part in parts_of(batch, 2)]
    assert parts == [[0, 1, 2], [3, 4]]
    assert [len(part.rows) for part in parts_of(batch, 9)] == [1] * 5
    second = [*parts_of(batch, 2)][1]
    assert torch.equal(second.pixels, batch.pixels[3:])
    assert torch.equal(second.targets["a"].tokens, batch.targets["a"].tokens[3:])
    assert second.targets["b"].cls is None


def memory_for(rows: int, learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the GPU's memory sufficed for the activations of so many rows."""
    inside = learner.encoder.model.forward_features

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > rows:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        features: torch.Tensor = inside(pixels)
        return features

    monkeypatch.setattr(learner.encoder.model, "forward_features", forward)


def test_step__that_does_not_fit_is_cut_finer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, small = learner_of(), learner_of()
    decided: list[tuple[str, object, str]] = []
    small._decide = lambda *words: decided.append(words)
    memory_for(3, small, monkeypatch)
    batch = batch_of(0, rows=8)
    assert loss_of(small, 1, batch) == pytest.approx(loss_of(whole, 1, batch), rel=1e-5)
    assert small.accumulate == 4
    assert [words[:2] for words in decided] == [("accumulate", 2), ("accumulate", 4)]


@pytest.mark.parametrize(
    ("accumulate", "rows", "advice"),
    [("auto", 0, "lower optim.batch_size"), (2, 1, "set optim.accumulate to 4, or")],
)
def test_step__that_cannot_fit_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, accumulate: Any, rows: int, advice: str
) -> None:
    learner = learner_of(optim={"accumulate": accumulate})
    memory_for(rows, learner, monkeypatch)
    with pytest.raises(TeachonceError, match=rf"memory does not suffice.*2 GiB.*{advice}"):
        learner.step(1, batch_of(0))


def test_ema__is_the_mean_and_is_handed_on() -> None:
    learner, decay = learner_of(optim={"lr": 1e-2, "ema": 0.75}), 0.75
    expected: list[torch.Tensor] = []
    for number in range(1, 5):
        learner.step(number, batch_of(number))
        now = [value.detach().clone() for value in learner.encoder.model.parameters()]
        expected = [decay * mean + (1 - decay) * value for mean, value in zip(expected or now, now)]
    finished = learner.trained.finished
    assert finished is not learner.encoder
    assert not finished.model.training
    for mean, value in zip(expected, finished.model.parameters()):
        torch.testing.assert_close(value, mean)
    picture = torch.randn(1, 3, 64, 64)
    cls, _ = finished(picture)
    assert cls is not None
    again = build_timm("test_vit", {}, None)
    again.model.load_state_dict(finished.model.state_dict())
    assert torch.equal(cls, again(picture)[0])


def test_ema__keeps_counts_of_a_batch_norm() -> None:
    learner = learner_of(student={"model": "timm:test_resnet"}, optim={"ema": 0.9})
    for number in (1, 2):
        learner.step(number, batch_of(number))
    state, mean = (e.model.state_dict() for e in (learner.encoder, learner.trained.finished))
    assert mean["bn1.num_batches_tracked"] == state["bn1.num_batches_tracked"] == 2
    assert not torch.equal(mean["bn1.running_mean"], state["bn1.running_mean"])


def test_drop__leaves_a_teacher_out_but_never_all() -> None:
    terms = {name: TeacherTerm(drop=0.5) for name in "abc"} | {"d": TeacherTerm()}
    steps = [taking_part(terms, 0, step) for step in range(400)]
    assert all("d" in live for live in steps)
    for name in "abc":
        assert 150 < sum(name in live for live in steps) < 250
    assert steps == [taking_part(terms, 0, step) for step in range(400)]
    assert steps != [taking_part(terms, 1, step) for step in range(400)]
    often = {name: TeacherTerm(drop=0.99) for name in "ab"}
    assert {len(taking_part(often, 0, step)) for step in range(400)} <= {1, 2}


def test_drop__teacher_left_out_neither_learns_nor_counts() -> None:
    learner = learner_of(teachers={"a": {"drop": 0.9}, "b": {}})
    before = {name: value.clone() for name, value in learner.heads.state_dict().items()}
    number = next(n for n in range(1, 99) if taking_part(learner.terms, 0, n) == ["b"])
    assert [*learner.step(number, batch_of(0)).parts] == ["b"]
    for name, value in learner.heads.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("heads.a-"), name


def test_compile__gives_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    assert loss_of(learner_of(compile=True), 1, batch_of(0)) == loss_of(
        learner_of(), 1, batch_of(0)
    )
    assert len(compiled) == 1


def test_learning_rate__warms_up_then_follows_half_a_cosine() -> None:
    optim = Optim(lr=2.0, warmup_steps=4, steps=14, schedule="cosine")
    rates = [learning_rate(step, optim) for step in range(1, 15)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[9] == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(1 + math.cos(math.pi * 0.9))
    constant = Optim(lr=2.0, warmup_steps=1, steps=9, schedule="constant")
    assert {learning_rate(step, constant) for step in range(1, 10)} == {2.0}
