"""Inputs of the loss of every form that it takes. What must not be read is there, and is NaN: a
token beside those of the prediction, and whatever a token of weight 0 holds."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.losses.told import Code, Told
from trainer.losses.twin import Terms

PATCH = Terms(0.9, 0.1, 0.5)
TERMS = {
    "patch": PATCH,
    "cls": Terms(1.0),
    "smooth-L1 alone": Terms(0.0, 1.0, 2.0),
    "without a quadratic part": Terms(0.9, 0.1, 0.0),
}
WIDTHS = (1, 7, 127, 384, 768, 1023, 1024, 1025, 1152, 1280, 1408, 1536, 1664, 4096)
WEIGHTS = (1.0, 0.0, 2.5, 0.5)


class Form(NamedTuple):
    """Of a target."""

    code: Code
    scaled: bool = False
    affine: bool = False
    float_dtype: torch.dtype = torch.float16


FORMS = {
    "float16": Form("float"),
    "float32": Form("float", float_dtype=torch.float32),
    "float16, factor": Form("float", affine=True),
    "int8": Form("int8", scaled=True),
    "int8, factor": Form("int8", scaled=True, affine=True),
    "int8 bare": Form("int8"),
    "int4": Form("int4", scaled=True),
    "int4, factor": Form("int4", affine=True),
    "fp8": Form("fp8"),
    "fp8, scale and factor": Form("fp8", scaled=True, affine=True),
}


class Case(NamedTuple):
    """The arguments of `loss_and_gradient` but the last."""

    prediction: Tensor
    told: Told
    weight: Tensor
    share: Tensor
    scale: Tensor
    terms: Terms


def case_of(
    form: Form,
    dtype: torch.dtype,
    channels: int,
    terms: Terms = PATCH,
    seed: int = 0,
    tokens: int | None = None,
) -> Case:
    """Two rows of a few tokens, more where a kernel's program has many; a quarter has weight 0."""
    random = torch.Generator().manual_seed(1000 * channels + seed)
    rows, tokens = 2, tokens or (2 if channels > 64 else 37)
    weight = torch.tensor(WEIGHTS).repeat(rows * tokens)[: rows * tokens].view(rows, tokens)
    dead = weight == 0
    prediction = torch.randn(rows, tokens, channels, generator=random)
    # Of one channel the halves of the cosine's gradient cancel; near 0 their rounding would not.
    prediction = _inside((prediction + prediction.sign() / 2).to(dtype), dead)
    scales = None
    if form.scaled:
        scales = _inside((torch.rand(rows, tokens, generator=random) / 20 + 0.01).half(), dead)
    told = Told(form.code, _values(form, dead, channels, random), channels, scales)
    if form.affine:
        factor = torch.rand(channels, generator=random) / 10 + 0.1
        told = Told(*_fields(told), factor, torch.randn(channels, generator=random))
    # Of few bits, so that what is in float64 stays as exact.
    share, scale = torch.tensor(2.0**-7), torch.tensor(3.0)
    return Case(prediction, told, weight, share, scale, terms)


def of_tokens(
    predictions: list[list[float]], targets: list[list[float]], weights: list[float], terms: Terms
) -> Case:
    """One row of these tokens, in float32 and with a share and scale of 1."""
    told = Told("float", torch.tensor([targets]), len(targets[0]))
    one = torch.ones(())
    return Case(torch.tensor([predictions]), told, torch.tensor([weights]), one, one, terms)


def edges(dtype: torch.dtype, terms: Terms = PATCH) -> Case:
    """Tokens without a direction beside an ordinary one: predictions, targets and both of no
    length, and of one so small that it counts as none."""
    short, none, long = [3e-9, 0.0, 0.0], [0.0, 0.0, 0.0], [0.3, -2.0, 1.0]
    case = of_tokens(
        [long, none, long, none, short, long, short],
        [[1.0, 2.0, 0.5], long, none, none, long, short, short],
        [1.0, 2.0, 1.0, 0.5, 1.0, 1.0, 3.0],
        terms,
    )
    return case._replace(prediction=case.prediction.to(dtype))


def poisoned(garbage: float, terms: Terms = PATCH) -> Case:
    """The second token of three is garbage on both sides."""
    return of_tokens(
        [[1.0, 2.0], [garbage, 1.0], [0.5, -1.0]],
        [[0.5, -1.0], [1.0, garbage], [2.0, 1.0]],
        [1.0, 1.0, 0.5],
        terms,
    )


def _values(form: Form, dead: Tensor, channels: int, random: torch.Generator) -> Tensor:
    shape = (*dead.shape, channels)
    if form.code == "float":
        return _inside(torch.randn(shape, generator=random).to(form.float_dtype), dead)
    width = (channels + 1) // 2 if form.code == "int4" else channels
    values = torch.randint(0, 256, (*dead.shape, width), generator=random, dtype=torch.uint8)
    if form.code != "fp8":
        return values
    values[values & 0x7F == 0x7F] = 0
    values[dead] = 0x7F
    return values


def _inside(tokens: Tensor, dead: Tensor) -> Tensor:
    """The same as a part of a larger tensor, all else in which is NaN."""
    tokens[dead] = math.nan
    larger = tokens.new_full((tokens.shape[0], 1 + tokens.shape[1], *tokens.shape[2:]), math.nan)
    larger[:, 1:] = tokens
    return larger[:, 1:]


def _fields(told: Told) -> tuple[Code, Tensor, int, Tensor | None]:
    return told.code, told.values, told.channels, told.scales
