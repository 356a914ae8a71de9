"""The operator as torch traces and compiles it."""

import shutil

import pytest
import torch
from torch import Tensor, nn

from tests.unit.trainer.losses.cases import FORMS, TERMS, Case, case_of
from tests.unit.trainer.losses.definition import GRADIENT_ERROR, ROUNDING, error
from tests.unit.trainer.losses.through_op import loss_of, took
from trainer.losses import op

pytestmark = pytest.mark.unit

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["float16, factor", "int8", "int4"])
def test_op__is_as_torch_asks(form: str, dtype: torch.dtype, wanted: bool) -> None:
    case = case_of(FORMS[form], dtype, 7)
    told, total = case.told, torch.tensor(2.0)
    # Undoes the share, so that the backward has nothing to multiply by: it does that in place, to
    # an output that nobody else sees.
    scale = total * case.weight.shape[1]
    torch.library.opcheck(
        op._op,
        (
            *(case.prediction.nan_to_num().requires_grad_(wanted), told.values, told.scales),
            *(told.factor, told.shift, case.weight, total, scale),
            *(told.code, told.channels, *case.terms, "twin", wanted),
        ),
    )


class Head(nn.Module):
    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(5, case.told.channels).to(dtype)
        self._case = case

    def forward(self, features: Tensor) -> Tensor:
        return loss_of(self._case, self.linear(features))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_feature_loss__may_stand_in_a_compiled_function(dtype: torch.dtype) -> None:
    # More than float16 holds is what its gradient is then multiplied by.
    scale = torch.tensor(2.0**24)
    case = case_of(FORMS["int8"], dtype, 4096)._replace(scale=scale)
    head = Head(case, dtype)
    features = torch.randn(*case.weight.shape, 5).to(dtype)
    found = []
    for called in (head, torch.compile(head, backend="aot_eager", fullgraph=True)):
        head.zero_grad()
        loss = called(features)
        loss.backward()
        assert head.linear.weight.grad is not None
        found.append((loss.detach(), head.linear.weight.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].isfinite().all()
    assert error(found[1][1], found[0][1].double(), ROUNDING.get(dtype, 0.0)) <= GRADIENT_ERROR
    assert found[0][1].any()


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of parts of its own
@pytest.mark.parametrize("terms", ["patch", "cls"])
def test_compiled__equals_the_twin(terms: str) -> None:
    case = case_of(FORMS["int8"], torch.float32, 7, TERMS[terms])
    eager, compiled = took(case), took(case, impl="compiled")
    torch.testing.assert_close(compiled.loss, eager.loss)
    assert error(compiled.gradient, eager.gradient.double()) <= GRADIENT_ERROR
