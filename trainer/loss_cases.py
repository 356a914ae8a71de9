"""What `teachonce bench loss` times: made-up predictions, and targets as they lie in a cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.losses.told import Code, Told

CODES: tuple[Code, ...] = ("int8", "int4", "fp8", "float")


@dataclass(frozen=True)
class Given:
    """What the loss is of."""

    prediction: Tensor
    """[rows, tokens, channels], a leaf."""
    told: Told
    weight: Tensor
    """[rows, tokens of the larger grid]; all ones, but for half of them if `masked`."""
    total: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Case:
    """What is timed."""

    code: Code
    channels: int
    mine: int
    theirs: int
    masked: bool = False
    backward: bool = True

    def __str__(self) -> str:
        more = (", half of the tokens masked" if self.masked else "") + (
            "" if self.backward else ", forward alone"
        )
        return f"{self.code}, {self.channels} channels, grids {self.mine} and {self.theirs}{more}"

    def bytes(self, given: Given) -> int:
        """Of one pass."""
        prediction, told = given.prediction, given.told
        read = (
            _size(prediction)
            + _size(told.values)
            + (0 if told.scales is None else _size(told.scales))
        )
        return read + (_size(prediction) if self.backward else 0)


def cases(channels: tuple[int, ...], grid: int) -> Iterator[Case]:
    """What is timed; the larger grid is half as wide again as `grid`."""
    larger = 3 * grid // 2
    for width in channels:
        for mine, theirs in ((grid, grid), (larger, grid), (grid, larger)):
            yield Case("int8", width, mine, theirs)
        yield Case("int8", width, grid, grid, backward=False)
    widest = channels[-1]
    for code in CODES[1:]:
        yield Case(code, widest, grid, grid)
    yield Case("int8", widest, grid, grid, masked=True)


def made_up(case: Case, rows: int, dtype: torch.dtype, device: str, seed: int) -> Given:
    """Made up, the same every time."""
    torch.manual_seed(seed)
    channels = case.channels
    tokens = max(case.mine, case.theirs) ** 2
    weight = torch.ones(rows, tokens, device=device)
    if case.masked:
        weight[:, ::2] = 0
    # A student that has learned something: its cosine is 0.7, not 0.
    told = _told(case, rows, device)
    prediction = torch.randn((rows, case.mine**2, channels), device=device)
    if case.mine == case.theirs:
        prediction = prediction + told.decoded()
    return Given(
        prediction.to(dtype).requires_grad_(),
        told,
        weight,
        weight.sum() / tokens,
        torch.ones((), device=device),
    )


def _told(case: Case, rows: int, device: str) -> Told:
    values = torch.randn((rows, case.theirs**2, case.channels), device=device)
    if case.code == "float":
        return Told("float", values.half(), case.channels)
    most = {"int8": 127, "int4": 7, "fp8": 448}[case.code]
    scales = (values.abs().amax(-1) / most).half()
    codes = values / scales[..., None].float()
    if case.code == "fp8":
        packed = codes.to(torch.float8_e4m3fn).view(torch.uint8)
    elif case.code == "int8":
        packed = codes.round().to(torch.int8).view(torch.uint8)
    else:
        half = case.channels // 2
        both = (codes.round() + 8).to(torch.uint8)
        packed = both[..., :half] | both[..., half:] << 4
    return Told(case.code, packed, case.channels, scales)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
