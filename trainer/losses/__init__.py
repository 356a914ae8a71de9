"""The distillation loss of EUPE (arXiv 2603.22387, section 3.2), one adapter head at a time.

CLS: 1 - cosine. Patch tokens: 0.9 (1 - cosine) + 0.1 smooth-L1 on standardised targets. What the
paper leaves open is settled here: smooth-L1 has beta 1, and means are taken over channels, then
tokens, then rows. The mean over rows is of the whole batch, on all ranks: what is returned for a
part of it is that part's share, and the shares add up to the loss however the batch was cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from schemas.train_config import Loss
from trainer.batch import Affine, Target
from trainer.losses import cls_op
from trainer.losses.op import Impl, feature_loss
from trainer.losses.told import Code, Told
from trainer.losses.twin import Terms

Parts = dict[str, dict[str, Tensor]]
"""{teacher: {"cls": scalar, "patch": scalar}}, detached; no "cls" where the teacher has none."""


@dataclass(frozen=True)
class Weighing:
    """What the rows of a part count for."""

    weight: Tensor
    """float32 [rows]; a row of weight 0 contributes nothing, whatever it holds."""
    total: Tensor
    """Scalar, the weights of the whole batch; where it is 0 so is the loss."""


def patch_loss(
    prediction: Tensor, target: Target, rows: Weighing, scale: Tensor, loss: Loss, impl: Impl
) -> tuple[Tensor, Tensor]:
    """A part's share of the patch loss.

    Args:
        prediction: [rows, student tokens, patch_width]; where the grids differ the smaller one is
            resized.
        target: of the same rows.
        scale: scalar, of the gradient alone.

    Returns:
        The share, a scalar, and counts as `feature_loss` gives them.
    """
    told, patch = _tokens(target), loss.patch
    terms = Terms(patch.cosine, patch.smooth_l1, patch.beta, loss.not_finite == "drop")
    return feature_loss(prediction, told, rows.weight, rows.total, scale, terms, impl)


def cls_losses(
    predictions: Sequence[Tensor],
    targets: Sequence[Target],
    rows: Weighing,
    scales: Tensor,
    loss: Loss,
    impl: Impl,
) -> tuple[Tensor, Tensor]:
    """A part's share of the CLS loss of each teacher, [teachers], and counts as above.

    Args:
        predictions: of each teacher, [rows, cls_width].
        scales: [teachers], in the place of rows.scale.
    """
    told = [
        Told("float", target.cls[:, None], target.cls.shape[1], None, *_affine(target.cls_affine))
        for target in targets
        if target.cls is not None
    ]
    alone = [prediction[:, None] for prediction in predictions]
    drop = loss.not_finite == "drop"
    return cls_op.cls_losses(alone, told, rows.weight, rows.total, scales, drop, impl)


def _tokens(target: Target) -> Told:
    """The codes themselves where they are of standardised values; what was rotated is decoded."""
    affine = _affine(target.tokens_affine)
    codec, count = target.codec, target.grid**2
    if codec is None or codec.record.tokens_codec == "fp16":
        return Told("float", target.tokens, target.tokens.shape[-1], None, *affine)
    parts = codec.codes(target.tokens, count)
    if parts is None:
        return Told("float", codec.decode(target.tokens, count), codec.channels, None, *affine)
    code: Code = "int8" if codec.record.tokens_codec == "int8" else "int4"
    return Told(code, parts[0], codec.channels, parts[1], *affine)


def _affine(affine: Affine | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if affine is None else (affine.scale, affine.shift)
