"""The ways to the same loss that `teachonce bench loss` times: ours, and what one would write
without it. Each takes a prediction and targets as they lie in the cache, and gives a scalar that
can be gone back from."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.loss_cases import Given
from trainer.losses.op import Impl, feature_loss
from trainer.losses.told import Told
from trainer.losses.twin import EPS, Terms, smooth_l1
from trainer.resize import side_of

TERMS = Terms(cosine=0.9, smooth_l1=0.1, beta=1.0)


Provider = Callable[[Given], Tensor]


def providers(device: str) -> dict[str, Provider]:
    """By name. Without a GPU the kernels are there if Triton interprets them."""
    compiled = partial(_through_compile, device)
    found: dict[str, Provider] = {
        "eager_f32": partial(_plain, torch.float32),
        "eager_bf16": partial(_plain, torch.bfloat16),
        "compile_plain": compiled(partial(_plain, torch.float32)),
        "compile_plain_multikernel": compiled(partial(_plain, torch.float32), multi_kernel=True),
        "compile_rowwise": compiled(_rowwise),
        "compile_dot": compiled(_dot),
        "compile_lossgrad": partial(_ours, "compiled"),
        "ours_twin": partial(_ours, "twin"),
    }
    if device == "cuda" or _interprets():
        found |= {"ours": partial(_ours, "triton"), "ours_fused": partial(_ours, "fused")}
    return found


def _ours(impl: Impl, given: Given) -> Tensor:
    told = given.told
    return feature_loss(
        given.prediction, told, given.weight, given.total, given.scale, TERMS, impl
    )[0]


def _plain(dtype: torch.dtype, given: Given) -> Tensor:
    """As the formulas are usually written."""
    p, t = _met(given, dtype)
    cosine = 1 - F.cosine_similarity(p, t, dim=-1)
    return TERMS.cosine * cosine.mean() + TERMS.smooth_l1 * F.smooth_l1_loss(p, t, beta=TERMS.beta)


def _rowwise(given: Given) -> Tensor:
    """The mean of smooth-L1 taken a token at a time, so that both terms can share one pass."""
    p, t = _met(given, torch.float32)
    far = F.smooth_l1_loss(p, t, beta=TERMS.beta, reduction="none").mean(-1)
    cosine = 1 - F.cosine_similarity(p, t, dim=-1)
    return (TERMS.cosine * cosine + TERMS.smooth_l1 * far).mean()


def _dot(given: Given) -> Tensor:
    """Three sums instead of a cosine."""
    p, t = _met(given, torch.float32)
    norms = p.square().sum(-1) * t.square().sum(-1)
    cosine = (p * t).sum(-1) * norms.clamp_min(EPS**4).rsqrt()
    far = smooth_l1(p - t, TERMS.beta).mean(-1)
    return (TERMS.cosine * (1 - cosine) + TERMS.smooth_l1 * far).mean()


def _met(given: Given, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Decoded, and the smaller grid interpolated by torch."""
    p, t = given.prediction.to(dtype), given.told.decoded(dtype)
    if p.shape[1] < t.shape[1]:
        p = _interpolated(p, side_of(t))
    elif p.shape[1] > t.shape[1]:
        t = _interpolated(t, side_of(p))
    return p, t


def _interpolated(tokens: Tensor, side: int) -> Tensor:
    now = side_of(tokens)
    square = tokens.reshape(len(tokens), now, now, -1).permute(0, 3, 1, 2)
    large = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return large.flatten(2).transpose(1, 2)


def _through_compile(device: str, function: Provider, multi_kernel: bool = False) -> Provider:
    options: dict[str, Any] | None = (
        {"triton.multi_kernel": 1} if multi_kernel and device == "cuda" else None
    )

    def call(
        prediction: Tensor, values: Tensor, scales: Tensor | None, code: str, channels: int
    ) -> Tensor:
        told = Told(code, values, channels, scales)  # type: ignore[arg-type]
        none = prediction.new_ones(())
        return function(Given(prediction, told, none, none, none))

    compiled = torch.compile(call, options=options)

    def provide(given: Given) -> Tensor:
        told = given.told
        found: Tensor = compiled(
            given.prediction, told.values, told.scales, told.code, told.channels
        )
        return found

    return provide


def _interprets() -> bool:
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)
