"""Forward and backward of one part of a batch, one adapter head after the other.

The student's features are cut off from it, and collect the gradient of each head as soon as that
head has run: the activations of one head for patch tokens live at a time, not those of all (each
wider than the student). Those for CLS are small, and learn together. The student's own backward
comes once, at the end.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from infra.models.encoder import Encoder
from schemas.train_config import Loss
from trainer.batch import Batch
from trainer.heads import Heads, Kind
from trainer.losses import Parts, Weighing, cls_losses, patch_loss
from trainer.losses.op import Impl


class Features(nn.Module):
    """A student as one module from pixels to features: what is compiled, and wrapped for ranks."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.model = encoder.model
        self._encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pictures to CLS [rows, width] and tokens [rows, count, width]."""
        cls, tokens = self._encoder(pixels)
        assert cls is not None  # a student without one is refused
        return cls, tokens


@dataclass(frozen=True)
class Terms:
    """The loss of one step."""

    factors: Mapping[str, float]
    """Of each teacher that takes part in the step."""
    total: Tensor
    """The weights of the whole batch, on all ranks."""
    scale: float
    """Of the gradient alone."""
    loss: Loss
    impl: Impl


class Learned(NamedTuple):
    """Of a part of a batch."""

    shares: Parts
    """Of the loss, before `factors`."""
    counts: Tensor
    """float32 [2], of all heads: tokens without a direction, tokens that are not finite."""


def learn_part(
    student: nn.Module,
    heads: Heads,
    pixels: Tensor,
    part: Batch,
    terms: Terms,
    precision: Callable[[], AbstractContextManager[object]],
) -> Learned:
    """Add the gradient of a part's share of the loss to every parameter.

    Args:
        student: as `Features`.
        pixels: the part's pictures as the student expects them.
        part: on the device.
        precision: the context of a forward.
    """
    with precision():
        cls, tokens = student(pixels)
    leaves: dict[Kind, Tensor] = {"cls": _leaf(cls), "tokens": _leaf(tokens)}
    rows = Weighing(part.weight, terms.total)
    factors = [factor * terms.scale for factor in terms.factors.values()]
    # From memory that is not pinned, a copy would wait for the GPU.
    scales = torch.tensor(factors, pin_memory=pixels.is_cuda)
    scale = dict(zip(terms.factors, scales.to(pixels.device, non_blocking=True)))
    shares: Parts = {name: {} for name in terms.factors}
    counts = torch.zeros(2, device=pixels.device)
    for name in terms.factors:
        with precision():
            prediction = heads.predict(name, "tokens", leaves["tokens"])
        target = part.targets[name]
        share, found = patch_loss(prediction, target, rows, scale[name], terms.loss, terms.impl)
        share.backward()  # type: ignore[no-untyped-call]
        shares[name]["patch"] = share.detach()
        counts += found
        del prediction, share  # or they would live beside the next head's
    with_cls = [name for name in terms.factors if "cls" in heads.kinds(name)]
    if with_cls:
        with precision():
            predictions = [heads.predict(name, "cls", leaves["cls"]) for name in with_cls]
        targets = [part.targets[name] for name in with_cls]
        of_those = torch.stack([scale[name] for name in with_cls])
        each, found = cls_losses(predictions, targets, rows, of_those, terms.loss, terms.impl)
        each.sum().backward()  # type: ignore[no-untyped-call]
        counts += found
        for name, share in zip(with_cls, each.detach()):
            shares[name]["cls"] = share
    gradients = (_gradient(leaves["cls"], cls), _gradient(leaves["tokens"], tokens))
    torch.autograd.backward((cls, tokens), gradients)
    return Learned(shares, counts)


def _leaf(features: Tensor) -> Tensor:
    """In float32, because the heads' gradients are added up in it."""
    return features.detach().float().requires_grad_()


def _gradient(leaf: Tensor, features: Tensor) -> Tensor:
    """Zeros where no head has read the features: on several ranks each parameter needs one."""
    if leaf.grad is None:
        return torch.zeros_like(features)
    return leaf.grad.to(features.dtype)
