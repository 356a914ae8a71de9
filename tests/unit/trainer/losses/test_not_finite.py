"""What a training does of a token that is not finite."""

import math

import pytest

from schemas.errors import TeachonceError
from tests.unit.trainer.learning import batch_of, learner_of
from trainer.batch import Batch
from trainer.learner import Learner, Step
from trainer.metrics import fetch
from trainer.parallel import ALONE

pytestmark = pytest.mark.unit

FACTORS = {"a": 1.0, "b": 1.0}


def spoilt(garbage: float) -> Batch:
    """A patch token and a CLS of one teacher."""
    batch = batch_of(0)
    cls = batch.targets["a"].cls
    assert cls is not None
    batch.targets["a"].tokens[1, 2, 3] = cls[0, 1] = garbage
    return batch


def is_sound(learner: Learner) -> bool:
    parameters = [*learner.encoder.model.parameters(), *learner.heads.parameters()]
    return all(bool(each.isfinite().all()) for each in parameters)


def step_of(learner: Learner, garbage: float) -> Step:
    return learner.step(1, spoilt(garbage))


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_step__drops_and_counts_them_and_goes_on(garbage: float) -> None:
    learner = learner_of(loss={"not_finite": "drop"})
    losses = fetch(1, step_of(learner, garbage), FACTORS, ALONE)
    # The patch token may be among a smaller grid's that was resized: then all near it are lost.
    assert losses.not_finite >= 2
    assert losses.total > 0
    assert is_sound(learner)
    assert fetch(2, learner.step(2, batch_of(1)), FACTORS, ALONE).not_finite == 0


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_step__stops_at_the_next_look(garbage: float) -> None:
    with pytest.raises(TeachonceError, match="step 1: the loss is nan"):
        fetch(1, step_of(learner_of(), garbage), FACTORS, ALONE)
