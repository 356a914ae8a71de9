"""Which implementation of the loss a run uses, with its reason."""

from importlib.util import find_spec
from typing import NamedTuple

from schemas.errors import ConfigError
from schemas.train_config import Loss
from trainer.losses.op import WIDEST, Impl


class Chosen(NamedTuple):
    impl: Impl
    reason: str


def choose(loss: Loss, device: str, widest: int) -> Chosen:
    """Resolve `auto`, and refuse what cannot run.

    Args:
        widest: channels of the widest head.

    Raises:
        ConfigError: Triton is asked for where it cannot be had.
    """
    missing = _missing(device, widest)
    if loss.impl == "auto":
        return Chosen("twin", missing) if missing else Chosen("triton", "in one pass over the data")
    if loss.impl in ("triton", "fused") and missing:
        raise ConfigError(f"loss.impl: {loss.impl} was asked for, and {missing}; leave it at auto")
    return Chosen(loss.impl, "as configured")


def _missing(device: str, widest: int) -> str:
    """What the kernels lack."""
    if device != "cuda":
        return "torch sees no GPU"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if widest > WIDEST:
        return f"a head is {widest} channels wide, and a kernel holds {WIDEST}"
    return ""
